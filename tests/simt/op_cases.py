"""Calls of every op with a CUDA backend, small enough for the SIMT machine, and tensors on streams."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import _core, ops
from op_calls import OPS

from reference import PagedBatch

BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Case:
    call: Callable[..., Any]
    arrays: Callable[[], dict[str, np.ndarray]]
    scalars: dict[str, Any]
    written: frozenset[str]
    allocates: bool = False
    """Its wrapper takes a workspace, or the table of rope, from the stream's pool."""

    def tensors(self) -> dict[str, ek.Tensor]:
        """The arrays on the GPU."""
        return {name: ek.from_numpy(array, "cuda") for name, array in self.arrays().items()}

    def run(self, tensors: dict[str, Any]) -> None:
        self.call(**tensors, **self.scalars)

    def bits(self, tensors: dict[str, ek.Tensor]) -> dict[str, bytes]:
        """What the op has written."""
        return {name: tensors[name].numpy().tobytes() for name in sorted(self.written)}


def _filled(make: Callable[[], dict[str, np.ndarray]]) -> Callable[[], dict[str, np.ndarray]]:
    """The same with numbers that every float argument takes, a probability too."""

    def arrays() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(3)
        return {
            name: rng.uniform(0.1, 0.9, array.shape).astype(array.dtype)
            if array.dtype == np.float32
            else array
            for name, array in make().items()
        }

    return arrays


def _bfloat16(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).uniform(-1, 1, shape).astype(BF16)


def _linear_arrays(rows: int, out_features: int, in_features: int) -> dict[str, np.ndarray]:
    return {
        "x": _bfloat16(rows, in_features),
        "weight": _bfloat16(out_features, in_features),
        "out": _bfloat16(rows, out_features),
    }


def _sort_arrays() -> dict[str, np.ndarray]:
    return {
        "topk_ids": np.random.default_rng(6).integers(0, 600, (9, 3)).astype(np.int32),
        "expert_offsets": np.zeros(601, np.int64),
        "inverse": np.zeros((9, 3), np.int32),
        "source_rows": np.zeros(27, np.int32),
    }


def _route_arrays() -> dict[str, np.ndarray]:
    """As many experts as ask for more shared memory than comes without permission."""
    return {
        "router_logits": np.random.default_rng(7).uniform(-1, 1, (2, 4096)).astype(np.float32),
        "correction_bias": np.zeros(4096, np.float32),
        "flags": np.zeros(2, np.uint8),
        "topk_weights": np.zeros((2, 3), np.float32),
        "topk_ids": np.zeros((2, 3), np.int32),
    }


def _attention_case(lengths: list[tuple[int, int]], *, head_dim: int, allocates: bool) -> Case:
    batch = PagedBatch(
        np.random.default_rng(5), lengths, num_heads=2, num_kv_heads=1, head_dim=head_dim,
        block_size=64, dtype=BF16,
    )  # fmt: skip
    scalars = {"max_seqlen_q": batch.max_seqlen_q, "max_seq_len": batch.max_seq_len}
    names = ("query", "k_cache", "v_cache", "cu_seqlens_q", "seq_lens", "block_table")

    def arrays() -> dict[str, np.ndarray]:
        return {name: getattr(batch, name) for name in names} | {
            "out": _bfloat16(*batch.query.shape)
        }

    return Case(ops.attention, arrays, scalars, frozenset({"out"}), allocates)


CPU_ONLY = {
    "linear_pack",
    "wint4_quantize and pack",
    "wint4_pack",
    "wint8_linear with int8 activations",
    "wint8_quantize and pack",
    "wint8_pack",
}
# What allocates its results; below, the same into tensors at hand.
ALLOCATING = {"wint4_quantize", "wint8_quantize"}
CASES = {
    name: Case(op.call, _filled(op.tensors), op.scalars, op.written, allocates=name == "rope")
    for name, op in OPS.items()
    if name not in CPU_ONLY | ALLOCATING
}
for quantize, dtype, columns in (
    (_core.wint4_quantize, np.uint8, 9),
    (_core.wint8_quantize, np.int8, 17),
):
    CASES[f"{quantize.__name__} of bfloat16"] = Case(
        quantize,
        lambda dtype=dtype, columns=columns: {
            "out": np.zeros((20, columns), dtype),
            "scale": np.zeros(20, np.float32),
            "weight": _bfloat16(20, 17),
        },
        {},
        frozenset({"out", "scale"}),
    )
# Kernels for bfloat16, one with much shared memory; and attention in two launches with a workspace.
CASES["linear of tiles"] = Case(
    ops.linear, lambda: _linear_arrays(72, 16, 32), {}, frozenset({"out"})
)
CASES["wint8_linear of bfloat16"] = Case(
    ops.wint8_linear,
    lambda: (
        _linear_arrays(40, 16, 32)
        | {
            "weight": np.arange(512, dtype=np.uint16).astype(np.int8).reshape(16, 32),
            "scale": np.full(16, 0.01, np.float32),
        }
    ),
    {},
    frozenset({"out"}),
)
CASES["wint4_linear of bfloat16"] = Case(
    ops.wint4_linear,
    lambda: (
        _linear_arrays(40, 16, 32)
        | {
            "weight": np.arange(256, dtype=np.uint16).astype(np.uint8).reshape(16, 16),
            "scale": np.full(16, 0.01, np.float32),
        }
    ),
    {},
    frozenset({"out"}),
)
CASES["moe_sort in tiles"] = Case(
    ops.moe_sort, _sort_arrays, {"num_experts": 600},
    frozenset({"expert_offsets", "inverse", "source_rows"}), allocates=True,
)  # fmt: skip
CASES["moe_route of many experts"] = Case(
    ops.moe_route, _route_arrays, {"top_k": 3}, frozenset({"flags", "topk_weights", "topk_ids"})
)
CASES["attention of a prompt"] = _attention_case([(70, 70)], head_dim=128, allocates=False)
CASES["attention in splits"] = _attention_case([(1, 600)], head_dim=32, allocates=True)


# ------------------------------------------------------------------------------------- streams


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class OnStream:
    """A tensor as an array library would hand it over: ready on that library's current stream."""

    current_stream = 0

    def __init__(self, tensor: ek.Tensor, device_index: int = 0) -> None:
        self.tensor = tensor
        self.shape = tensor.shape
        self.device_index = device_index
        self._capsule = tensor.__dlpack__(max_version=(1, 1), stream=-1)

    def describe(self, out: Any) -> int:
        address = ctypes.pythonapi.PyCapsule_GetPointer
        address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        managed = address(self._capsule, b"dltensor_versioned")
        ctypes.memmove(out, managed + 32, ctypes.sizeof(DLTensor))
        out[0].device_id = self.device_index
        return 0


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
def _dltensor(source: OnStream, out: Any) -> int:
    return source.describe(out)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
def _current_stream(device_type: int, device_id: int, out: Any) -> int:
    out[0] = OnStream.current_stream
    return 0


class _ExchangeTable(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("unused", ctypes.c_void_p * 4),
        ("dltensor_from_py_object_no_sync", type(_dltensor)),
        ("current_work_stream", type(_current_stream)),
    )


_TABLE = _ExchangeTable(
    major=1, minor=3, dltensor_from_py_object_no_sync=_dltensor, current_work_stream=_current_stream
)
_NAME = b"dlpack_exchange_api"  # a capsule keeps the address alone
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
OnStream.__dlpack_c_exchange_api__ = _new_capsule(ctypes.addressof(_TABLE), _NAME, None)
