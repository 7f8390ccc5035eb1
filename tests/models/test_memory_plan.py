"""Memory plans: the figures of the released models, and byte for byte what a load allocates."""

import json
from dataclasses import fields, is_dataclass

import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import _core
from ernie_kernels.models.config import load_config
from ernie_kernels.models.ernie_vl import PATCHES_PER_PIECE
from ernie_kernels.models.media_positions import patch_positions
from ernie_kernels.models.memory_plan import (
    ITEMSIZES,
    LOADING_BYTES,
    kv_bytes_per_token,
    plan_memory,
    workspace_nbytes,
)
from ernie_kernels.models.model_weights import count_parameters, weights_of
from ernie_kernels.models.quantization import QUANTIZATIONS, Quantization
from ernie_kernels.models.vision_memory import most_patches, tower_nbytes
from ernie_kernels.models.vision_tower import MLP_ROWS, FrameBatch, TowerBuffers
from ernie_kernels.models.workspace import Workspace
from ernie_kernels.runner.capacity import available_memory_for_cache
from ernie_kernels.runner.model_runner import kv_cache_bytes_per_block
from ernie_kernels.vision.settings import VisionSettings
from mtp_checkpoint import write_mtp_checkpoint
from released_configs import ERNIE_0_3B, ERNIE_21B, ERNIE_300B, ERNIE_VL_28B, ERNIE_VL_424B
from tiny_checkpoint import MOE_SHAPES, write_checkpoint
from vl_checkpoint import write_vl_checkpoint

RELEASED = {
    "0.3B": ERNIE_0_3B,
    "21B": ERNIE_21B,
    "300B": ERNIE_300B,
    "VL-28B": ERNIE_VL_28B,
    "VL-424B": ERNIE_VL_424B,
}

ALL_WINT4 = {"dense_quant_type": "wint4", "moe_quant_type": "wint4"}


def config_of(folder, values):
    (folder / "config.json").write_text(json.dumps(values))
    return load_config(folder)


@pytest.mark.parametrize(
    ("model", "tied", "total", "active"),
    [
        ("0.3B", True, 0.361e9, 0.361e9),
        ("21B", True, 21.825e9, 3.35e9),
        ("300B", False, 299.5e9, 47.9e9),
        ("300B", True, 298.6e9, 47.1e9),
        ("VL-28B", True, 29.40e9, 3.35e9),
        ("VL-424B", False, 423.5e9, 47.9e9),
        ("VL-424B", True, 422.7e9, 47.1e9),
    ],
)
def test_parameters_of_released_models(tmp_path, model, tied, total, active):
    config = config_of(tmp_path, {**RELEASED[model], "tie_word_embeddings": tied})
    count = count_parameters(config)
    assert count.total == pytest.approx(total, rel=2e-3)
    assert count.active == pytest.approx(active, rel=2e-3)


def test_parameters_exactly(tmp_path):
    """The dense one, written out."""
    layer = 1024 * (2048 + 2 * 256) + 2048 * 1024 + 3 * 1024 * 3072 + 2 * 1024
    expected = 103424 * 1024 + 18 * layer + 1024
    count = count_parameters(config_of(tmp_path, ERNIE_0_3B))
    assert (count.total, count.active) == (expected, expected)


@pytest.mark.parametrize("model", ["VL-28B", "VL-424B"])
def test_parameters_of_vision(tmp_path, model):
    """Tower and resampler, written out; a token of text goes through none of them."""
    config = config_of(tmp_path, RELEASED[model])
    attention, mlp, norms = 4 * 1280**2 + 4 * 1280, 2 * 1280 * 5120 + 1280 + 5120, 4 * 1280
    tower = 588 * 1280 + 32 * (attention + mlp + norms) + 2 * 1280
    merging = [5120 * 5120 + 5120, 2 * 5120 * 5120 + 5120]
    resampler = sum(merging) + 2 * (5120 * 5120 + 5120) + 4 * 5120
    resampler += 5120 * config.hidden_size + 2 * config.hidden_size
    assert count_parameters(config).vision == tower + resampler
    if model == "VL-28B":
        assert tower + resampler == pytest.approx(0.775e9, rel=2e-3)
    of_text = [w for w in weights_of(config) if w.active]
    without = sum(w.active * w.size for w in of_text)
    assert count_parameters(config).active == without


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("0.3B", 9216),
        ("21B", 28672),
        ("300B", 110592),
        ("VL-28B", 28672),
        ("VL-424B", 110592),
    ],
)
def test_cache_of_released_models(tmp_path, model, values):
    config = config_of(tmp_path, RELEASED[model])
    for dtype, itemsize in (("bfloat16", 2), ("float32", 4)):
        assert kv_bytes_per_token(config, dtype) == values * itemsize
        assert kv_cache_bytes_per_block(config, 32, dtype) == 32 * values * itemsize


