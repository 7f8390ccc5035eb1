"""The whole model against float64, and against itself under every way of cutting the work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from same_logits import (
    check_every_layout,
    check_mixed_batch,
    check_numbers_of_threads,
    check_wanted_rows,
    logits_in_spans,
)

import ernie_kernels as ek
import reference_model
import safetensors_bytes
from ernie_kernels.models.config import load_config
from ernie_kernels.runner import model_runner
from tiny_checkpoint import random_ids, write_checkpoint

SHAPES = {
    "head_dim_is_not_hidden_over_heads": {},
    "head_dim_is_hidden_over_heads_untied": {
        "hidden_size": 64,
        "tie_word_embeddings": False,
    },
    "one_kv_head_odd_sizes": {
        "vocab_size": 101,
        "hidden_size": 37,
        "intermediate_size": 53,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "all_kv_heads_bias": {
        "num_key_value_heads": 4,
        "use_bias": True,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
    "real_head_dim": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-3,
    },
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, *write_checkpoint(folder)


@pytest.fixture(scope="module")
def llm(checkpoint):
    with ek.LLM.from_pretrained(checkpoint[0], device="cpu") as model:
        yield model


def worst(actual: list[np.ndarray], config, weights, prompts) -> float:
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    assert [a.shape for a in actual] == [e.shape for e in expected]
    assert all(a.dtype == np.float32 for a in actual)
    return max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_float64(tmp_path, rng, device, shape):
    config, weights = write_checkpoint(tmp_path, **SHAPES[shape])
    prompts = random_ids(rng, 1, 2, 33, 130, vocab_size=config["vocab_size"])
    with ek.LLM.from_pretrained(tmp_path, device=device) as llm:
        assert llm.dtype == "float32"
        assert worst(llm.forward(prompts), config, weights, prompts) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_near_float64(tmp_path, rng, device, shape):
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", **SHAPES[shape])
    prompts = random_ids(rng, 1, 33, vocab_size=config["vocab_size"])
    with ek.LLM.from_pretrained(tmp_path, device=device) as llm:
        assert llm.dtype == "bfloat16"
        actual = llm.forward(prompts)
    # Logits are near 2; bfloat16 has 8 bits, and every layer rounds about ten times. What other
    # code makes of the same weights: test_bfloat16_is_as_near_as_transformers.
    assert worst(actual, config, weights, prompts) < 0.06
    exact = [reference_model.forward(config, weights, ids) for ids in prompts]
    assert np.abs(np.concatenate(actual) - np.concatenate(exact)).mean() < 0.01


def test_float32_activations_go_with_bfloat16_weights(tmp_path, rng):
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", use_bias=True)
    prompts = random_ids(rng, 40)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", dtype="float32") as llm:
        size = llm.stats()["weight_bytes"]
        assert worst(llm.forward(prompts), config, weights, prompts) < 1e-4
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        norms = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
        assert size == llm.stats()["weight_bytes"] + 2 * norms


def test_float16_checkpoint_runs_in_float32(tmp_path, rng):
    config, weights = write_checkpoint(tmp_path, dtype="float16")
    prompts = random_ids(rng, 20)
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        assert llm.dtype == "float32"
        assert worst(llm.forward(prompts), config, weights, prompts) < 1e-4


def test_float32_checkpoint_rounds_to_bfloat16_on_request(tmp_path, rng):
    config, weights = write_checkpoint(tmp_path)
    prompts = random_ids(rng, 20)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", dtype="bfloat16") as llm:
        assert worst(llm.forward(prompts), config, weights, prompts) < 0.04


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["one_kv_head_odd_sizes", "all_kv_heads_bias"])
def test_every_layout_gives_the_same_logits(tmp_path, rng, shape, dtype):
    """Paddle's names and transposes, and several files, bit for bit."""
    config, weights = write_checkpoint(tmp_path / "one", dtype=dtype, **SHAPES[shape])
    prompts = random_ids(rng, 1, 20, vocab_size=config["vocab_size"])
    check_every_layout(tmp_path, weights, prompts)


