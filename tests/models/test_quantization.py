"""Models whose weights are rounded while they are read, against float64 with the same rounding."""

from __future__ import annotations

import numpy as np
import pytest
from load_peak import peak_of_load
from same_logits import check_every_layout, forward

import ernie_kernels as ek
import reference_model
from ernie_kernels.models.config import load_config
from ernie_kernels.models.memory_plan import plan_memory
from tiny_checkpoint import MOE_SHAPES, random_ids, write_checkpoint

import reference

SHAPES = {
    "tied": {},
    "untied_bias": {"tie_word_embeddings": False, "use_bias": True, "num_key_value_heads": 4},
    "tied_odd_sizes": {
        "vocab_size": 101,
        "hidden_size": 37,
        "intermediate_size": 53,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "two_groups": {"hidden_size": 130, "intermediate_size": 200, "head_dim": 32},
}
ALL_WINT4 = {"dense_quant_type": "wint4"}
QUANTIZATIONS = ["wint8", "w8a8", pytest.param(ALL_WINT4, id="wint4")]


def is_matrix(name: str, config) -> bool:
    tied = config["tie_word_embeddings"] and name == "model.embed_tokens.weight"
    return name.endswith("_proj.weight") or name == "lm_head.weight" or tied


def as_rounded(config, weights, rounds=reference.wint8_quantize) -> dict[str, np.ndarray]:
    """The weights as float64, matrices as their integers times their scales."""
    result = {}
    for name, array in weights.items():
        result[name] = array.astype(np.float64)
        if is_matrix(name, config):
            as_read = array.astype(np.float32) if array.dtype == np.float16 else array
            values, scale = rounds(as_read)
            result[name] = values * scale.astype(np.float64)[:, None]
    return result


def rounded_activations(x: np.ndarray) -> np.ndarray:
    values, scale = reference.quantize_activations(x)
    groups = values.astype(np.float64) * scale[..., None]
    return groups.reshape(len(x), -1)[:, : x.shape[1]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(expected: list[np.ndarray], got: list[np.ndarray]) -> tuple[float, float]:
    """Mean Kullback-Leibler divergence from ``expected``, and how often the first choice agrees."""
    p, q = (log_softmax(np.concatenate(logits).astype(np.float64)) for logits in (expected, got))
    return (np.exp(p) * (p - q)).sum(-1).mean(), (p.argmax(-1) == q.argmax(-1)).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("quantization", "rounds"),
    [("wint8", reference.wint8_quantize), (ALL_WINT4, reference.wint4_quantize)],
    ids=["wint8", "wint4"],
)
def test_weights_alone_follow_float64_of_the_same_weights(
    tmp_path, rng, shape, dtype, quantization, rounds
):
    config, weights = write_checkpoint(tmp_path, dtype=dtype, **SHAPES[shape])
    prompts = random_ids(rng, 1, 33, 200, vocab_size=config["vocab_size"])
    got = forward(tmp_path, prompts, quantization=quantization, dtype="float32")
    matrices = as_rounded(config, weights, rounds)
    expected = [reference_model.forward(config, matrices, ids) for ids in prompts]
    kl, agreement = divergence(expected, got)
    assert kl <= 1e-10
    assert agreement >= 0.995
    assert np.abs(np.concatenate(got) - np.concatenate(expected)).max() < 1e-4
    if dtype == "bfloat16":
        kl, _ = divergence(expected, forward(tmp_path, prompts, quantization=quantization))
        assert kl <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_w8a8_follows_float64_of_the_same_rounding(tmp_path, rng, shape, dtype):
    """Less closely: the last bit of a float32 decides which integer a value near a half becomes,
    and the next layers carry that on. tests/ops/test_wint8.py holds the op to its bits."""
    config, weights = write_checkpoint(tmp_path, dtype=dtype, **SHAPES[shape])
    prompts = random_ids(rng, 1, 33, 200, vocab_size=config["vocab_size"])
    got = forward(tmp_path, prompts, quantization="w8a8", dtype="float32")
    matrices = as_rounded(config, weights)
    expected = [
        reference_model.forward(config, matrices, ids, rounded_activations) for ids in prompts
    ]
    kl, _ = divergence(expected, got)
    assert kl <= 2e-4
    if dtype == "bfloat16":
        kl, _ = divergence(expected, forward(tmp_path, prompts, quantization="w8a8"))
        assert kl <= 5e-4


@pytest.mark.cuda
@pytest.mark.parametrize("shape", ["tied", "tied_odd_sizes"])
@pytest.mark.parametrize(
    ("quantization", "rounds"),
    [("wint8", reference.wint8_quantize), (ALL_WINT4, reference.wint4_quantize)],
    ids=["8", "4"],
)
def test_weights_alone_on_cuda(tmp_path, rng, shape, quantization, rounds):
    config, weights = write_checkpoint(tmp_path, **SHAPES[shape])
    prompts = random_ids(rng, 1, 33, vocab_size=config["vocab_size"])
    got = forward(tmp_path, prompts, device="cuda", quantization=quantization)
    matrices = as_rounded(config, weights, rounds)
    for actual, ids in zip(got, prompts, strict=True):
        assert np.abs(actual - reference_model.forward(config, matrices, ids)).max() < 1e-4


@pytest.mark.cuda
def test_cuda_refuses_int8_activations(tmp_path):
    write_checkpoint(tmp_path)
    with pytest.raises(ek.UnsupportedError, match="w8a8 is not in this version for cuda:0"):
        ek.LLM.from_pretrained(tmp_path, device="cuda", quantization="w8a8")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("shape", ["tied_odd_sizes", "untied_bias"])
def test_every_layout_gives_the_same_logits(tmp_path, rng, shape, quantization):
    config, weights = write_checkpoint(tmp_path / "one", dtype="bfloat16", **SHAPES[shape])
    prompts = random_ids(rng, 1, 20, vocab_size=config["vocab_size"])
    check_every_layout(tmp_path, weights, prompts, quantization=quantization)


@pytest.mark.parametrize("shape", ["tied", "untied_bias"])
@pytest.mark.parametrize(
    ("quantization", "together", "bits"), [("wint8", 4, 8), (ALL_WINT4, 8, 4)], ids=["8", "4"]
)
def test_weight_bytes(tmp_path, shape, quantization, together, bits):
    """8 or 4 bits a weight, padded to whole panels, and a scale for each row; a tied head once."""
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", **SHAPES[shape])
    expected = 0
    for name, array in weights.items():
        rows, *columns = array.shape
        if not is_matrix(name, config):
            is_table = name == "model.embed_tokens.weight"
            expected += -(-rows // 16) * 16 * columns[0] * 2 if is_table else array.nbytes
            continue
        padded = -(-rows // 16) * 16 if "_proj." not in name or "o_proj" in name else rows
        expected += padded * -(-columns[0] // together) * together * bits // 8 + 4 * rows
    with ek.LLM.from_pretrained(tmp_path, device="cpu", quantization=quantization) as llm:
        size = llm.stats()["weight_bytes"]
    fused_and_padded = sum(-rows % 16 * 200 for rows in (70, 140, 48, 64))
    assert expected <= size <= expected + config["num_hidden_layers"] * fused_and_padded


# A load may take the largest matrix beside the weights, which is small where experts are many.
LARGE = {
    "tied": {"vocab_size": 140_000, "hidden_size": 512, "num_hidden_layers": 1},
    "untied": {
        "vocab_size": 140_000,
        "hidden_size": 512,
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    },
    "experts": {
        **MOE_SHAPES["21b"],
        "vocab_size": 1000,
        "hidden_size": 1024,
        "num_hidden_layers": 3,
        "moe_num_experts": 64,
        "moe_intermediate_size": 384,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "quantization"), [("tied", "wint8"), ("untied", "wint8"), ("experts", "wint4")]
)
def test_peak_memory_of_a_load(tmp_path, shape, quantization):
    config, _ = write_checkpoint(tmp_path, dtype="bfloat16", **LARGE[shape])
    peak, held = peak_of_load(tmp_path, quantization)
    shared_experts = 2 * config.get("moe_num_shared_experts", 0) * 384
    largest = max(config["vocab_size"], shared_experts) * config["hidden_size"] * 2
    assert held <= peak <= held + largest + (64 << 20)
    plan = plan_memory(load_config(tmp_path), quantization=quantization)
    assert plan.host_peak_bytes == held + largest + (64 << 20)
