"""Arguments of every op, changed in every way: a result, or an error of ours before anything is written.

A case is the name of an op and edits to its good call, [argument, kind, ...]; see EDITS.
"""

from __future__ import annotations

import functools
import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from mutation import NUMBERS, STRINGS

import ernie_kernels as ek
from op_calls import OPS

ALLOWED = (ek.Error, TypeError)
DTYPES = [
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32",
    "uint8", "bool", "complex64", ">f4", ">i4", "S3", "U2", "object", "M8[s]", "f4,u1",
]  # fmt: skip
EXTENTS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 64]
MAX_ELEMENTS = 1 << 16
GUARD = 64  # bytes before and after an array, which nothing may touch
SCALARS = {
    name: [p for p in inspect.signature(op.call).parameters if p not in op.tensors()]
    for name, op in OPS.items()
}


def seeds() -> list[Any]:
    banks = [["w_gate_up", "banks", 3, 0], ["w_down", "banks", 3, 0]]
    return [*({"op": name, "edits": []} for name in OPS), {"op": "fused_moe", "edits": banks}]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    name = case["op"]
    tensors, scalars = list(OPS[name].tensors()), SCALARS[name]
    if scalars and draw.random() < 0.25:
        value = draw.choice((draw.choice(NUMBERS), draw.choice(STRINGS), None, True, [1], {}))
        case["edits"].append([draw.choice(scalars), "value", value])
        return case
    argument, kind = draw.choice(tensors), draw.choice(list(EDITS))
    edit = [argument, kind, *(draw.choice((0, 0, 1, 1, 2, 3, 5, 8, -1)) for _ in range(2))]
    if kind == "dtype":
        edit[2] = draw.choice(DTYPES)
    elif kind == "shape":
        edit[2] = [draw.choice(EXTENTS) for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 3, 4, 6, 7)))]
    elif kind in ("put", "fill"):
        edit[3] = draw.choice(NUMBERS)
    elif kind == "value":
        edit[2] = draw.choice((draw.choice(NUMBERS), draw.choice(STRINGS), None, [], [0.0], {}))
    elif kind in ("share", "overlap"):
        edit[2] = draw.choice(tensors)
    case["edits"].append(edit)
    return case


# ---------------------------------------------------------------------- what is done to an argument


def as_dtype(array: np.ndarray, name: str, _: Any) -> np.ndarray:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    are_numbers = all(d.kind in "biuf" or d == ml_dtypes.bfloat16 for d in (dtype, array.dtype))
    return array.astype(dtype) if are_numbers else np.zeros(array.shape, dtype)


def as_shape(array: np.ndarray, shape: list[int], _: Any) -> np.ndarray:
    if math.prod(shape) > MAX_ELEMENTS:
        return array
    return np.resize(array, shape) if array.size else np.zeros(shape, array.dtype)


def longer(array: np.ndarray, dim: int, count: int) -> np.ndarray:
    if array.ndim == 0 or array.size * 9 > MAX_ELEMENTS:
        return array
    return np.repeat(array, max(count, 0), axis=dim % array.ndim)


def along(array: np.ndarray, dim: int, part: slice) -> np.ndarray:
    return array[(slice(None),) * (dim % array.ndim) + (part,)] if array.ndim else array


def every_second(array: np.ndarray, dim: int, _: Any) -> np.ndarray:
    return (
        along(np.repeat(array, 2, axis=dim % array.ndim), dim, slice(None, None, 2))
        if array.ndim
        else array
    )


def broadcast(array: np.ndarray, dim: int, count: int) -> np.ndarray:
    """The first entry of a dimension, `count` times over: stride 0, and read-only."""
    if array.ndim == 0 or array.shape[dim % array.ndim] == 0:
        return array
    shape = list(array.shape)
    shape[dim % array.ndim] = max(count, 0)
    return np.broadcast_to(along(array, dim, slice(0, 1)), shape)


def in_wider_rows(array: np.ndarray, left: int, right: int) -> np.ndarray:
    if array.ndim == 0:
        return array
    left, right = max(left, 0), max(right, 0)
    wide = np.zeros((*array.shape[:-1], left + array.shape[-1] + right), array.dtype)
    view = wide[..., left : left + array.shape[-1]]
    view[...] = array
    return view


def misaligned(array: np.ndarray, _: Any, __: Any) -> np.ndarray:
    if array.dtype.hasobject or array.nbytes == 0:
        return array
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def read_only(array: np.ndarray, _: Any, __: Any) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def filled(array: np.ndarray, at: int | None, value: float) -> np.ndarray:
    """The array with `value`, as far as its dtype can hold it, at one place or at all."""
    result = array.copy()
    try:
        if at is None:
            result[...] = value
        elif result.size:
            result.reshape(-1)[at % result.size] = value
    except (OverflowError, TypeError, ValueError):
        return array
    return result


