"""Sampling parameters, stop strings, log-probabilities, cache planning: what needs no model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ernie_kernels as ek
from ernie_kernels.runner import capacity
from ernie_kernels.runner.capacity import available_memory_for_cache, plan_cache
from ernie_kernels.runner.reasoning import ReasoningSplitter
from ernie_kernels.runner.sampler import log_softmax, most_probable, seed_of_sample
from ernie_kernels.runner.text_stream import StopStringFinder


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        (
            "temperature",
            -0.1,
            ek.InputError,
            "temperature: expected a number in [0, 100], got -0.1",
        ),
        ("temperature", math.nan, ek.InputError, "got nan"),
        ("temperature", math.inf, ek.InputError, "got inf"),
        ("temperature", 10**400, ek.InputError, "got inf"),
        ("temperature", "1", TypeError, "temperature: expected a number, got str"),
        ("temperature", True, TypeError, "got bool"),
        ("top_p", 0.0, ek.InputError, "top_p: expected a number in (0, 1], got 0.0"),
        ("top_p", 1.5, ek.InputError, "got 1.5"),
        ("top_p", math.nan, ek.InputError, "got nan"),
        ("top_k", -2, ek.InputError, "top_k: expected an integer -1..2147483647, got -2"),
        ("top_k", 2.0, TypeError, "top_k: expected an integer, got float"),
        ("min_p", 1.01, ek.InputError, "min_p: expected a number in [0, 1]"),
        ("max_tokens", 0, ek.InputError, "max_tokens: expected an integer 1.."),
        ("max_tokens", 1 << 40, ek.LimitError, "max_tokens"),
        ("n", 0, ek.InputError, "n: expected an integer 1..128, got 0"),
        ("n", 129, ek.LimitError, "n: expected an integer 1..128, got 129"),
        ("logprobs", -1, ek.InputError, "logprobs: expected an integer 0..128, got -1"),
        ("logprobs", 129, ek.LimitError, "logprobs: expected an integer 0..128, got 129"),
        ("seed", 2**63, ek.InputError, "seed"),
        (
            "repetition_penalty",
            0.0,
            ek.InputError,
            "repetition_penalty: expected a number in [0.01",
        ),
        ("repetition_penalty", math.inf, ek.InputError, "got inf"),
        ("presence_penalty", 2.5, ek.InputError, "presence_penalty: expected a number in [-2, 2]"),
        ("frequency_penalty", math.nan, ek.InputError, "frequency_penalty"),
        ("ignore_eos", 1, TypeError, "ignore_eos: expected a bool, got int"),
        ("stop", "", ek.InputError, "stop[0]: expected 1..256 bytes, got 0"),
        ("stop", ["a", "é" * 129], ek.LimitError, "stop[1]: expected 1..256 bytes, got 258"),
        ("stop", ["a"] * 65, ek.LimitError, "stop: expected at most 64 strings, got 65"),
        ("stop", ["\ud800"], ek.InputError, "stop[0]: lone surrogate U+D800 at position 0"),
        ("stop", 5, TypeError, "stop: expected a string or a list of them, got int"),
        ("stop", [5], TypeError, "stop[0]: expected a str, got int"),
        ("stop_token_ids", [1, -1], ek.InputError, "stop_token_ids[1]"),
        ("stop_token_ids", ["a"], TypeError, "stop_token_ids[0]: expected an integer, got str"),
        ("stop_token_ids", 3, TypeError, "stop_token_ids: expected a list, got int"),
        ("stop_token_ids", list(range(65)), ek.LimitError, "at most 64, got 65"),
        ("stop_token_ids", range(10**12), ek.LimitError, "at most 64, got 1000000000000"),
        ("stop_token_ids", itertools.count(), TypeError, "expected a list, got count"),
    ],
)
def test_params_name_field_value_and_range(field, value, error, message):
    with pytest.raises(error) as caught:
        ek.SamplingParams(**{field: value})
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 512


def test_params_are_normalised():
    params = ek.SamplingParams(top_k=-1, stop="a", stop_token_ids=[5], temperature=np.float32(1))
    assert (params.top_k, params.stop, params.stop_token_ids) == (0, ("a",), (5,))
    assert not params.is_greedy
    assert ek.SamplingParams().is_greedy
    assert ek.SamplingParams(temperature=1e-5).is_greedy


# ---------------------------------------------------------------------------------- stop strings


def until_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition: the first stop string that is completed, of two the longer one."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def push_all(finder: StopStringFinder, pieces: list[str]) -> tuple[str, str | None]:
    shown = ""
    for piece in pieces:
        delta, found = finder.push(piece)
        shown += delta
        if found:
            return shown, found
    return shown + finder.finish(), None


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_do_not_depend_on_where_text_is_cut(pieces, stop):
    assert push_all(StopStringFinder(stop), pieces) == until_stop("".join(pieces), stop)


@given(
    st.lists(st.text("ab", max_size=3), max_size=10),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_is_held_back_only_while_it_may_begin_a_stop_string(pieces, stop):
    finder, shown, seen = StopStringFinder(stop), "", ""
    for piece in pieces:
        delta, found = finder.push(piece)
        shown, seen = shown + delta, seen + piece
        if found:
            break
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert held == "" or any(s.startswith(held) and s != held for s in stop)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_reasoning_is_split_from_the_answer(size):
    text = "first\nthen </thin</think>\n\nThe answer </think>"
    splitter, reasoning, answer = ReasoningSplitter(), "", ""
    for at in range(0, len(text), size):
        parts = splitter.push(text[at : at + size])
        reasoning, answer = reasoning + parts[0], answer + parts[1]
    assert (reasoning + splitter.finish(), answer) == (
        "first\nthen </thin",
        "The answer </think>",
    )


def test_reasoning_without_an_end_is_all_reasoning():
    splitter = ReasoningSplitter()
    assert splitter.push("hm </th") == ("hm ", "")
    assert splitter.finish() == "</th"


# ------------------------------------------------------------------------------ log-probabilities


def test_log_softmax_and_order(rng):
    logits = rng.standard_normal(1000).astype(np.float32) * 5
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    logprobs = log_softmax(logits)
    assert logprobs.dtype == np.float32
    assert np.abs(logprobs - exact).max() < 1e-5
    assert most_probable(logprobs, 7) == np.argsort(-logits)[:7].tolist()


def test_equal_log_probabilities_come_in_order_of_ids():
    row = np.array([0.0, 2.0, 1.0, 2.0, 1.0, 1.0], np.float32)
    assert most_probable(row, 4) == [1, 3, 2, 4]
    assert most_probable(row, 0) == []
    assert most_probable(row, 100) == [1, 3, 2, 4, 5, 0]


def test_answers_of_a_request_have_different_seeds():
    seeds = {seed_of_sample(seed, index) for seed in (-1, 0, 1, 2**63 - 1) for index in range(128)}
    assert len(seeds) == 4 * 128
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert seed_of_sample(17, 0) == 17


# -------------------------------------------------------------------------------- cache planning

PLAN = {
    "bytes_per_block": 1000,
    "block_size": 32,
    "max_position_embeddings": 4096,
    "max_model_len": None,
    "max_num_seqs": 4,
    "kv_cache_memory": None,
    "available_memory": 10_000_000,
}


@pytest.mark.parametrize(
    ("changes", "num_blocks", "max_model_len"),
    [
        ({}, 4 * 128, 4096),  # never more than all sequences can use
        ({"available_memory": 1_400_000}, 140, 4096),
        ({"available_memory": 400_000, "share": 0.9}, 360, 4096),
        ({"available_memory": 0}, 128, 4096),  # at least one sequence ...
        ({"available_memory": 0, "max_position_embeddings": 131072}, 256, 8192),  # ... of 8192
        ({"available_memory": 0, "max_model_len": 100}, 4, 100),
        ({"kv_cache_memory": 10_500}, 10, 320),
        ({"kv_cache_memory": 10**9}, 512, 4096),
    ],
)
def test_cache_plan(changes, num_blocks, max_model_len):
    plan = plan_cache(**{**PLAN, **changes})
    assert (plan.num_blocks, plan.max_model_len) == (num_blocks, max_model_len)


def test_memory_for_the_cache(monkeypatch):
    monkeypatch.setattr(capacity, "available_host_memory", lambda: 1000)
    assert available_memory_for_cache("cpu", 300) == (700, 0.1)
    assert available_memory_for_cache("cpu", 1001) == (0, 0.1)
    free = 8 << 30
    monkeypatch.setattr(capacity._core, "device_memory", lambda device: (free, 2 * free))
    assert available_memory_for_cache("cuda:0", 1 << 30) == ((7 << 30) - (256 << 20), 0.9)
    assert available_memory_for_cache("cuda:0", free) == (0, 0.9)


MIB = 1 << 20
STAT = f"anon {MIB}\ninactive_file {2 * MIB}\nactive_file {MIB}\n"
STAT_1 = (
    f"cache {9 * MIB}\ninactive_file 5\ntotal_inactive_file {2 * MIB}\ntotal_active_file {MIB}\n"
)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"memory.max": "max", "memory.current": str(MIB), "memory.stat": STAT}, None),
        # 3 of the 7 MiB that are in use are pages of files.
        ({"memory.max": f"{8 * MIB}\n", "memory.current": f"{7 * MIB}\n", "memory.stat": STAT}, 4),
        ({"memory.max": f"{MIB}\n", "memory.current": f"{7 * MIB}\n", "memory.stat": STAT}, 0),
        (
            {
                "memory/memory.limit_in_bytes": f"{8 * MIB}\n",
                "memory/memory.usage_in_bytes": f"{7 * MIB}\n",
                "memory/memory.stat": STAT_1,
            },
            4,
        ),
    ],
    ids=["no container", "no limit", "version 2", "beyond the limit", "version 1"],
)
def test_memory_within_a_container(tmp_path, monkeypatch, files, left):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(capacity, "CONTROL_GROUP", tmp_path)
    available = capacity.available_host_memory()
    if left is None:
        assert available > 9 * MIB  # the machine's
    else:
        assert available == left * MIB


def test_cache_plan_refuses():
    with pytest.raises(ek.ArgumentError, match=r"kv_cache_memory: expected at least 1000 bytes"):
        plan_cache(**{**PLAN, "kv_cache_memory": 999})
    with pytest.raises(ek.ArgumentError, match=r"max_model_len: expected 1\.\.4096"):
        plan_cache(**{**PLAN, "max_model_len": 4097})
    with pytest.raises(ek.CapacityError, match="needs 128000 bytes"):
        plan_cache(**{**PLAN, "max_model_len": 4096, "kv_cache_memory": 127_999})