@pytest.mark.parametrize("model", RELEASED)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_released_models_without_padding(tmp_path, model, device):
    """Their sizes are multiples of all panels: bytes are parameters times width, plus scales."""
    config = config_of(tmp_path, RELEASED[model])
    weights = list(weights_of(config))

    def total(kinds, size=lambda weight: weight.size):
        return sum(w.count * size(w) for w in weights if w.kind in kinds)

    matrices, exact = ("projection", "expert"), ("embedding", "norm", "bias", "vision")
    scales = 4 * total(matrices, lambda weight: weight.out_features)
    expected = {
        None: 2 * total((*matrices, *exact)),
        "wint8": total(matrices) + scales + 2 * total(exact),
        "wint4": total(["projection"]) + total(["expert"]) // 2 + scales + 2 * total(exact),
        "wint4-all": total(matrices) // 2 + scales + 2 * total(exact),
    }
    for name, nbytes in expected.items():
        quantization = ALL_WINT4 if name == "wint4-all" else name
        plan = plan_memory(config, quantization=quantization, device=device)
        assert plan.weight_bytes == nbytes + 4 * total(["router"])
        assert plan.read_bytes_per_token <= plan.weight_bytes


def test_how_a_21b_fits_a_machine_of_16_gb(tmp_path):
    plans = {
        each: plan_memory(config_of(tmp_path, ERNIE_21B), quantization=each)
        for each in (None, *QUANTIZATIONS)
    }
    assert plans[None].weight_bytes == pytest.approx(43.66e9, rel=1e-3)
    assert plans["wint8"].weight_bytes == plans["w8a8"].weight_bytes
    assert plans["wint4"].host_peak_bytes < 13e9
    assert plans["wint8"].host_peak_bytes > 21e9
    # Of 64 experts a token reads 6, at half a byte a weight; of the rest all, at a byte.
    experts = 27 * 6 * 3 * 2560 * 1536
    expected = experts / 2 + (3.35e9 - experts)
    assert plans["wint4"].read_bytes_per_token == pytest.approx(expected, rel=0.02)
    everything = plan_memory(config_of(tmp_path, ERNIE_21B), quantization=ALL_WINT4)
    assert everything.read_bytes_per_token == pytest.approx(3.35e9 / 2, rel=0.02)
    assert everything.quantization == "dense wint4 and experts wint4"


# ------------------------------------------------------------------------------ beside the loader


def kinds_of(quantization) -> tuple[str | None, str | None]:
    found = Quantization.of(quantization)
    return found.dense, found.experts


SHAPES = {
    "tied": {},
    "untied_bias": {"tie_word_embeddings": False, "use_bias": True, "num_key_value_heads": 4},
    "odd_sizes": {
        "vocab_size": 101,
        "hidden_size": 37,
        "intermediate_size": 53,
        "num_key_value_heads": 1,
        "head_dim": 10,
    },
    **MOE_SHAPES,
    "odd_experts": {
        **MOE_SHAPES["21b"],
        "hidden_size": 34,  # of 4-bit panels 40, of others 36 or less
        "num_key_value_heads": 1,
        "head_dim": 6,
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 13,
        "moe_layer_interval": 2,
    },
}


@pytest.mark.parametrize(
    "quantization",
    [None, *QUANTIZATIONS, ALL_WINT4, {"dense_quant_type": "wint4"}, {"moe_quant_type": "wint8"}],
    ids=str,
)
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_plan_is_what_the_loader_allocates(tmp_path, device, shape, dtype, stored, quantization):
    if device != "cpu" and "w8a8" in kinds_of(quantization):
        pytest.skip("int8 activations are for the CPU")
    if device != "cpu" and kinds_of(quantization)[0] == "wint4":
        pytest.skip("dense matrices of 4 bits are for the CPU")
    dense, experts = kinds_of(quantization)
    if experts not in (None, dense) and "moe_k" not in SHAPES[shape]:
        pytest.skip("only experts are rounded so")
    write_checkpoint(tmp_path, dtype=stored, **SHAPES[shape])
    with ek.LLM.from_pretrained(
        tmp_path, device=device, dtype=dtype, quantization=quantization, max_model_len=64
    ) as llm:
        plan = plan_memory(
            llm.config,
            quantization=quantization,
            weight_dtype=llm.weight_dtype,
            dtype=llm.dtype,
            device=device,
        )
        assert plan.weight_bytes == llm.stats()["weight_bytes"]


