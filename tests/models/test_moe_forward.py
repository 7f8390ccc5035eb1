"""Models with experts against float64 and transformers, and against themselves in every cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
from same_logits import (
    check_every_layout,
    check_mixed_batch,
    check_numbers_of_threads,
    check_wanted_rows,
    forward,
    logits_in_spans,
)

import ernie_kernels as ek
import reference_model
import safetensors_bytes
from tiny_checkpoint import MOE_SHAPES, random_ids, to_stacked, write_checkpoint

# The released models in small, and what no released one has.
SHAPES = {
    **MOE_SHAPES,
    "square_router": {**MOE_SHAPES["21b"], "moe_num_experts": 64, "moe_k": 6},
    "every_other_layer": {
        **MOE_SHAPES["21b"],
        "num_hidden_layers": 5,
        "moe_layer_interval": 2,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 3,
        "moe_num_shared_experts": 0,
        "moe_norm_min": 0.8,
    },
    "odd_sizes_no_dense_layer": {
        **MOE_SHAPES["21b"],
        "hidden_size": 37,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "moe_num_experts": 5,
        "moe_k": 5,
        "moe_intermediate_size": 13,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 99,
    },
    "one_expert": {**MOE_SHAPES["21b"], "moe_num_experts": 1, "moe_k": 1},
}


def worst(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    assert [a.shape for a in actual] == [e.shape for e in expected]
    return max(float(np.abs(a - e).max()) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_float64(tmp_path, rng, device, shape):
    config, weights = write_checkpoint(tmp_path, **SHAPES[shape])
    prompts = random_ids(rng, 1, 2, 33, 130)
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    assert worst(forward(tmp_path, prompts, device=device), expected) < 1e-4


@pytest.mark.parametrize("shape", MOE_SHAPES)
def test_bfloat16_is_near_float64(tmp_path, rng, device, shape):
    """Its router sees rounded hidden states: where scores are nearly equal it takes another expert."""
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", **SHAPES[shape])
    prompts = random_ids(rng, 1, 33, 90)
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    actual = forward(tmp_path, prompts, device=device)
    differences = np.abs(np.concatenate(actual) - np.concatenate(expected))
    assert differences.mean() < 0.02
    assert np.quantile(differences, 0.9) < 0.05


def test_float32_activations_go_with_bfloat16_experts(tmp_path, rng):
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", **SHAPES["21b"])
    prompts = random_ids(rng, 40)
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    assert worst(forward(tmp_path, prompts, dtype="float32"), expected) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["21b", "300b", "square_router"])
def test_every_layout_gives_the_same_logits(tmp_path, rng, shape, dtype):
    """Paddle's names and transposes, experts in one tensor, several files: bit for bit."""
    _, weights = write_checkpoint(tmp_path / "one", dtype=dtype, **SHAPES[shape])
    prompts = random_ids(rng, 1, 20)
    check_every_layout(tmp_path, weights, prompts, stacked=to_stacked(weights))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_router_is_float32_whatever_it_is_stored_as(tmp_path, rng, dtype):
    """Widened from 16 bits exactly; and never rounded to them."""
    config, weights = write_checkpoint(tmp_path, dtype="bfloat16", **SHAPES["21b"])
    for name, array in weights.items():
        if ".mlp.gate.weight" in name or "e_score_correction_bias" in name:
            weights[name] = array.astype(dtype)
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    prompts = random_ids(rng, 30)
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    assert worst(forward(tmp_path, prompts, dtype="float32"), expected) < 1e-4


# -------------------------------------------------------------------- the same bits in every cut


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def llm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, dtype=request.param, **SHAPES["21b"])
    with ek.LLM.from_pretrained(folder, device="cpu") as model:
        yield model


@pytest.mark.parametrize("cuts", [list(range(1, 75)), [1], [31, 32, 33], [7, 74]])
def test_token_by_token_and_chunks_equal_prefill(llm, rng, cuts):
    (ids,) = random_ids(rng, 75)
    assert np.array_equal(logits_in_spans(llm, ids, cuts), llm.forward([ids])[0])


def test_wanted_rows_equal_all_rows(llm, rng):
    check_wanted_rows(llm, rng)


def test_mixed_batch_equals_alone(llm, rng):
    check_mixed_batch(llm, random_ids(rng, *rng.integers(1, 120, 24)))


def test_number_of_threads_makes_no_difference(llm, rng):
    check_numbers_of_threads(llm, random_ids(rng, 1, 9, 140))


def test_generation_is_the_most_probable_token_of_forward(llm, rng):
    prompts = random_ids(rng, 3, 40, 70)
    outputs = llm.generate(
        prompt_token_ids=prompts, params=ek.SamplingParams(max_tokens=8, ignore_eos=True)
    )
    for ids, output in zip(prompts, outputs, strict=True):
        tokens = output.outputs[0].token_ids
        assert len(tokens) == 8
        logits = llm.forward([ids + tokens])[0]
        assert tokens == logits[len(ids) - 1 : -1].argmax(-1).tolist()


# ------------------------------------------------------------------------- the live comparison


@pytest.fixture(scope="module", params=MOE_SHAPES)
def beside_transformers(request, tmp_path_factory):
    import torch
    from transformers import Ernie4_5_MoeForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    write_checkpoint(folder, seed=8, **SHAPES[request.param])
    config = json.loads((folder / "config.json").read_text())
    if config["moe_num_shared_experts"] is None:  # transformers cannot read null
        theirs = folder / "theirs"
        theirs.mkdir()
        (theirs / "config.json").write_text(json.dumps({**config, "moe_num_shared_experts": 0}))
        (theirs / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    else:
        theirs = folder
    model, info = Ernie4_5_MoeForCausalLM.from_pretrained(
        theirs, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return folder, model.eval()


@pytest.mark.oracle
def test_equals_transformers(beside_transformers, rng):
    """Batched, and token by token."""
    import torch

    folder, model = beside_transformers
    prompts = random_ids(rng, 1, 7, 40, 64)
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        assert worst(llm.forward(prompts), expected) < 1e-4
        for ids, logits in zip(prompts, expected, strict=True):
            one_by_one = logits_in_spans(llm, ids, list(range(1, len(ids))))
            assert np.abs(one_by_one - logits).max() < 1e-4
