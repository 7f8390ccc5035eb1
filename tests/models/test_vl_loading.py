"""Vision-language checkpoints: names and shapes in every layout, read to the same matrices."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels.errors import WeightError
from ernie_kernels.models.config import load_config
from ernie_kernels.models.loader import open_checkpoint
from ernie_kernels.models.memory_plan import plan_memory
from ernie_kernels.models.weight_specs import weight_specs
from mtp_checkpoint import mtp_weights
from released_configs import ERNIE_VL_28B, ERNIE_VL_424B
from tiny_checkpoint import in_shards
from vl_checkpoint import VL_SHAPES, text_config, vl_to_paddle, vl_to_saved, write_vl_checkpoint

LAYOUTS = {"baidu": dict, "saved": vl_to_saved, "paddle": vl_to_paddle}
ROUTER = "model.layers.1.mlp.gate.weight"
TOWER_QKV = "vision_model.blocks.1.attn.qkv.weight"
RESAMPLER = "model.resampler_model.temporal_linear.0.weight"


def read_all(folder, optional=("lm_head.weight",)) -> dict[str, np.ndarray]:
    specs = weight_specs(load_config(folder))
    with open_checkpoint(folder) as checkpoint:
        checkpoint.require(specs, optional=optional)
        names = [name for name in specs if name in checkpoint]
        return {name: checkpoint.tensor(name, dtype="float32") for name in names}


def expected_of(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As layers want them: routers one expert a row."""
    return {n: a.T if ".mlp.gate.weight" in n else a for n, a in weights.items()}


