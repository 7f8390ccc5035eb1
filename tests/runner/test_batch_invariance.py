"""The logits of a request are the same bits, whatever runs beside it and however it is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from recorder import Recorder, fill_taken_blocks_with_nan

import ernie_kernels as ek
from ernie_kernels import _core
from ernie_kernels.runner.requests import make_requests
from tiny_checkpoint import MOE_SHAPES, random_ids, write_checkpoint

COUNT = 32
BLOCK = 32


class Model(NamedTuple):
    folder: Path
    quantization: str | None


@pytest.fixture(
    scope="module",
    params=[
        ("dense", "float32", None),
        ("dense", "bfloat16", None),
        ("dense", "bfloat16", "wint8"),
        ("dense", "bfloat16", "w8a8"),
        ("21b", "bfloat16", None),
        ("21b", "bfloat16", "wint4"),
        ("300b", "bfloat16", "w8a8"),
    ],
    ids=lambda p: "-".join(map(str, filter(None, p))),
)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    shape, dtype, quantization = request.param
    write_checkpoint(folder, dtype=dtype, **MOE_SHAPES.get(shape, {}))
    return Model(folder, quantization)


@pytest.fixture(scope="module")
def prompts():
    """Some begin alike; lengths on both sides of block borders."""
    rng = np.random.default_rng(5)
    (common,) = random_ids(rng, 2 * BLOCK + 1)
    lengths = [1, 31, 32, 33, 63, 64, 65, 96, *rng.integers(1, 100, COUNT - 8)]
    prompts = random_ids(rng, *lengths)
    return [ids if i % 3 else (common + ids)[:100] for i, ids in enumerate(prompts)]


def params_of(index: int) -> ek.SamplingParams:
    return ek.SamplingParams(
        max_tokens=3 + index % 5 * 9, ignore_eos=True, seed=index, temperature=float(index % 2)
    )


def load(model, **changes) -> ek.LLM:
    llm = ek.LLM.from_pretrained(
        model.folder,
        device="cpu",
        quantization=model.quantization,
        **{"max_num_seqs": COUNT, **changes},
    )
    fill_taken_blocks_with_nan(llm)
    return llm


def logits_of(llm, prompts, *, at_once: int) -> dict:
    """Logits of every step of all requests, given to the model so many at a time."""
    with Recorder(llm) as recorder:
        for begin in range(0, COUNT, at_once):
            some = range(begin, min(begin + at_once, COUNT))
            llm.generate(
                prompt_token_ids=[prompts[i] for i in some], params=[params_of(i) for i in some]
            )
    llm._engine.check()
    return recorder.logits


@pytest.fixture(scope="module")
def alone(model, prompts):
    logits = {}
    with load(model) as llm:
        for index in range(COUNT):
            llm._engine._block_manager._hashes = [None] * llm.stats()["num_blocks"]
            llm._engine._block_manager.rebuild([])  # nothing to be found
            with Recorder(llm) as recorder:
                llm.generate(prompt_token_ids=[prompts[index]], params=params_of(index))
            logits |= recorder.logits
        assert llm.stats()["prefix_hit_tokens"] == 0
    assert len(logits) == sum(params_of(i).max_tokens for i in range(COUNT))
    return logits


@pytest.mark.parametrize("at_once", [2, 8, 32])
def test_in_batches(model, prompts, alone, at_once):
    with load(model) as llm:
        assert logits_of(llm, prompts, at_once=at_once) == alone


@pytest.mark.parametrize("tokens", [32, 37, 100])
def test_in_chunks(model, prompts, alone, tokens):
    with load(model) as llm:
        llm._engine._scheduler._max_tokens_per_step = tokens
        assert logits_of(llm, prompts, at_once=32) == alone


def test_after_prefix_hits(model, prompts, alone):
    with load(model) as llm:
        logits_of(llm, prompts, at_once=8)
        before = llm.stats()
        assert logits_of(llm, prompts, at_once=8) == alone
        found = llm.stats()["prefix_hit_tokens"] - before["prefix_hit_tokens"]
        assert found >= sum((len(ids) - 1) // BLOCK * BLOCK for ids in prompts)


def test_after_preemptions(model, prompts, alone):
    longest = max(len(ids) + params_of(i).max_tokens for i, ids in enumerate(prompts))
    with load(model, max_model_len=longest, max_num_seqs=1) as one:
        size = one.stats()["kv_cache_bytes"] // one.stats()["num_blocks"]
    with load(model, kv_cache_memory=11 * size) as llm:
        llm._engine._scheduler._watermark = 0  # let in more than is wise, so that some have to go
        assert logits_of(llm, prompts, at_once=32) == alone
        assert llm.stats()["preemptions"] > 5
        assert llm.stats()["num_free_blocks"] == 11


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_with_threads(model, prompts, alone, threads):
    before = _core.num_threads()
    try:
        with load(model, num_threads=threads) as llm:
            assert _core.num_threads() == threads
            assert logits_of(llm, prompts, at_once=8) == alone
    finally:
        _core.set_num_threads(before)


def test_beside_whole_prompts(model, prompts, alone):
    """Streams that go on in the steps of ``forward``, whose rows are all wanted."""
    with load(model) as llm:
        expected = llm.forward(prompts[:4])
        with Recorder(llm) as recorder:
            streams = [
                llm.generate(prompt_token_ids=[prompts[i]], params=params_of(i), stream=True)
                for i in range(8)
            ]
            for stream in streams:
                next(stream)
                for a, b in zip(llm.forward(prompts[:4]), expected, strict=True):
                    assert a.tobytes() == b.tobytes()
            for stream in streams:
                list(stream)
        assert recorder.logits == {key: row for key, row in alone.items() if key[0] < 8}


def test_behind_whole_prompts(model, prompts, alone):
    """A request that comes while ``forward`` is reading, and so stands behind it in a step."""
    with load(model) as llm:
        expected = llm.forward(prompts[:8])
        schedule, tickets, behind = llm._engine._scheduler.schedule, [], []

        def add_and_schedule(may_read):
            if not tickets:
                requests = make_requests(
                    None, prompts[8:12], [params_of(i) for i in range(8, 12)], None, llm._limits
                )
                tickets.append(llm._engine.add_requests(requests))
            scheduled = schedule(may_read)
            samples = [s.logits is None for s, span in scheduled if span.num_outputs]
            behind.append(samples[:1] == [False] and samples[-1])
            return scheduled

        llm._engine._scheduler.schedule = add_and_schedule
        llm._engine._scheduler._max_tokens_per_step = 250
        with Recorder(llm) as recorder:
            for a, b in zip(llm.forward(prompts[:8]), expected, strict=True):
                assert a.tobytes() == b.tobytes()
            for _ in llm._engine.outputs(tickets[0]):
                pass
        assert any(behind)
        assert recorder.logits == {key: row for key, row in alone.items() if key[0] in range(8, 12)}


def test_logits_of_forward_are_those_of_generation(model, prompts, alone):
    with load(model) as llm:
        for index in (7, 9):
            (whole,) = llm.forward([prompts[index]])
            assert whole[-1].tobytes() == alone[index, len(prompts[index])]
