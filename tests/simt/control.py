"""The SIMT machine (README.md) as tests see it: loading it, its seed, its runtime's calls."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = "ernie_kernels._core"
DEFAULT_FOLDER = ROOT / "build/simt/simt"

# cudaError_t, of those that tests inject.
INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_DEVICE, NO_KERNEL_IMAGE = 1, 2, 100, 101, 209
LAUNCH_FAILURE = 719


class _Finder:
    """Gives the machine's module where the package asks for its native one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, str(self.path))
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def load() -> None:
    """From now on ``import ernie_kernels`` gets the machine. Before the first import of it."""
    if MODULE in sys.modules:
        raise RuntimeError("ernie_kernels was imported before the SIMT machine could be loaded")
    where = Path(os.environ.get("ERNIE_SIMT_MODULE") or DEFAULT_FOLDER)
    found = sorted(where.glob("_core*.so")) if where.is_dir() else [where]
    if not found or not found[0].exists():
        raise FileNotFoundError(f"no SIMT machine in {where}: build it (tests/simt/README.md)")
    sys.meta_path.insert(0, _Finder(found[0]))


def is_loaded() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def smaller(full, reduced):
    """``reduced`` where device cuda is the SIMT machine, for a test that would take it more than
    some seconds; ``full`` on real hardware."""
    return reduced if is_loaded() else full


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(sys.modules[MODULE].__file__)
    library.ernie_simt_seed.restype = ctypes.c_uint64
    library.ernie_simt_allocations.restype = ctypes.c_uint64
    library.ernie_simt_bytes_allocated.restype = ctypes.c_uint64
    for name in ("calls", "probe_text"):
        getattr(library, f"ernie_simt_{name}").restype = ctypes.c_char_p
    for name in ("stream_create", "end_capture"):
        getattr(library, f"ernie_simt_{name}").restype = ctypes.c_void_p
    return library


def seed() -> int:
    return _library().ernie_simt_seed()


def set_seed(value: int) -> None:
    """Of all random choices from now on: which thread goes next, which block."""
    _library().ernie_simt_set_seed(ctypes.c_uint64(value))


@contextmanager
def grids_of_at_most(x: int, y: int):
    """Launches in the block get no more blocks than that, as if the hardware took no more. For
    kernels that walk their work in steps of the grid alone."""
    library = _library()
    library.ernie_simt_set_grid_limit(x, y, 0)
    try:
        yield
    finally:
        library.ernie_simt_set_grid_limit(0, 0, 0)


def has_checks() -> bool:
    """Whether loads and stores of kernels are checked (ERNIE_SIMT_CHECKS)."""
    return bool(_library().ernie_simt_has_checks())


def allocations() -> int:
    """Live allocations: in the machine's global memory, and of host memory that is pinned."""
    return _library().ernie_simt_allocations()


@contextmanager
def recorded():
    """A list that holds, after the block, the calls of the CUDA runtime made in it: dicts with name,
    stream, error and what else the call was given."""
    library, calls = _library(), []
    library.ernie_simt_clear_calls()
    try:
        yield calls
    finally:
        text = library.ernie_simt_calls().decode()
        calls += [json.loads(line) for line in text.splitlines()]


@contextmanager
def failing(name: str = "", *, nth: int = 1, error: int = LAUNCH_FAILURE, from_then_on=False):
    """Makes the nth call of the CUDA runtime of that name (of any, without one) in the block report
    ``error``. Yields a function that says whether it has come to that."""
    library = _library()
    library.ernie_simt_fail_call(name.encode(), ctypes.c_int64(nth), error, int(from_then_on))
    try:
        yield lambda: bool(library.ernie_simt_call_has_failed())
    finally:
        library.ernie_simt_fail_no_call()


@contextmanager
def devices(count: int):
    """The machine says that it has so many GPUs. They share one memory."""
    library = _library()
    library.ernie_simt_set_device_count(count)
    try:
        yield
    finally:
        set_current_device(0)
        library.ernie_simt_set_device_count(1)


def current_device() -> int:
    """Of the calling thread."""
    return _library().ernie_simt_current_device()


def set_current_device(index: int) -> None:
    assert _library().ernie_simt_set_current_device(index) == 0


class Stream:
    """A stream of the machine; ``captured`` keeps what is queued on it, as a graph."""

    def __init__(self) -> None:
        self.handle = _library().ernie_simt_stream_create()
        self.graph = None

    @contextmanager
    def captured(self):
        library = _library()
        assert library.ernie_simt_begin_capture(ctypes.c_void_p(self.handle)) == 0
        try:
            yield
        finally:
            self.graph = library.ernie_simt_end_capture(ctypes.c_void_p(self.handle))

    def replay(self) -> int:
        """Does what was captured; the CUDA error."""
        graph, stream = ctypes.c_void_p(self.graph), ctypes.c_void_p(self.handle)
        return _library().ernie_simt_graph_launch(graph, stream)

    def forget_graph(self) -> None:
        if self.graph is not None:
            _library().ernie_simt_graph_destroy(ctypes.c_void_p(self.graph))
            self.graph = None

    def close(self) -> None:
        self.forget_graph()
        _library().ernie_simt_stream_destroy(ctypes.c_void_p(self.handle))


def run_probe(name: str) -> tuple[int, str]:
    """Runs a kernel of probes/: the CUDA error, and the machine's words for it."""
    library = _library()
    code = library.ernie_simt_run_probe(name.encode())
    if code < 0:
        raise KeyError(name)
    return code, library.ernie_simt_probe_text().decode()