EDITS: dict[str, Callable[[np.ndarray, Any, Any], Any]] = {
    "dtype": as_dtype,
    "shape": as_shape,
    "longer": longer,
    "shorter": lambda a, dim, count: along(a, dim, slice(0, count)),
    "reversed": lambda a, dim, _: along(a, dim, slice(None, None, -1)),
    "every second": every_second,
    "broadcast": broadcast,
    "wider rows": in_wider_rows,
    "transposed": lambda a, _, __: a.T,
    "a dimension more": lambda a, dim, _: np.expand_dims(a, 0) if dim else a[..., None],
    "a dimension less": lambda a, _, __: a[0, ...] if a.ndim and a.shape[0] else a,
    "misaligned": misaligned,
    "read-only": read_only,
    "fill": lambda a, _, value: filled(a, None, value),
    "put": filled,
    "tensor": lambda a, _, __: a,
    "pack": lambda a, _, __: a,
    "banks": lambda a, _, __: a,
    "value": lambda a, value, _: value,
    "share": lambda a, _, __: a,
    "overlap": lambda a, _, __: a,
}


def packed(array: np.ndarray, way: int) -> Any:
    """A weight as the CPU's kernels read it, in one of several ways."""
    if array.ndim != 3:
        packs = {"int8": ek.ops.wint8_pack, "uint8": ek.ops.wint4_pack}
        return packs.get(array.dtype.name, ek.ops.linear_pack)(array)
    quantization = (None, "wint8", "wint4")[way % 3]
    experts = ek.ops.expert_weights(
        *array.shape, dtype=str(array.dtype), quantization=quantization, pack=way < 4
    )
    for index, matrix in enumerate(array):
        ek.ops.expert_weights_set(experts, index, matrix)
    return experts


def in_banks(array: np.ndarray, first: int, way: int) -> list[Any]:
    """Experts in two banks, of which the first has `first`; the second may be packed."""
    if array.ndim != 3:
        return [array]
    banks = [np.ascontiguousarray(bank) for bank in np.split(array, [first])]
    return banks if way % 2 == 0 else [banks[0], packed(banks[1], way // 2)]


# ------------------------------------------------------------------------------------------ one call


class Call:
    """The arguments of a case, and what their memory holds before the call."""

    def __init__(self, case: Any) -> None:
        self.op = OPS[case["op"]]
        self.arguments: dict[str, Any] = {**self.op.tensors(), **self.op.scalars}
        self.last: dict[str, Callable[[np.ndarray], Any]] = {}  # edits that come after all others
        self.shared: dict[str, tuple[str, int]] = {}
        for argument, kind, *values in case["edits"]:
            first, second = (*values, 0, 0)[:2]
            if kind in ("share", "overlap"):
                self.shared[argument] = (first, abs(second) if kind == "overlap" else 0)
            elif kind == "tensor":
                self.last[argument] = ek.from_numpy
            elif kind == "pack":
                self.last[argument] = functools.partial(packed, way=first)
            elif kind == "banks":
                self.last[argument] = functools.partial(in_banks, first=first, way=second)
            elif kind == "value" or argument not in self.op.tensors():
                self.arguments[argument] = first
            elif isinstance(self.arguments[argument], np.ndarray):
                self.arguments[argument] = EDITS[kind](self.arguments[argument], first, second)
        self.memory: list[np.ndarray] = []
        for name, value in self.arguments.items():
            if isinstance(value, np.ndarray):
                self.arguments[name] = self.guarded(value)
        for name, (owner, offset) in self.shared.items():
            self.share(name, owner, offset)
        for name, make in self.last.items():
            if isinstance(self.arguments[name], np.ndarray):
                self.arguments[name] = make(self.arguments[name])
        self.before = [memory.tobytes() for memory in self.memory]

    def guarded(self, array: np.ndarray) -> np.ndarray:
        """A copy between guards, where the array is one that a copy is equal to."""
        if not (array.flags.c_contiguous and array.flags.writeable) or array.dtype.hasobject:
            return array
        aligned = array.ctypes.data % max(array.dtype.alignment, 1) == 0
        if not aligned or array.nbytes == 0:
            return array
        memory = np.full(array.nbytes + 2 * GUARD, 0xA5, np.uint8)
        view = memory[GUARD:-GUARD].view(array.dtype).reshape(array.shape)
        view[...] = array
        self.memory.append(memory)
        return view

    def share(self, name: str, owner: str, offset: int) -> None:
        """Puts one argument into the memory of another, where it fits, some elements further on."""
        value, other = self.arguments[name], self.arguments[owner]
        if not (isinstance(value, np.ndarray) and isinstance(other, np.ndarray)):
            return
        flat = other.reshape(-1)
        fits = value.dtype == other.dtype and offset + value.size <= flat.size
        if fits and other.flags.c_contiguous:
            self.arguments[name] = flat[offset : offset + value.size].reshape(value.shape)

    def changed(self) -> list[int]:
        return [i for i, memory in enumerate(self.memory) if memory.tobytes() != self.before[i]]

    def guards_hold(self) -> bool:
        return all((m[:GUARD] == 0xA5).all() and (m[-GUARD:] == 0xA5).all() for m in self.memory)

    def is_written(self, memory: np.ndarray) -> bool:
        return any(
            np.shares_memory(memory, self.arguments[name])
            for name in self.op.written
            if isinstance(self.arguments[name], np.ndarray)
        )


def run(case: Any) -> None:
    call = Call(case)
    try:
        call.op.call(**call.arguments)
    except ALLOWED:
        assert not call.changed(), "refused, but something was written"
        raise
    assert call.guards_hold()
    for index in call.changed():
        assert call.is_written(call.memory[index]), "an input was written"
