"""Checkpoints with experts: what refuses to load, by name; rounding; and in how much memory."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from load_peak import peak_of_load

import ernie_kernels as ek
import reference_model
import safetensors_bytes
from ernie_kernels import ops
from ernie_kernels.models.config import load_config
from ernie_kernels.models.loader import open_checkpoint
from ernie_kernels.models.weight_specs import weight_specs
from tiny_checkpoint import MOE_SHAPES, random_ids, to_paddle, to_stacked, write_checkpoint

import reference

ROUTER = "model.layers.2.mlp.gate.weight"
BIAS = "model.layers.2.mlp.moe_statics.e_score_correction_bias"
EXPERT = "model.layers.1.mlp.experts.7"
LAYOUTS = {"huggingface": dict, "paddle": to_paddle, "stacked": to_stacked}


def load(folder, **changes) -> ek.LLM:
    return ek.LLM.from_pretrained(folder, **{"device": "cpu", **changes})


@pytest.fixture
def stored(tmp_path):
    """A function that changes the weights, stores them in a layout and returns the folder."""

    def store(change, layout: str = "huggingface", **changes):
        _, weights = write_checkpoint(tmp_path, **{**MOE_SHAPES["21b"], **changes})
        weights = LAYOUTS[layout](weights)
        change(weights)
        safetensors_bytes.save(tmp_path / "model.safetensors", weights)
        return tmp_path

    return store


def stored_name(name: str, layout: str) -> str:
    if layout == "paddle":
        return name.replace("model.", "ernie.", 1)
    return name.replace(".moe_statics.", ".gate.moe_statics.") if layout == "stacked" else name


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [ROUTER, BIAS])
def test_a_missing_router_or_bias_is_named(stored, layout, name):
    folder = stored(lambda weights: weights.pop(stored_name(name, layout)), layout)
    expected = name if layout == "stacked" else stored_name(name, layout)
    with pytest.raises(ek.WeightError, match=rf"1 tensors missing: '{expected}'"):
        load(folder)


@pytest.mark.parametrize("member", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("expert", [EXPERT, "model.layers.3.mlp.shared_experts"])
def test_a_missing_expert_is_named(stored, expert, member):
    folder = stored(lambda weights: weights.pop(f"{expert}.{member}.weight"))
    with pytest.raises(ek.WeightError, match=rf"1 tensors missing: '{expert}.{member}.weight'"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.8.gate_proj.weight",  # one more than there are
        "model.layers.0.mlp.experts.0.gate_proj.weight",  # in a dense layer
        "model.layers.1.mlp.gate_proj.weight",  # the dense MLP of a layer with experts
        "model.layers.1.mlp.gate.weight_1",
        "model.layers.1.mlp.experts.0.gate_proj.bias",
    ],
)
def test_tensors_of_other_experts_are_refused(stored, name):
    folder = stored(lambda weights: weights.update({name: np.zeros((24, 64), np.float32)}))
    with pytest.raises(ek.WeightError, match=rf"1 tensors unexpected: '{name}'"):
        load(folder)


def test_experts_under_both_names_are_refused(stored):
    both = np.zeros((8, 48, 64), np.float32)
    folder = stored(lambda w: w.update({"model.layers.1.mlp.experts.gate_up_proj": both}))
    with pytest.raises(ek.WeightError, match=r"1 tensors unexpected: '.*experts.gate_up_proj'"):
        load(folder)


def test_a_layer_off_by_one_is_refused(stored):
    """The layers' kinds are the file's too: config.json cannot shift them."""
    folder = stored(lambda weights: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "moe_layer_start_index": 2}))
    with pytest.raises(ek.WeightError, match=r"3 tensors missing: 'model.layers.1.mlp.gate_proj"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (ROUTER, (7, 64), r"shape \[7, 64\], expected \[8, 64\] from moe_num_experts, hidden_size"),
        (BIAS, (2, 8), r"shape \[2, 8\], expected \[1, 8\] from moe_num_experts"),
        (
            f"{EXPERT}.up_proj.weight",
            (23, 64),
            r"expected \[24, 64\] from moe_intermediate_size, hidden_size",
        ),
        (
            "model.layers.1.mlp.shared_experts.down_proj.weight",
            (64, 24),
            r"expected \[64, 48\] from hidden_size, moe_num_shared_experts, moe_intermediate_size",
        ),
    ],
)
def test_wrong_shapes(stored, name, shape, message):
    folder = stored(lambda weights: weights.update({name: np.zeros(shape, np.float32)}))
    with pytest.raises(ek.WeightError, match=message):
        load(folder)


def test_a_wrong_shape_of_all_experts_in_one_tensor(stored):
    name = "model.layers.1.mlp.experts.gate_up_proj"
    folder = stored(lambda w: w.update({name: np.zeros((7, 48, 64), np.float32)}), "stacked")
    with pytest.raises(ek.WeightError, match=r"shape \[7, 48, 64\], expected \[8, 48, 64\]"):
        load(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [ROUTER, BIAS, f"{EXPERT}.down_proj.weight"])
def test_values_that_are_not_finite(stored, layout, name):
    def spoil(weights):
        where = stored_name(name, layout)
        if where not in weights:
            where = "model.layers.1.mlp.experts.down_proj"
        weights[where].flat[5] = np.nan

    with pytest.raises(ek.WeightError, match="1 values are NaN or infinite as float32"):
        load(stored(spoil, layout))


def test_wint4_needs_experts(tmp_path):
    write_checkpoint(tmp_path)
    with pytest.raises(ek.ArgumentError, match="wint4 rounds experts and this model has none"):
        load(tmp_path, quantization="wint4")


# ------------------------------------------------------------------------------------ what is right


def turn_routers(weights) -> None:
    for name, array in weights.items():
        if name.endswith("mlp.gate.weight"):
            weights[name] = array.T.copy()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_router_may_be_stored_either_way(stored, layout, rng):
    prompts = random_ids(rng, 20)
    with load(stored(lambda weights: None, layout)) as llm:
        expected = llm.forward(prompts)
    with load(stored(turn_routers, layout)) as llm:
        assert np.array_equal(llm.forward(prompts)[0], expected[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_square_router_lies_as_the_layout_says(stored, layout, rng):
    """No shape tells then: turned, it is another model."""
    changes = {"moe_num_experts": 64}
    config, weights = write_checkpoint(stored(dict, **changes), **{**MOE_SHAPES["21b"], **changes})
    (ids,) = random_ids(rng, 20)
    for change, same in ((lambda w: None, True), (turn_routers, False)):
        with load(stored(change, layout, **changes)) as llm:
            difference = llm.forward([ids])[0] - reference_model.forward(config, weights, ids)
        assert (np.abs(difference).max() < 1e-4) == same


def test_multi_token_prediction_tensors_are_ignored_with_a_line(stored, caplog):
    extra = {"model.mtp_emb_norm.0.weight": np.zeros(3, np.float32)}
    with caplog.at_level(logging.INFO, logger="ernie_kernels"):
        load(stored(lambda weights: weights.update(extra))).close()
    assert "1 tensors of a multi-token prediction module left out" in caplog.text


def test_names_and_shapes_of_a_released_model(tmp_path):
    """5,492 tensors of the 21B and 10,230 of the 300B with its own head."""
    from released_configs import ERNIE_21B, ERNIE_300B

    for values, count in ((ERNIE_21B, 5492), (ERNIE_300B, 10230)):
        (tmp_path / "config.json").write_text(json.dumps(values))
        config = load_config(tmp_path)
        specs = weight_specs(config)
        assert len(specs) - config.tie_word_embeddings == count
    assert specs["model.layers.3.mlp.gate.weight"].shape == (64, 8192)
    assert specs["model.layers.53.mlp.experts.63.down_proj.weight"].shape == (8192, 3584)


# ---------------------------------------------------------------------------------------- rounding


def is_expert(name: str) -> bool:
    return ".experts." in name


def as_rounded(config, weights, dense: str | None, experts: str | None) -> dict[str, np.ndarray]:
    """The weights as float64, matrices as their integers times their scales."""
    rounding = {"wint8": reference.wint8_quantize, "wint4": wint4_quantize}
    result = {}
    for name, array in weights.items():
        tied = config["tie_word_embeddings"] and name == "model.embed_tokens.weight"
        result[name] = array.astype(np.float64)
        if name.endswith("_proj.weight") or name == "lm_head.weight" or tied:
            kind = experts if is_expert(name) else dense
            if kind is not None:
                values, scale = rounding[kind](array)
                result[name] = values * scale.astype(np.float64)[:, None]
    return result


def wint4_quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers of -7 to 7, halves away from zero; the scale rounded to the weight's dtype."""
    largest = np.abs(weight.astype(np.float64)).max(-1)
    steps = weight.astype(np.float64) / largest[:, None] * 7
    integers = np.sign(steps) * np.floor(np.abs(steps) + 0.5)
    return integers, (largest / 7).astype(weight.dtype)


