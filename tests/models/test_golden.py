"""transformers' logits, as the scripts in tests/golden recorded them. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels.vision.settings import VisionSettings

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = ["tiny_dense", "tiny_moe"]


def read_golden(model: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The configuration and all tensors, read by hand."""
    data = (GOLDEN / f"{model}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header.pop("__metadata__")["config"])
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        dtype = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}[entry["dtype"]]
        tensors[name] = np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])
    return config, tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_transformers(tmp_path, device, model, dtype):
    config, tensors = read_golden(model)
    ids, expected = tensors.pop("golden.ids"), tensors.pop("golden.logits")
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(tmp_path / "model.safetensors", tensors)
    with ek.LLM.from_pretrained(tmp_path, device=device, dtype=dtype) as llm:
        (logits,) = llm.forward([ids.tolist()])
    difference = np.abs(logits - expected)
    if dtype == "float32":
        assert difference.max() < 1e-4
        return
    # On average: what bfloat16 makes of nearly equal scores of a router changes a token's experts.
    scale = np.abs(expected).max() / 2
    assert difference.mean() < 0.01 * scale
    if config["model_type"] == "ernie4_5":
        assert difference.max() < 0.04 * scale


@pytest.fixture
def vision_language(tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder with the model, and what was recorded."""
    config, tensors = read_golden("tiny_vl")
    recorded = {
        name.removeprefix("golden."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("golden.")
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(tmp_path / "model.safetensors", tensors)
    return tmp_path, recorded


def media_of(recorded: dict[str, np.ndarray]) -> dict:
    """Arguments of ``LLM.forward``. Patches as their levels say."""
    levels = VisionSettings().levels().astype(np.float64)
    arguments = {
        "mm_token_type_ids": [recorded["types"]],
        "moe_mm_token_type_ids": [recorded["banks"]],
    }
    for name, values in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        pixels = recorded[f"{name}_levels"].reshape(-1, 3, 196)
        patches = np.stack([levels[c][pixels[:, c]] for c in range(3)], axis=1)
        arguments[values] = patches.reshape(-1, 588).astype(np.float32)
        arguments[f"{name}_grid_thw"] = recorded[f"{name}_grid_thw"]
    return arguments


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["baidu", "transformers"])
def test_images_and_video_are_those_of_transformers(vision_language, device, rule, dtype):
    folder, recorded = vision_language
    expected = recorded[f"logits_{rule}"]
    with ek.LLM.from_pretrained(folder, device=device, dtype=dtype) as llm:
        ids = recorded["ids"].tolist()
        (logits,) = llm.forward([ids], **media_of(recorded), position_rule=rule)
        (text,) = llm.forward([ids[:3]])
    tolerance = 1e-4 if dtype == "float32" else 0.1
    assert np.abs(logits - expected).mean() < tolerance / 4
    assert np.abs(text - recorded["logits_text"]).max() < tolerance
    if dtype == "float32":
        assert np.abs(logits - expected).max() < tolerance
    # Positions that the rules place elsewhere are seen in the logits.
    other = recorded["logits_transformers" if rule == "baidu" else "logits_baidu"]
    assert np.abs(other - expected).max() > 1e-3


@pytest.mark.parametrize("model", [*MODELS, "tiny_vl"])
def test_golden_file_is_small(model):
    assert (GOLDEN / f"{model}.safetensors").stat().st_size < 100 * 1024
