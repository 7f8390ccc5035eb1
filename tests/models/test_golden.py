"""transformers' logits, as the scripts in tests/golden recorded them. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes

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
        dtype = {"F32": np.float32, "I64": np.int64}[entry["dtype"]]
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


@pytest.mark.parametrize("model", MODELS)
def test_golden_file_is_small(model):
    assert (GOLDEN / f"{model}.safetensors").stat().st_size < 100 * 1024