def mixed(dense: str | None, experts: str | None) -> dict[str, str | None]:
    return {"dense_quant_type": dense, "moe_quant_type": experts}


@pytest.mark.parametrize(
    ("quantization", "dense", "experts"),
    [
        ("wint8", "wint8", "wint8"),
        ("wint4", "wint8", "wint4"),
        (mixed("wint8", "wint4") | {"quantization": "mix_quant"}, "wint8", "wint4"),
        (mixed("wint4", "wint4"), "wint4", "wint4"),
        (mixed("wint4", None), "wint4", None),
        ({"dense_quant_type": "wint8"}, "wint8", None),
        ({"moe_quant_type": "wint4"}, None, "wint4"),
        (mixed("wint4", "wint8"), "wint4", "wint8"),
        (mixed(None, None), None, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", MOE_SHAPES)
def test_rounded_models_follow_float64_of_the_same_weights(
    tmp_path, rng, shape, dtype, quantization, dense, experts
):
    config, weights = write_checkpoint(tmp_path, dtype=dtype, **MOE_SHAPES[shape])
    prompts = random_ids(rng, 1, 33, 90)
    matrices = as_rounded(config, weights, dense, experts)
    with load(tmp_path, quantization=quantization, dtype="float32") as llm:
        for ids, got in zip(prompts, llm.forward(prompts), strict=True):
            assert np.abs(got - reference_model.forward(config, matrices, ids)).max() < 1e-4


@pytest.mark.parametrize(
    ("quantization", "dense", "experts"),
    [
        (None, False, False),
        ("wint8", False, False),
        ("w8a8", True, True),
        (mixed("w8a8", "wint4"), True, False),
        (mixed("wint8", "w8a8"), False, True),
    ],
    ids=str,
)
def test_int8_activations_reach_what_is_asked(tmp_path, monkeypatch, quantization, dense, experts):
    asked = []

    def fused_moe(*arguments, int8_activations, **options):
        asked.append(int8_activations)
        return right(*arguments, int8_activations=int8_activations, **options)

    right = ops.fused_moe
    monkeypatch.setattr(ops, "fused_moe", fused_moe)
    write_checkpoint(tmp_path, dtype="bfloat16", **MOE_SHAPES["21b"])
    with load(tmp_path, quantization=quantization) as llm:
        llm.forward([[5, 6, 7]])
        assert getattr(llm.model.lm_head, "int8_activations", False) == dense
    assert asked == [experts] * 3


# ------------------------------------------------------------------------------------------ memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "quantization"),
    [
        ("huggingface", None),
        ("huggingface", "wint8"),
        ("huggingface", "wint4"),
        ("paddle", "wint4"),
        ("stacked", None),
    ],
)
def test_peak_memory_of_a_load(tmp_path, layout, quantization):
    """The weights as they stay, the largest expert and 64 MiB: 256 experts are never held twice."""
    changes = {
        "hidden_size": 512,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "moe_num_experts": 256,
        "moe_intermediate_size": 256,
        "moe_num_shared_experts": 0,
    }
    _, weights = write_checkpoint(tmp_path, dtype="bfloat16", **{**MOE_SHAPES["21b"], **changes})
    safetensors_bytes.save(tmp_path / "model.safetensors", LAYOUTS[layout](weights))
    peak, held = peak_of_load(tmp_path, quantization)
    largest = 2 * 256 * 512 * 2
    assert held <= peak <= held + largest + (64 << 20)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_bytes_are_read_once(stored, layout, monkeypatch):
    """Beside the progress bar's sum; a layer's experts in one tensor are no exception."""
    from ernie_kernels.models import ernie
    from ernie_kernels.models.loader import Checkpoint

    seen = []
    advance = Checkpoint._advance
    monkeypatch.setattr(
        Checkpoint, "_advance", lambda self, n: (seen.append(n), advance(self, n))[1]
    )
    folder = stored(lambda weights: None, layout)
    with open_checkpoint(folder) as checkpoint:
        config = load_config(folder)
        model = ernie.ErnieForCausalLM(
            config, checkpoint, device="cpu", dtype="float32", weight_dtype="float32"
        )
        assert sum(seen) == checkpoint.nbytes
    assert model.nbytes >= sum(seen)
