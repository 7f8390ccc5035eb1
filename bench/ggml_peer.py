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

import numpy as np

F32, Q8_0, BF16 = 0, 8, 30  # enum ggml_type


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
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
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


class GgmlLinear:
    """``x @ weight.T`` for float32 ``x`` and a weight ``[out_features, in_features]``.

    ``kind`` is ``BF16``, the weight's dtype, or ``Q8_0``, to which it is rounded.
    """

    def __init__(self, weight: np.ndarray, x: np.ndarray, threads: int, kind: int) -> None:
        base, self._cpu = _libraries()
        out_features, in_features = weight.shape
        if kind == Q8_0:
            weight = as_q8_0(weight)
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