def test_tied_head_is_kept_once(tmp_path):
    """A stored copy of the embedding is dropped; a head of its own counts even if "tied"."""
    config, weights = write_checkpoint(tmp_path)
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        tied = llm.stats()["weight_bytes"]
        logits = llm.forward([[5, 6]])[0]
    head = weights["model.embed_tokens.weight"]
    safetensors_bytes.save(tmp_path / "model.safetensors", {**weights, "lm_head.weight": head})
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        assert llm.stats()["weight_bytes"] == tied
        assert np.array_equal(llm.forward([[5, 6]])[0], logits)
    weights["lm_head.weight"] = head[::-1].copy()
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        assert llm.stats()["weight_bytes"] > tied
        assert worst(llm.forward([[5, 6]]), config, weights, [[5, 6]]) < 1e-4


def test_missing_head_is_an_error_unless_tied(tmp_path):
    _, weights = write_checkpoint(tmp_path, tie_word_embeddings=False)
    del weights["lm_head.weight"]
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    with pytest.raises(ek.WeightError, match=r"lm_head\.weight"):
        ek.LLM.from_pretrained(tmp_path, device="cpu")


# -------------------------------------------------------------------- the same bits in every cut


def test_token_by_token_equals_prefill(llm, rng):
    (ids,) = random_ids(rng, 75)
    whole = llm.forward([ids])[0]
    assert np.array_equal(logits_in_spans(llm, ids, list(range(1, len(ids)))), whole)


@pytest.mark.parametrize("cuts", [[1], [31, 32, 33], [64], [7, 74]])
def test_chunks_equal_whole(llm, rng, cuts):
    (ids,) = random_ids(rng, 75)
    assert np.array_equal(logits_in_spans(llm, ids, cuts), llm.forward([ids])[0])


def test_long_prompt_is_cut_into_steps(llm, rng):
    (ids,) = random_ids(rng, 1100)
    whole = llm.forward([ids])[0]
    assert np.array_equal(logits_in_spans(llm, ids, [300, 700, 1000]), whole)


def test_wanted_rows_equal_all_rows(llm, rng):
    check_wanted_rows(llm, rng)


def test_mixed_batch_equals_alone(llm, rng):
    check_mixed_batch(llm, random_ids(rng, *rng.integers(1, 120, 32)))


def test_bfloat16_mixed_batch_equals_alone(tmp_path, rng):
    write_checkpoint(tmp_path, dtype="bfloat16")
    prompts = random_ids(rng, *rng.integers(1, 120, 32))
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        together = llm.forward(prompts)
        for ids, logits in zip(prompts, together, strict=True):
            assert np.array_equal(llm.forward([ids])[0], logits)
            assert np.array_equal(logits_in_spans(llm, ids, list(range(1, len(ids)))), logits)


def test_number_of_threads_makes_no_difference(llm, rng):
    check_numbers_of_threads(llm, random_ids(rng, 1, 9, 140))


def test_what_freed_blocks_held_makes_no_difference(llm, rng):
    prompts = random_ids(rng, 20, 50)
    before = llm.forward(prompts)
    for cache in llm._engine._runner._kv_caches:
        cache.k_cache.numpy()[...] = np.nan
        cache.v_cache.numpy()[...] = np.nan
    assert all(np.array_equal(a, b) for a, b in zip(llm.forward(prompts), before, strict=True))


