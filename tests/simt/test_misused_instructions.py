"""The machine reports instructions that are used against their rules, and lets right ones pass."""

from __future__ import annotations

import re

import numpy as np
import pytest

from simt import control, instructions

pytestmark = [pytest.mark.simt]

ONE_PRODUCT = np.float32(17)  # 1 + 16 products of ones


def run(probe: str, seed: int) -> np.ndarray:
    control.set_seed(seed)
    words = np.arange(64, dtype=np.uint32)
    return instructions.run(instructions.library_of("simt"), probe, words, 256, "misuse")


@pytest.mark.parametrize("seed", range(10))
def test_right_ones_pass(seed):
    for probe in ("wgmma", "wgmma operand released by one"):
        assert (run(probe, seed)[:128].view(np.float32) == ONE_PRODUCT).all()
    assert run("bulk copy", seed)[:32].tolist() == list(range(32))
    run("stmatrix", seed)


def test_sums_are_not_there_before_they_are_waited_for():
    out = run("wgmma read early", 0).view(np.float32)
    assert (out[:128] == ONE_PRODUCT).all()
    assert np.isnan(out[128:256]).all()


FAULTS = [
    ("wgmma without fence", r"no wgmma\.fence"),
    ("wgmma without fence after wait", r"no wgmma\.fence since the warp last waited"),
    ("wgmma without wait", r"the block ends while a wgmma product is under way"),
    ("wgmma by three warps", r"deadlock: .*wgmma\.wait_group"),
    ("wgmma by half a warpgroup", r"no four warps from 0 on"),
    ("wgmma operands differ", r"differ about the operands"),
    ("wgmma pattern misaligned", r"swizzle of 128 bytes: its pattern begins at multiples of 1024"),
    ("wgmma base offset", r"base offset"),
    ("wgmma operand beyond", r"reads 16 bytes at byte \d+ of .* bytes, beyond its end"),
    ("bulk copy without init fence", r"without fence\.mbarrier_init"),
    ("bulk copy expects less", r"phase ends while a bulk copy that it did not expect is under way"),
    ("bulk copy expects more", r"deadlock: .*mbarrier\.try_wait"),
    ("mbarrier arrives twice", r"more than 1 arrivals at an mbarrier in one phase"),
    ("bulk copy odd size", r"cp\.async\.bulk of 120 bytes: expected a multiple of 16"),
    ("bulk copy misaligned", r"cp\.async\.bulk needs an address aligned to 16 bytes"),
    ("bulk copy beyond", r"writes 128 bytes at byte 16 of shared variable tile of 128 bytes"),
    ("bulk copy nobody waits", r"the block ends while a bulk copy is under way"),
    ("barrier in half a warp", r"barrier\.sync\.aligned .*lane \d+ (has returned|waits)"),
    ("cp.async 4 beyond", r"writes 4 bytes at byte \d+ of shared variable tile of 32 bytes"),
    ("cp.async 8 of too much", r"cp\.async of 8 bytes cannot take 9"),
]  # fmt: skip
# What is seen of them depends on the loads and stores of the kernel.
CHECKED_FAULTS = [
    ("wgmma without proxy fence", r"the async proxy reads .*no fence\.proxy\.async followed"),
    ("wgmma operand overwritten", r"race: "),
    ("wgmma operand released early", r"race: "),
    ("mbarrier without init", r"nobody has written it"),
    ("mbarrier without barrier after init", r"nobody has written|race: |has not set up|bulk"),
    ("bulk copy without wait", r"has not been waited for|nobody has written|race: "),
    ("mbarrier wrong parity", r"has not been waited for|nobody has written|race: |deadlock"),
    ("bulk copy refilled early", r"has not been waited for|race: |more than 1 arrivals"),
    ("stmatrix without barrier", r"race: |nobody has written"),
]


def check_fault(probe: str, words: str, seed: int) -> None:
    with pytest.raises(instructions.InstructionError) as error:
        run(probe, seed)
    assert re.search(words, str(error.value)), str(error.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("probe", "words"), FAULTS)
def test_faults_are_reported(probe, words, seed):
    check_fault(probe, words, seed)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("probe", "words"), CHECKED_FAULTS)
def test_faults_in_memory_are_reported(probe, words, seed):
    if not control.has_checks():
        pytest.skip("built with ERNIE_SIMT_CHECKS=OFF")
    check_fault(probe, words, seed)
