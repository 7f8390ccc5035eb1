"""Runs the probe kernels of probes/instructions.cu: on the SIMT machine, or on the GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from simt import control

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "ERNIE_PROBES_LIBRARY"  # environment: nvcc's build of the probes
DEFAULT_LIBRARY = ROOT / "build/probes/tests/simt/probes/libernie_probes.so"

BF16, F16, E4M3 = ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn
MACHINES = [
    pytest.param("simt", marks=pytest.mark.simt),
    pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.hardware]),
]
SEEDS = range(8)  # on the machine: orders in which threads and copies go on

NO_SUCH_PROBE, NOT_IN_THIS_CODE = -1, -2


class InstructionError(Exception):
    """A CUDA error: on the machine, its words for the fault."""


def library_of(machine: str) -> ctypes.CDLL:
    """Of ``simt`` or ``gpu``; skips the test where the probes are not built for the GPU."""
    if machine == "simt":
        path = Path(sys.modules[control.MODULE].__file__)
    elif LIBRARY in os.environ:
        path = Path(os.environ[LIBRARY])
    elif DEFAULT_LIBRARY.exists():
        path = DEFAULT_LIBRARY
    else:
        pytest.skip(f"no {DEFAULT_LIBRARY.name}: build with ERNIE_PROBES=ON")
    library = ctypes.CDLL(str(path))
    for name in ("instruction", "misuse"):
        if hasattr(library, f"ernie_{name}_text"):
            getattr(library, f"ernie_{name}_text").restype = ctypes.c_char_p
    return library


def run(
    library: ctypes.CDLL, probe: str, words: np.ndarray, out_words: int, kind: str = "instruction"
) -> np.ndarray:
    """What the probe makes of ``words``, as uint32; words that it leaves out are 0xdeadbeef."""
    words = np.ascontiguousarray(words).view(np.uint32).ravel()
    out = np.full(out_words, 0xDEADBEEF, np.uint32)
    code = getattr(library, f"ernie_run_{kind}")(
        probe.encode(),
        words.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_size_t(words.size),
        out.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_size_t(out.size),
    )
    if code == NO_SUCH_PROBE:
        raise KeyError(probe)
    if code == NOT_IN_THIS_CODE:
        pytest.skip(f"{probe}: this GPU, or what the probes were compiled for, lacks it")
    if code != 0:
        raise InstructionError(getattr(library, f"ernie_{kind}_text")().decode())
    return out


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got, expected.astype(got.dtype, copy=False))


def use_seed(seed: int) -> None:
    if control.is_loaded():
        control.set_seed(seed)