def test_the_head_of_a_long_prompt_is_computed_in_pieces(checkpoint, llm, rng, monkeypatch):
    """Python hears of Ctrl-C between two calls: each is of few products, and the bits are the same."""
    folder, config, _ = checkpoint
    products = 7 * config["vocab_size"] * config["hidden_size"]
    monkeypatch.setattr(model_runner, "HEAD_PRODUCTS_PER_CALL", products)
    prompts = random_ids(rng, 40, 3)
    with ek.LLM.from_pretrained(folder, device="cpu") as other:
        head, called = other.model.logits, []

        def logits(hidden_states, *, out):
            called.append(len(hidden_states))
            if len(called) == interrupted_at:
                raise KeyboardInterrupt
            return head(hidden_states, out=out)

        monkeypatch.setattr(other.model, "logits", logits)
        interrupted_at = 3
        with pytest.raises(KeyboardInterrupt):
            other.forward(prompts)
        assert called == [7, 7, 7]
        called.clear()
        interrupted_at = None
        pieces = other.forward(prompts)
        assert called == [7, 7, 7, 7, 7, 5, 3]
    for got, expected in zip(pieces, llm.forward(prompts), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize(("hidden_size", "rows"), [(1024, 24), (2560, 9), (8192, 3), (1 << 16, 1)])
def test_a_piece_of_the_head_is_never_empty(checkpoint, hidden_size, rows):
    config = replace(load_config(checkpoint[0]), vocab_size=103424, hidden_size=hidden_size)
    assert model_runner.head_rows_per_call(config) == rows


def test_loading_holds_one_matrix_beside_the_model(tmp_path):
    write_checkpoint(tmp_path, vocab_size=20000, hidden_size=64, num_hidden_layers=1)
    from ernie_kernels import _core

    _core.reset_cpu_bytes_peak()
    before = _core.cpu_bytes_allocated()
    with ek.LLM.from_pretrained(
        tmp_path, device="cpu", max_model_len=32, max_num_seqs=1, kv_cache_memory=1 << 20
    ) as llm:
        weights = llm.stats()["weight_bytes"]
        rest = 16 << 20  # cache and workspace
        assert _core.cpu_bytes_peak() - before < weights + rest


# ------------------------------------------------------------------------- the live comparison


@pytest.mark.oracle
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_transformers(tmp_path, rng, shape, dtype):
    import torch
    from transformers import Ernie4_5ForCausalLM

    config, weights = write_checkpoint(tmp_path, dtype=dtype, **SHAPES[shape])
    prompts = random_ids(rng, 1, 40, vocab_size=config["vocab_size"])
    model = Ernie4_5ForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        actual = llm.forward(prompts)
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0].float().numpy() for ids in prompts]
    difference = max(np.abs(a - e).max() for a, e in zip(actual, expected, strict=True))
    if dtype == "float32":
        assert difference < 1e-4
    else:  # the same arithmetic, with other roundings on the way
        assert difference < 0.06
        exact = [reference_model.forward(config, weights, ids) for ids in prompts]
        ours, theirs = (
            np.abs(np.concatenate(logits) - np.concatenate(exact)).mean()
            for logits in (actual, expected)
        )
        assert ours <= 1.1 * theirs


@pytest.mark.oracle
def test_bfloat16_is_as_near_as_transformers(tmp_path, rng):
    """Mean KL divergence from float64 on the same weights: at most 1.1 times transformers' own."""
    import torch
    from transformers import Ernie4_5ForCausalLM

    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", num_hidden_layers=4)
    prompts = random_ids(rng, *[64] * 8)
    model = Ernie4_5ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        ours = llm.forward(prompts)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", dtype="float32") as llm:
        wide = llm.forward(prompts)

    def log_softmax(x):
        x = x.astype(np.float64)
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def divergence(expected, actual):
        p, q = log_softmax(expected), log_softmax(actual)
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    sums = np.zeros(3)
    for ids, mine, float32 in zip(prompts, ours, wide, strict=True):
        exact = reference_model.forward(config, weights, ids)
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].float().numpy()
        sums += [divergence(exact, mine), divergence(exact, float32), divergence(exact, theirs)]
    kl_ours, kl_float32, kl_theirs = sums / len(prompts)
    assert kl_ours <= 1.1 * kl_theirs
    assert kl_float32 <= 1e-5