@pytest.mark.parametrize("quantization", [None, "wint4"])
def test_a_prediction_module_takes_what_is_planned(tmp_path, device, quantization):
    write_mtp_checkpoint(tmp_path, dtype="bfloat16", **MOE_SHAPES["21b"])
    with ek.LLM.from_pretrained(
        tmp_path,
        device=device,
        quantization=quantization,
        speculative_config={"method": "mtp", "num_speculative_tokens": 1},
        max_model_len=64,
    ) as llm:
        with_it, without = (
            plan_memory(llm.config, quantization=quantization, device=device, with_mtp=with_mtp)
            for with_mtp in (True, False)
        )
        assert with_it.mtp_weight_bytes == llm.model.mtp_nbytes > 0
        assert with_it.weight_bytes == llm.stats()["weight_bytes"]
        assert with_it.weight_bytes == without.weight_bytes + with_it.mtp_weight_bytes
        assert with_it.read_bytes_per_token == without.read_bytes_per_token
        runner = llm._engine._runner
        caches = [*runner._kv_caches, runner._drafter.kv_cache]
        held = sum(cache.k_cache.nbytes + cache.v_cache.nbytes for cache in caches)
        stats = llm.stats()
        assert held == stats["kv_cache_bytes"]
        tokens = stats["num_blocks"] * stats["block_size"]
        assert held == tokens * with_it.kv_bytes_per_token
        assert with_it.kv_bytes_per_token > without.kv_bytes_per_token
        workspace = nbytes_of(runner._workspace)
        assert workspace == without.workspace_bytes
        assert workspace + runner._drafter._joined.nbytes == with_it.workspace_bytes


@pytest.mark.parametrize("quantization", [None, "wint4"])
@pytest.mark.parametrize("has_head", [False, True])
def test_the_cache_leaves_room_for_the_weights_as_they_will_be(
    tmp_path, monkeypatch, device, quantization, has_head
):
    """Not as they are stored, which is up to four times as much."""
    _, weights = write_checkpoint(tmp_path, dtype="bfloat16", **MOE_SHAPES["21b"])
    if has_head:  # beside a configuration that says it is tied
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1].copy()
        safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    asked = []

    def remembered(device, weight_bytes):
        asked.append((device, weight_bytes))
        return available_memory_for_cache(device, weight_bytes)

    monkeypatch.setattr("ernie_kernels.load_model.available_memory_for_cache", remembered)
    with ek.LLM.from_pretrained(tmp_path, device=device, quantization=quantization) as llm:
        assert asked == [(llm.device, llm.stats()["weight_bytes"])]


def test_prediction_module(tmp_path):
    """Two norms and a projection before a dense layer of the model."""
    hidden, attention = 2560, 2560 * (20 + 2 * 4 + 20) * 128
    expected = 2 * hidden**2 + attention + 3 * hidden * 12288 + 4 * hidden
    with_one = plan_memory(config_of(tmp_path, ERNIE_21B))
    assert with_one.mtp_weight_bytes == 2 * expected
    without = plan_memory(config_of(tmp_path, {**ERNIE_21B, "num_nextn_predict_layers": 0}))
    assert without.mtp_weight_bytes == 0
    assert without.weight_bytes == with_one.weight_bytes


def test_host_peak(tmp_path):
    config = config_of(tmp_path, ERNIE_0_3B)
    table = 103424 * 1024
    on_cpu = plan_memory(config)
    assert on_cpu.host_peak_bytes == on_cpu.weight_bytes + 2 * table + LOADING_BYTES
    on_gpu = plan_memory(config, device="cuda")
    assert on_gpu.host_peak_bytes == 2 * table + LOADING_BYTES
    rounded = plan_memory(config, quantization="wint8", device="cuda")
    assert rounded.host_peak_bytes == 3 * table + 4 * 103424 + LOADING_BYTES


def tensors_in(buffers) -> list[ek.Tensor]:
    if isinstance(buffers, ek.Tensor):
        return [buffers]
    parts = (
        [getattr(buffers, each.name) for each in fields(buffers)] if is_dataclass(buffers) else []
    )
    return [tensor for part in parts for tensor in tensors_in(part)]


