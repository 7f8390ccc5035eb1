"""Threads: the same results at any count, and nothing lost by forks or concurrent callers."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import subprocess
import sys
import threading

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops


@pytest.fixture(autouse=True)
def _restore_threads():
    before = ek.num_threads()
    yield
    ek.set_num_threads(before)


def norm_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((256, 64)).astype(np.float32)
    return ops.rms_norm(x, np.ones(64, np.float32)).numpy()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_results_do_not_depend_on_the_thread_count(threads):
    ek.set_num_threads(1)
    alone = norm_of(0)
    ek.set_num_threads(threads)
    for _ in range(50):
        np.testing.assert_array_equal(norm_of(0), alone)


def test_several_threads_may_call_at_once():
    ek.set_num_threads(3)
    expected = [norm_of(seed) for seed in range(4)]
    wrong = []

    def call(seed: int) -> None:
        for _ in range(50):
            if not np.array_equal(norm_of(seed), expected[seed]):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def _in_child(queue) -> None:
    queue.put(float(norm_of(0).sum()))


def test_a_forked_child_has_its_own_threads():
    ek.set_num_threads(4)
    expected = float(norm_of(0).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the mode is kept on x86-64 only")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_rounding_mode_of_the_caller_does_not_matter(threads):
    ek.set_num_threads(threads)
    expected = norm_of(0)
    x, weight = np.random.default_rng(0).standard_normal((256, 64)), np.ones(64, np.float32)
    x, upward = x.astype(np.float32), 0x800
    out = np.empty_like(x)
    libm = ctypes.CDLL("libm.so.6")
    assert libm.fesetround(upward) == 0
    try:
        ops.rms_norm(x, weight, out=out)
        assert libm.fegetround() == upward, "and is left as it was"
    finally:
        libm.fesetround(0)
    np.testing.assert_array_equal(out, expected)


def test_threads_that_cannot_start_are_an_error():
    script = """
import resource
import numpy as np, ernie_kernels as ek
x, weight = np.ones((256, 64), np.float32), np.ones(64, np.float32)
with open("/proc/self/statm") as f:
    held = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20),) * 2)
ek.set_num_threads(1000)
try:
    ek.ops.rms_norm(x, weight)
except ek.OutOfMemoryError as error:
    assert "of 1000; call set_num_threads" in str(error), error
else:
    raise SystemExit("1000 stacks fit into 200 MB")
ek.set_num_threads(2)
ek.ops.rms_norm(x, weight)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("n", [0, -1, 1025])
def test_impossible_thread_counts_are_refused(n):
    with pytest.raises(ek.ArgumentError, match="expected 1 to 1024"):
        ek.set_num_threads(n)