@pytest.mark.parametrize("shape", VL_SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("is_nested", [False, True])
def test_every_layout_has_the_same_tensors(tmp_path, shape, layout, sharded, is_nested):
    _, weights = write_vl_checkpoint(tmp_path, shape=shape, is_nested=is_nested)
    stored = LAYOUTS[layout](weights)
    (tmp_path / "model.safetensors").unlink()
    if sharded:
        safetensors_bytes.save_sharded(tmp_path, in_shards(stored))
    else:
        safetensors_bytes.save(tmp_path / "model.safetensors", stored)
    read, expected = read_all(tmp_path), expected_of(weights)
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(read[name], array), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_square_router_lies_as_the_layout_says(tmp_path, layout):
    changes = {"moe_num_experts": [64, 64]}
    _, weights = write_vl_checkpoint(tmp_path, num_hidden_layers=2, **changes)
    safetensors_bytes.save(tmp_path / "model.safetensors", LAYOUTS[layout](weights))
    read = read_all(tmp_path)
    for name in (ROUTER, f"{ROUTER}_1"):
        assert np.array_equal(read[name], weights[name].T)


def test_a_router_that_is_stored_as_in_text_models_is_read(tmp_path):
    _, weights = write_vl_checkpoint(tmp_path)
    turned = {n: a.T.copy() if ".mlp.gate.weight" in n else a for n, a in weights.items()}
    safetensors_bytes.save(tmp_path / "model.safetensors", turned)
    assert np.array_equal(read_all(tmp_path)[f"{ROUTER}_1"], weights[f"{ROUTER}_1"].T)


def test_names_and_shapes_of_released_models(tmp_path):
    """11,105 tensors of the 28B."""
    tower_and_resampler = 3 + 12 * 32 + 15
    for values, moe, dense, shared in ((ERNIE_VL_28B, 27, 1, 3), (ERNIE_VL_424B, 51, 3, 0)):
        (tmp_path / "config.json").write_text(json.dumps(values))
        config = load_config(tmp_path)
        specs = weight_specs(config)
        count = len(specs) - config.tie_word_embeddings
        text = moe * (3 * 128 + 2 + 1 + shared + 6) + dense * 9 + 2
        assert count == text + tower_and_resampler + (not config.tie_word_embeddings)
        if values is ERNIE_VL_28B:
            assert count == 11105
            assert specs["model.layers.9.mlp.experts.63.up_proj.weight"].shape == (1536, 2560)
            assert specs["model.layers.9.mlp.experts.64.up_proj.weight"].shape == (512, 2560)
            assert specs["model.resampler_model.mlp.weight"].shape == (2560, 5120)
    assert specs["model.layers.3.mlp.experts.127.down_proj.weight"].shape == (8192, 1536)
    assert specs["vision_model.blocks.31.attn.qkv.weight"].shape == (3840, 1280)
    assert specs[RESAMPLER].shape == (5120, 10240)


# ------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name",
    [
        f"{ROUTER}_1",
        TOWER_QKV,
        "vision_model.ln.bias",
        RESAMPLER,
        "model.resampler_model.after_norm.weight",
        "model.layers.1.mlp.experts.15.down_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, layout, name):
    _, weights = write_vl_checkpoint(tmp_path)
    (stored,) = LAYOUTS[layout]({name: weights[name]})
    changed = LAYOUTS[layout](weights)
    del changed[stored]
    safetensors_bytes.save(tmp_path / "model.safetensors", changed)
    expected = name if layout == "saved" else stored
    with pytest.raises(WeightError, match=f"1 tensors missing: '{expected}'"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{ROUTER}_1", (64, 7), r"shape \[64, 7\], expected \[64, 8\] from moe_num_experts"),
        (
            "model.layers.1.mlp.moe_statics.e_score_correction_bias",
            (1, 8),
            r"shape \[1, 8\], expected \[2, 8\]",
        ),
        (
            "model.layers.1.mlp.experts.8.up_proj.weight",
            (24, 64),
            r"shape \[24, 64\], expected \[16, 64\] from moe_intermediate_size",
        ),
        (TOWER_QKV, (64, 32), r"expected \[96, 32\] from vision_config.hidden_size"),
        (RESAMPLER, (128, 128), r"expected \[128, 256\] from vision_config.hidden_size"),
    ],
)
def test_a_wrong_shape_is_told_with_its_keys(tmp_path, name, shape, message):
    _, weights = write_vl_checkpoint(tmp_path)
    weights[name] = np.zeros(shape, np.float32)
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    with pytest.raises(WeightError, match=message):
        read_all(tmp_path)


def test_a_tower_under_both_names_is_refused(tmp_path):
    _, weights = write_vl_checkpoint(tmp_path)
    weights[f"model.{TOWER_QKV}"] = weights[TOWER_QKV]
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    with pytest.raises(WeightError, match=rf"1 tensors unexpected: 'model.{TOWER_QKV}'"):
        read_all(tmp_path)


# ------------------------------------------------------------------------------------ in memory


@pytest.mark.parametrize("quantization", [None, "wint8", "wint4", "w8a8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", VL_SHAPES)
def test_plan_is_what_the_loader_allocates(tmp_path, device, shape, dtype, quantization):
    """Vision tower and resampler are kept as they are stored."""
    if device != "cpu" and quantization == "w8a8":
        pytest.skip("int8 activations are for the CPU")
    write_vl_checkpoint(tmp_path, dtype="bfloat16", shape=shape)
    options = {"device": device, "dtype": dtype, "quantization": quantization}
    with ek.LLM.from_pretrained(tmp_path, max_model_len=64, **options) as llm:
        plan = plan_memory(llm.config, **options)
        assert plan.weight_bytes == llm.stats()["weight_bytes"]
        assert len(llm.forward([[1, 2, 3]])[0]) == 3


@pytest.mark.oracle
def test_files_of_transformers(tmp_path):
    """Names and shapes as it writes them today."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    _, weights = write_vl_checkpoint(tmp_path / "ours", is_nested=True)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    model = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        tmp_path / "ours", config=config, dtype=torch.float32
    )
    model.save_pretrained(tmp_path / "theirs")
    read, expected = read_all(tmp_path / "theirs"), expected_of(weights)
    assert read.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(read[name], array), name


def test_a_prediction_module_beside_is_left_alone(tmp_path):
    """None is known in a released file; answers do not depend on it."""
    one, other = tmp_path / "one", tmp_path / "other"
    config, weights = write_vl_checkpoint(one)
    write_vl_checkpoint(other, num_nextn_predict_layers=1)
    module = mtp_weights(text_config(config), "float32")
    safetensors_bytes.save(other / "model.safetensors", weights | module)
    answers = []
    for folder in (one, other):
        with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=64) as llm:
            (answer,) = llm.generate(
                prompt_token_ids=[[5, 7, 11]], params=ek.SamplingParams(max_tokens=6)
            )
        answers.append(answer.outputs[0].token_ids)
    assert answers[0] == answers[1]