def nbytes_of(workspace: Workspace) -> int:
    owned = {name: value for name, value in vars(workspace).items() if name != "_last"}
    tensors = [tensor for value in owned.values() for tensor in tensors_in(value)]
    assert len(tensors) >= 6
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("expert_dtype", ["bfloat16", "float32", "int8", "uint8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model", RELEASED)
def test_workspace(tmp_path, device, model, dtype, expert_dtype):
    config = config_of(tmp_path, RELEASED[model])
    workspace = Workspace(config, 33, dtype, device, expert_dtype=expert_dtype)
    expected = workspace_nbytes(config, 33, dtype, device, expert_dtype=expert_dtype)
    assert nbytes_of(workspace) == expected


@pytest.mark.parametrize(
    "quantization", [None, *QUANTIZATIONS, ALL_WINT4, {"moe_quant_type": "wint8"}], ids=str
)
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_workspace_is_what_the_experts_ask_for(tmp_path, device, dtype, stored, quantization):
    """Of the tensors that they are, for a whole step and for less."""
    if device != "cpu" and ("w8a8" in kinds_of(quantization) or quantization == ALL_WINT4):
        pytest.skip("for the CPU")
    write_checkpoint(tmp_path, dtype=stored, **MOE_SHAPES["21b"])
    with ek.LLM.from_pretrained(
        tmp_path, device=device, dtype=dtype, quantization=quantization, max_model_len=64
    ) as llm:
        plan = plan_memory(
            llm.config,
            quantization=quantization,
            weight_dtype=llm.weight_dtype,
            dtype=llm.dtype,
            device=device,
        )
        workspace = llm._engine._runner._workspace
        assert nbytes_of(workspace) == plan.workspace_bytes
        experts = llm.model.model.layers[-1].mlp
        for num_tokens in (1, 60, workspace.max_tokens):
            buffers = workspace.rows(num_tokens)
            banks = (
                [[each.weight, each.scale, each.out_features, each.in_features]]
                for each in (experts.gate_up_proj, experts.down_proj)
            )
            wanted = _core.fused_moe_workspace(
                buffers.hidden_states, buffers.of_experts.topk_ids, *banks
            )
            assert len(wanted) <= len(buffers.of_experts.workspace)
        assert len(wanted) == len(buffers.of_experts.workspace)
        llm.forward([list(range(5, 65))])


def test_only_experts_that_are_not_rounded_want_room_for_their_products(tmp_path, device):
    """On a GPU, whose kernels of large bfloat16 products neither gather nor gate."""
    config = config_of(tmp_path, ERNIE_21B)
    with_room, *without = (
        plan_memory(
            config, quantization=each, device=device, max_tokens_per_step=2048
        ).workspace_bytes
        for each in (None, "wint8", "wint4")
    )
    assert without[0] == without[1]
    assert (with_room > without[0]) == (device == "cuda")


# ------------------------------------------------------------------------------ images and videos


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("num_patches", [96, MLP_ROWS + 4])
def test_the_tower_takes_what_is_planned(tmp_path, device, dtype, num_patches):
    vision = config_of(tmp_path, ERNIE_VL_28B).vision
    buffers = TowerBuffers.make(vision, num_patches, dtype, device)
    frames = FrameBatch.of([(1, 2, num_patches // 2)], vision, device)
    positions = patch_positions([(1, 2, num_patches // 2)])
    planned = tower_nbytes(vision, ITEMSIZES[dtype], num_patches)
    held = sum(tensor.nbytes for tensor in tensors_in(buffers))
    assert held + frames.table.nbytes + positions.nbytes == planned


def test_largest_images():
    """The tower runs one image, two frames, or several that are small."""
    assert most_patches(VisionSettings()) == 6177 * 4
    frames = {"image_min_pixels": 784, "image_max_pixels": 784}
    assert most_patches(VisionSettings(**frames)) == 2 * 1196 * 4
    small = VisionSettings(**frames, video_min_pixels=784, video_max_pixels=784)
    assert most_patches(small) == PATCHES_PER_PIECE


def test_images_of_released_models(tmp_path):
    planned = {
        model: plan_memory(config_of(tmp_path, RELEASED[model])).visual_bytes for model in RELEASED
    }
    assert planned["21B"] == planned["0.3B"] == 0
    patches = 6177 * 4
    tower = patches * (6 * 1280 * 2 + 80 * 4 + 16 + 588) + 1024 * 5120 * 2
    for model, hidden_size in (("VL-28B", 2560), ("VL-424B", 8192)):
        features = 3 * patches // 4 * hidden_size * 2
        assert planned[model] == tower + features + (128 << 20)


def test_the_cache_leaves_room_for_images(tmp_path, monkeypatch):
    write_vl_checkpoint(tmp_path)
    asked = []

    def remembered(device, other_bytes):
        asked.append(other_bytes)
        return available_memory_for_cache(device, other_bytes)

    monkeypatch.setattr("ernie_kernels.load_model.available_memory_for_cache", remembered)
    for pixels in (784, 10**7):
        options = {"image_max_pixels": pixels, "image_min_pixels": 784}
        with ek.LLM.from_pretrained(
            tmp_path, device="cpu", max_model_len=64, mm_processor_kwargs=options
        ) as llm:
            settings = VisionSettings(**options)
            plan = plan_memory(
                llm.config, weight_dtype="float32", dtype="float32", settings=settings
            )
            assert asked[-1] == llm.stats()["weight_bytes"] + plan.visual_bytes
    assert asked[0] < asked[1]
