"""transformers' logits, as tests/golden/make_tiny_dense.py recorded them. Needs no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes

GOLDEN = Path(__file__).parent.parent / "golden" / "tiny_dense.safetensors"


def read_golden() -> tuple[dict, dict[str, np.ndarray]]:
    """The configuration and all tensors, read by hand."""
    data = GOLDEN.read_bytes()
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
def test_logits_are_those_of_transformers(tmp_path, device, dtype):
    config, tensors = read_golden()
    ids, expected = tensors.pop("golden.ids"), tensors.pop("golden.logits")
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(tmp_path / "model.safetensors", tensors)
    with ek.LLM.from_pretrained(tmp_path, device=device, dtype=dtype) as llm:
        (logits,) = llm.forward([ids.tolist()])
    scale = np.abs(expected).max() / 2
    assert np.abs(logits - expected).max() < (1e-4 if dtype == "float32" else 0.04 * scale)


def test_golden_file_is_small():
    assert GOLDEN.stat().st_size < 100 * 1024
