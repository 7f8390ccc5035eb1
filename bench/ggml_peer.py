"""ggml's matrix product as a peer: the kernels of llama.cpp, called on plain arrays.

Found in an installed ``llama-cpp-python`` (``pip install llama-cpp-python`` builds it for this CPU);
the package itself is not imported, only its libraries ``ggml-base`` and ``ggml-cpu`` are loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

F32, Q4_0, Q8_0, I32, BF16 = 0, 2, 8, 26, 30  # enum ggml_type


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool))  # fmt: skip


class _Plan(ctypes.Structure):
    # ggml_cplan; room to spare, as later versions append fields.
    _fields_ = (("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p),
                ("n_threads", ctypes.c_int), ("rest", ctypes.c_uint64 * 8))  # fmt: skip


def _folder() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "lib" if places else None


def has_ggml() -> bool:
    folder = _folder()
    return folder is not None and (folder / "libggml-cpu.so").exists()


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    folder = _folder()
    assert folder is not None
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_new_tensor_3d", pointer, [pointer, ctypes.c_int, *[ctypes.c_int64] * 3]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_mul_mat_id", pointer, [pointer, pointer, pointer, pointer]),
        ("ggml_silu", pointer, [pointer, pointer]),
        ("ggml_mul", pointer, [pointer, pointer, pointer]),
        ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_free", None, [pointer]),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, arguments
    cpu.ggml_cpu_init()
    cpu.ggml_graph_plan.restype = _Plan
    cpu.ggml_graph_plan.argtypes = [pointer, ctypes.c_int, pointer]
    cpu.ggml_graph_compute.restype = ctypes.c_int
    cpu.ggml_graph_compute.argtypes = [pointer, ctypes.POINTER(_Plan)]
    return base, cpu


def as_q8_0(weight: np.ndarray) -> np.ndarray:
    """Blocks of 32 columns: a float16 scale, then 32 int8 values."""
    blocks = weight.astype(np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    values = np.rint(blocks / np.where(scale == 0, 1, scale)).astype(np.int8)
    joined = np.empty(len(blocks), np.dtype([("scale", np.float16), ("values", np.int8, 32)]))
    joined["scale"], joined["values"] = scale[:, 0], values
    return joined


def as_q4_0(weight: np.ndarray) -> np.ndarray:
    """Blocks of 32 columns: a float16 scale, then 4 bits each, the first 16 in the low halves."""
    blocks = weight.astype(np.float32).reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / -8
    values = np.clip(np.rint(blocks / np.where(scale == 0, 1, scale)) + 8, 0, 15).astype(np.uint8)
    joined = np.empty(len(blocks), np.dtype([("scale", np.float16), ("values", np.uint8, 16)]))
    joined["scale"], joined["values"] = scale[:, 0], values[:, :16] | values[:, 16:] << 4
    return joined


class GgmlLinear:
    """``x @ weight.T`` for float32 ``x`` and a weight ``[out_features, in_features]``.

    ``kind`` is ``BF16``, the weight's dtype, or ``Q8_0`` or ``Q4_0``, to which it is rounded.
    """

    def __init__(self, weight: np.ndarray, x: np.ndarray, threads: int, kind: int) -> None:
        base, self._cpu = _libraries()
        out_features, in_features = weight.shape
        weight = {Q8_0: as_q8_0, Q4_0: as_q4_0}.get(kind, np.ascontiguousarray)(weight)
        room = weight.nbytes + 4 * (x.size + len(x) * out_features) + (1 << 20)
        self._context = base.ggml_init(_InitParams(room, None, False))
        self._free = base.ggml_free
        matrix = base.ggml_new_tensor_2d(self._context, kind, in_features, out_features)
        rows = base.ggml_new_tensor_2d(self._context, F32, in_features, len(x))
        ctypes.memmove(base.ggml_get_data(matrix), weight.ctypes.data, weight.nbytes)
        values = np.ascontiguousarray(x, np.float32)
        ctypes.memmove(base.ggml_get_data(rows), values.ctypes.data, values.nbytes)
        product = base.ggml_mul_mat(self._context, matrix, rows)
        self._graph = base.ggml_new_graph(self._context)
        base.ggml_build_forward_expand(self._graph, product)
        self._plan = self._cpu.ggml_graph_plan(self._graph, threads, None)
        self._work = np.empty(self._plan.work_size + 64, np.uint8)
        self._plan.work_data = self._work.ctypes.data
        address = base.ggml_get_data(product)
        self.out = np.ctypeslib.as_array(
            ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (len(x), out_features)
        )

    def __call__(self) -> np.ndarray:
        if self._cpu.ggml_graph_compute(self._graph, ctypes.byref(self._plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
        return self.out

    def __del__(self) -> None:
        self._free(self._context)


def ggml_linear(
    weight: np.ndarray, x: np.ndarray, copies: int, threads: int, kind: int = BF16
) -> Callable:
    """Runs the product with the next of several copies of the weight at each call."""
    products = [GgmlLinear(weight, x, threads, kind) for _ in range(copies)]
    state = [0]

    def run() -> np.ndarray:
        state[0] = (state[0] + 1) % copies
        return products[state[0]]()

    return run


class GgmlExperts:
    """A layer's experts as llama.cpp multiplies them; of ``Weights`` of expert_layers.py.

    Gate, up and down projection by ``mul_mat_id``, SwiGLU, and each expert's weight; that their
    results are then summed is left out. Q4_0 is not repacked, which llama.cpp does when it loads.
    """

    def __init__(self, weights: Any, threads: int, kind: int) -> None:
        base, _ = _libraries()
        shape, self._threads = weights.shape, threads
        gate, up = np.split(weights.gate_up, 2)
        convert = {Q8_0: as_q8_0, Q4_0: as_q4_0}.get(kind, np.ascontiguousarray)
        matrices = [(matrix.shape, convert(matrix)) for matrix in (gate, up, weights.down)]
        room = shape.num_experts * sum(m.nbytes for _, m in matrices) + (1 << 20)
        self._context = base.ggml_init(_InitParams(room, None, False))
        self._shape, self._free = shape, base.ggml_free
        self._contexts = [self._context]
        self._matrices = []
        for (rows, columns), matrix in matrices:
            tensor = base.ggml_new_tensor_3d(self._context, kind, columns, rows, shape.num_experts)
            for expert in range(shape.num_experts):
                place = base.ggml_get_data(tensor) + expert * matrix.nbytes
                ctypes.memmove(place, matrix.ctypes.data, matrix.nbytes)
            self._matrices.append(tensor)

    def step(self, step: Any) -> Callable[[], np.ndarray]:
        """Runs it for the rows of a ``Step``, with the next of its choices at each call."""
        base, cpu = _libraries()
        num_tokens, top_k = step.weights.shape
        room = 64 * num_tokens * top_k * (self._shape.hidden_size + self._shape.intermediate_size)
        context = base.ggml_init(_InitParams(room + (4 << 20), None, False))
        self._contexts.append(context)
        gate, up, down = self._matrices
        hidden_size = self._shape.hidden_size
        x = base.ggml_new_tensor_3d(context, F32, hidden_size, 1, num_tokens)
        ids = base.ggml_new_tensor_2d(context, I32, top_k, num_tokens)
        weights = base.ggml_new_tensor_3d(context, F32, 1, top_k, num_tokens)
        values = step.x.astype(np.float32)
        ctypes.memmove(base.ggml_get_data(x), values.ctypes.data, values.nbytes)
        ctypes.memmove(base.ggml_get_data(weights), step.weights.ctypes.data, step.weights.nbytes)
        gated = base.ggml_mul(
            context,
            base.ggml_silu(context, base.ggml_mul_mat_id(context, gate, x, ids)),
            base.ggml_mul_mat_id(context, up, x, ids),
        )
        result = base.ggml_mul(context, base.ggml_mul_mat_id(context, down, gated, ids), weights)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, result)
        plan = cpu.ggml_graph_plan(graph, self._threads, None)
        work = np.empty(plan.work_size + 64, np.uint8)
        plan.work_data = work.ctypes.data
        out = np.ctypeslib.as_array(
            ctypes.cast(base.ggml_get_data(result), ctypes.POINTER(ctypes.c_float)),
            (num_tokens, top_k, hidden_size),
        )
        state = [0]

        def run(_kept: Any = (self, work)) -> np.ndarray:
            state[0] = (state[0] + 1) % len(step.ids)
            chosen = step.ids[state[0]]
            ctypes.memmove(base.ggml_get_data(ids), chosen.ctypes.data, chosen.nbytes)
            if cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
                raise RuntimeError("ggml_graph_compute failed")
            return out

        return run

    def __del__(self) -> None:
        for context in self._contexts:
            self._free(context)
