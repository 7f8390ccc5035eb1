"""The SIMT machine reports what is wrong with a kernel, and lets pass what is right."""

from __future__ import annotations

import re

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from simt import control

pytestmark = [pytest.mark.simt]

INVALID, ILLEGAL_ADDRESS, TIMEOUT, ILLEGAL_INSTRUCTION, MISALIGNED, FAILURE = (
    1, 700, 702, 715, 716, 719,
)  # fmt: skip


def needs_checks() -> None:
    if not control.has_checks():
        pytest.skip("built with ERNIE_SIMT_CHECKS=OFF")


# ------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize(
    ("probe", "first"),
    [
        ("barrier", [127, 126]),
        ("reuse", [382, 380]),
        ("barrier after return", [0, 0]),
        ("votes", [510]),
        ("shuffle in halves", [1, 1, 5, 5]),
        ("warp exchange", [1, 0, 3, 2]),
        ("half warp exchange", [1, 0, 3, 2]),
        ("halves of words", []),
        ("atomics", [128]),
        ("copy", [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_right_kernels_pass(probe, first, seed):
    control.set_seed(seed)
    code, text = control.run_probe(probe)
    assert code == 0, text
    assert [float(v) for v in text.split()][: len(first)] == first


# What the report must say beside kernel, block and thread.
FAULTS = [
    ("divergent barrier", FAILURE, r"divergent barriers: .*probes\.cu:\d+, thread \(\d+,0,0\)"),
    ("shuffle without lane", TIMEOUT, r"deadlock: .*__shfl_xor_sync.*7, 39, 71, 103 wait at the bar"),
    ("shuffle masks differ", FAILURE, r"__shfl_xor_sync with mask .*lane( \d+ waits)?"),
    ("wait in a circle", TIMEOUT, r"41-63 wait at __syncwarp.*; threads 0-31, 40 wait at the bar"),
    ("mma in half a warp", FAILURE, r"mma\.sync.* lane \d+ has returned"),
    ("copy misaligned", MISALIGNED, r"cp\.async needs an address aligned to 16 bytes"),
    ("too much shared memory", INVALID, r"invalid argument"),
]  # fmt: skip
CHECKED_FAULTS = [
    ("barrier missing", FAILURE, r"race|nobody has written"),
    ("reuse without barrier", FAILURE, r"race: .*shared variable tile.*not ordered after thread"),
    ("warp exchange by shuffle", FAILURE, r"race|nobody has written"),
    ("half warp exchange across", FAILURE, r"race|nobody has written"),
    ("read beyond", ILLEGAL_ADDRESS, r"reads 4 bytes at byte 1024 of allocation .*beyond its end"),
    ("write beyond", ILLEGAL_ADDRESS, r"thread \(5,0,0\) writes 4 bytes at byte 1024"),
    ("write before", ILLEGAL_ADDRESS, r"writes 4 bytes"),
    ("shared beyond", ILLEGAL_ADDRESS, r"at byte 32 of shared variable small of 32 bytes, beyond"),
    ("dynamic beyond", ILLEGAL_ADDRESS, r"at byte 50\d of dynamic shared memory of 500 bytes"),
    ("null pointer", ILLEGAL_ADDRESS, r"reads 4 bytes at a null pointer"),
    ("host memory", ILLEGAL_ADDRESS, r"memory that is the host's"),
    ("local beyond", FAILURE, r"takes element 4 of a 'float \[4\]'"),
    ("misaligned vector", MISALIGNED, r"float4.* 4 beyond a multiple of 16"),
    ("unwritten global", FAILURE, r"allocation .*byte 4: nobody has written it"),
    ("unwritten shared", FAILURE, r"shared variable tile, byte 4\d\d|5\d\d: nobody has written"),
    ("global race", FAILURE, r"race: writes 4 bytes of allocation .*thread \(\d+,0,0\) wrote it"),
    ("race between blocks", FAILURE, r"race: .*not ordered after block \(\d,0,0\) wrote it"),
    ("read what another block writes", FAILURE, r"race: .*block|nobody has written"),
    ("atomic beside plain", FAILURE, r"race: .*shared variable count"),
    ("copy without wait", FAILURE, r"a copy to it, begun by thread .*has not been waited for"),
    ("copy without barrier", FAILURE, r"race|nobody has written|not been waited for"),
]


def check_fault(probe: str, code: int, words: str) -> str:
    got, text = control.run_probe(probe)
    assert got == code, text
    assert re.search(words, text), text
    if got != INVALID:
        assert re.match(r"kernel \w+(<.*>)?, block \(\d+,0,0\), thread \(\d+,0,0\) ", text), text
    return text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("probe", "code", "words"), FAULTS)
def test_faults_are_reported(probe, code, words, seed):
    control.set_seed(seed)
    check_fault(probe, code, words)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("probe", "code", "words"), CHECKED_FAULTS)
def test_faults_in_memory_are_reported(probe, code, words, seed):
    needs_checks()
    control.set_seed(seed)
    check_fault(probe, code, words)


def test_a_race_names_both_lines():
    needs_checks()
    text = check_fault("reuse without barrier", FAILURE, "race")
    assert len(re.findall(r"probes\.cu:\d+", text)) >= 2, text


def test_a_launch_that_never_ends_is_ended(monkeypatch):
    needs_checks()
    monkeypatch.setenv("ERNIE_SIMT_TIMEOUT", "0.2")
    code, text = control.run_probe("never ends")
    assert code == TIMEOUT
    assert "ERNIE_SIMT_TIMEOUT" in text


def test_the_seed_decides_the_schedule():
    def report(seed: int) -> str:
        control.set_seed(seed)
        return re.sub(r"allocation \d+", "", control.run_probe("shuffle masks differ")[1])

    assert report(3) == report(3)
    assert len({report(seed).split(";")[0] for seed in range(10)}) > 1


# ------------------------------------------------------------------------------------- runtime


def test_fresh_memory_is_poisoned():
    assert np.isnan(ek.empty((1000,), "float32", device="cuda").numpy()).all()


def test_calls_are_recorded():
    x = ek.from_numpy(np.ones((3, 8), np.float32), "cuda")
    weight = ek.from_numpy(np.ones(8, np.float32), "cuda")
    out = ek.empty((3, 8), "float32", device="cuda")
    with control.recorded() as calls:
        ops.rms_norm(x, weight, out=out)
    launches = [call for call in calls if call["name"] == "cudaLaunchKernel"]
    assert len(launches) == 1
    assert launches[0]["kernel"].startswith("norm_kernel<")
    assert launches[0]["block"] == [128, 1, 1]
    assert not {call["name"] for call in calls} & {"cudaMallocAsync", "cudaStreamSynchronize"}


def test_any_call_can_be_made_to_fail():
    x = ek.from_numpy(np.ones((3, 8), np.float32), "cuda")
    weight = ek.from_numpy(np.ones(8, np.float32), "cuda")
    expected = ops.rms_norm(x, weight).numpy()
    out = ek.empty((3, 8), "float32", device="cuda")
    with (
        control.failing("cudaLaunchKernel", error=control.LAUNCH_FAILURE),
        pytest.raises(ek.DeviceError, match="cudaErrorLaunchFailure"),
    ):
        ops.rms_norm(x, weight, out=out)
    with (
        control.failing("cudaMallocAsync", error=control.OUT_OF_MEMORY, from_then_on=True),
        pytest.raises(ek.OutOfMemoryError),
    ):
        ek.empty((8,), "float32", device="cuda")
    with control.failing("cudaMallocAsync", nth=2, error=control.OUT_OF_MEMORY) as has_come:
        ek.empty((8,), "float32", device="cuda")
        assert not has_come()
        ek.empty((8,), "float32", device="cuda")  # tries again after the first refusal
        assert has_come()
    np.testing.assert_array_equal(ops.rms_norm(x, weight).numpy(), expected)


def test_memory_returns_when_tensors_go():
    before = control.allocations()
    t = ek.empty((100,), "float32", device="cuda")
    assert control.allocations() == before + 1
    del t
    assert control.allocations() == before
