"""Builds safetensors files by hand, right and wrong ones, independently of the reader under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np

DTYPE_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def with_length(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def file_of(header: object, data: bytes = b"") -> bytes:
    """The file of a header given as JSON value (any, also a wrong one)."""
    return with_length(json.dumps(header, separators=(",", ":")).encode(), data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def encode(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, array in tensors.items():
        dtype = DTYPE_NAMES[array.dtype.name]
        header[name] = entry(dtype, list(array.shape), at, at + array.nbytes)
        at += array.nbytes
    return file_of(header, b"".join(array.tobytes() for array in tensors.values()))


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    path.write_bytes(encode(tensors))


def save_sharded(folder: Path, shards: dict[str, dict[str, np.ndarray]]) -> None:
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    for shard, tensors in shards.items():
        save(folder / shard, tensors)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
