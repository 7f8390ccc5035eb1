"""The planted bugs still fit the sources, and the table of the CUDA bugs the lists;
tests/planted/run.py builds and runs them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests/planted"))
import backends
import barriers
import caught
import cuda_bugs
import host_bugs
from cuda_bugs import CUDA_BUGS
from host_bugs import HOST_BUGS

BARRIER_BUGS = barriers.barrier_bugs(ROOT)
EVERY_CUDA_BUG = [*CUDA_BUGS, *BARRIER_BUGS]


@pytest.mark.parametrize(
    "bugs", [HOST_BUGS, CUDA_BUGS, BARRIER_BUGS], ids=["host", "cuda", "barriers"]
)
def test_every_bug_has_its_place_and_its_tests(bugs):
    wrong = []
    for bug in bugs:
        found = (ROOT / bug.file).read_text().count(bug.old)
        if found != 1:
            wrong.append(f"{bug.name}: its text occurs {found} times in {bug.file}")
        if bug.new == bug.old:
            wrong.append(f"{bug.name}: changes nothing")
        files = [*(test.partition("::")[0] for test in bug.tests), bug.unit or bug.file]
        wrong += [f"{bug.name}: no {file}" for file in files if not (ROOT / file).exists()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", [cuda_bugs, host_bugs])
def test_every_file_of_bugs_is_in_the_list(package):
    files = {path.stem for path in Path(package.__file__).parent.glob("*.py")} - {"__init__"}
    assert {family.__name__.rpartition(".")[2] for family in package.FAMILIES} == files


def test_names_are_distinct():
    names = [bug.name for bug in (*HOST_BUGS, *EVERY_CUDA_BUG)]
    assert len(names) == len(set(names))


def test_every_cuda_bug_names_a_check():
    wrong = [b.name for b in EVERY_CUDA_BUG if not b.checks or {*b.checks} - backends.ALL_CHECKS]
    assert not wrong


def test_every_barrier_of_the_kernels_is_planted():
    """Counted by another route: as text, wherever it is not a comment."""
    calls = re.compile(
        r"__sync|__threadfence|_(?:wait|commit)_group|\b(?:m?barrier|fence)_|_fence\("
    )
    codes = [re.sub(r"//.*", "", text) for text in barriers.kernel_sources(ROOT).values()]
    count = sum(len(calls.findall(code)) for code in codes)
    assert count > 20
    assert len([b for b in BARRIER_BUGS if " without " in b.name]) == count


def test_the_table_of_cuda_bugs_is_of_these_bugs_and_all_are_caught():
    listed = caught.rows(ROOT / "tests/planted/CAUGHT.md")
    assert list(listed) == [bug.name for bug in EVERY_CUDA_BUG]
    for bug in EVERY_CUDA_BUG:
        file, check = listed[bug.name]
        assert file == bug.file
        assert check in bug.checks, bug.name


@pytest.mark.parametrize(
    ("said", "check"),
    [
        ("race: writes 4 bytes of shared variable partial, byte 0: not ordered after", "race"),
        ("reads 4 bytes of shared variable x, byte 4: nobody has written it", "uninitialised read"),
        ("reads 4 bytes at byte 1024 of allocation 3, beyond its end", "out of bounds"),
        ("cp.async copies at most 16 bytes", "instruction rule"),
    ],
)
def test_reports_of_the_machine_are_told_apart(said, check):
    report = f"E   DeviceError: (kernel f<1, int>, block (0,0,0), thread (5,0,0) {said} [a.cu:1])"
    assert backends.check_of(report) == check
    assert backends.check_of("E   AssertionError: 3 of 4 elements") == backends.WRONG
