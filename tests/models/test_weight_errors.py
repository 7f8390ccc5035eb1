"""Tensors that do not fit the configuration: missing, unexpected, misshapen, not finite."""

from __future__ import annotations

import numpy as np
import pytest

from ernie_kernels.errors import WeightError
from ernie_kernels.models import tensor_pieces
from ernie_kernels.models.loader import WeightSpec, open_checkpoint
from safetensors_bytes import BFLOAT16, save
from tiny_checkpoint import to_paddle
from wanted_weights import HIDDEN, INTERMEDIATE, random_weights, specs


def checkpoint_of(tmp_path, weights):
    save(tmp_path / "model.safetensors", weights)
    return open_checkpoint(tmp_path)


def test_row_20_missing_tensors(tmp_path, rng):
    weights = random_weights(rng, specs())
    for name in [n for n in weights if "layers.1" in n]:
        del weights[name]
    with pytest.raises(WeightError, match=r"9 tensors missing: '[^']+'(, '[^']+'){4};"):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_20_unexpected_and_did_you_mean(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.layers.0.self_attn.q_porj.weight"] = weights.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )
    with pytest.raises(
        WeightError,
        match=r"1 tensors missing: '.*q_proj.weight'; did you mean '.*q_porj.weight'\?; 1 tensors unexp",
    ):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_20_message_stays_short(tmp_path, rng):
    weights = random_weights(rng, specs()) | {
        f"model.{'x' * 300}{i}": np.zeros(1, np.float32) for i in range(9)
    }
    with pytest.raises(WeightError, match="9 tensors unexpected") as caught:
        checkpoint_of(tmp_path, weights).require(specs())
    assert len(str(caught.value)) <= 512


def test_multi_token_prediction_weights_are_ignored(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.mtp_emb_norm.0.weight"] = np.zeros(3, np.float32)
    weights["model.mtp_block.0.mlp.up_proj.weight"] = np.zeros((3, 2), np.float32)
    checkpoint_of(tmp_path, weights).require(specs())


def test_an_output_head_that_a_tied_config_does_not_expect(tmp_path, rng):
    weights = random_weights(rng, specs(tied=False))
    with pytest.raises(WeightError, match=r"1 tensors unexpected: 'lm_head.weight'"):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_21_wrong_shape(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((HIDDEN, 8), BFLOAT16)
    with pytest.raises(
        WeightError,
        match=r"tensor 'model.layers.0.self_attn.q_proj.weight' in 'model.safetensors': shape "
        r"\[6, 8\], expected \[8, 6\] from hidden_size, head_dim of config.json",
    ):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_21_wrong_shape_of_a_fused_tensor(tmp_path, rng):
    stored = to_paddle(random_weights(rng, specs()))
    stored["ernie.layers.0.self_attn.qkv_proj.weight"] = np.zeros((HIDDEN, 12), BFLOAT16)
    with pytest.raises(
        WeightError, match=r"qkv_proj.weight' in .*: shape \[6, 12\], expected \[6, 16"
    ):
        checkpoint_of(tmp_path, stored).require(specs())


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8, np.uint16])
def test_row_22_wrong_dtype(tmp_path, rng, dtype):
    weights = random_weights(rng, specs())
    weights["model.norm.weight"] = np.zeros(HIDDEN, dtype)
    with pytest.raises(
        WeightError, match=r"'model.norm.weight' in .*: dtype \w+, expected F32 or F16 or BF16 for"
    ):
        checkpoint_of(tmp_path, weights).require(specs())


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_row_23_non_finite_weights(tmp_path, rng, monkeypatch, layout, value, dtype):
    monkeypatch.setattr(tensor_pieces, "CHUNK_BYTES", 40)  # the index counts across steps
    weights = random_weights(rng, specs(), dtype)
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name][3, 4] = weights[name][5, 9] = value
    stored = weights if layout == "huggingface" else to_paddle(weights)
    checkpoint = checkpoint_of(tmp_path, stored)
    checkpoint.require(specs())
    first = 3 * INTERMEDIATE + 4 if layout == "huggingface" else 4 * HIDDEN + 3
    with pytest.raises(
        WeightError, match=rf"down_proj.weight' .*: 2 values are NaN or inf.* flat index {first};"
    ):
        checkpoint.tensor(name, dtype="float32")
    checkpoint.tensor("model.norm.weight", dtype="float32")  # the checkpoint stays usable


def test_row_23_values_beyond_the_destinations_range(tmp_path, rng):
    weights = random_weights(rng, specs(), np.float32)
    weights["model.norm.weight"][2] = 3.4e38  # rounds to infinity in bfloat16
    checkpoint = checkpoint_of(tmp_path, weights)
    checkpoint.require(specs())
    assert checkpoint.tensor("model.norm.weight", dtype="float32")[2] == np.float32(3.4e38)
    with pytest.raises(WeightError, match="1 values are NaN or infinite as bfloat16"):
        checkpoint.tensor("model.norm.weight", dtype="bfloat16")


def test_zero_size_tensors_fail_unless_expected(tmp_path):
    weights = {"model.norm.weight": np.zeros(0, np.float32)}
    checkpoint = checkpoint_of(tmp_path, weights)
    with pytest.raises(WeightError, match=r"shape \[0\], expected \[6\]"):
        checkpoint.require({"model.norm.weight": WeightSpec((HIDDEN,))})
    checkpoint.require({"model.norm.weight": WeightSpec((0,))})
    assert checkpoint.tensor("model.norm.weight", dtype="float32").shape == (0,)
