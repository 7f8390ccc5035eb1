"""How run.py builds a patched tree and asks its tests: the CPU's module, or the SIMT machine's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# The machine's words for a fault, after "kernel K, block (..), thread (..) ", by the name of the
# check. What it says otherwise is about an instruction used against its rules.
REPORT = re.compile(r"kernel \S.*?, block \([\d,]+\), thread \([\d,]+\) (.*)")
RACE, UNWRITTEN, COPY = "race", "uninitialised read", "pending copy"
BEYOND, MISALIGNED, DIVERGENCE = "out of bounds", "misaligned", "divergence"
DEADLOCK, TIMEOUT = "deadlock", "timeout"
CHECKS = {
    RACE: r"race: ",
    UNWRITTEN: r"nobody has written it",
    COPY: r"has not been waited for",
    BEYOND: r"beyond its end|across its end|bytes before |null pointer|the host's|"
    r"another thread's|of which the block has none|no allocation|been freed|takes element",
    MISALIGNED: r"needs an address aligned|beyond a multiple of",
    DIVERGENCE: r"divergent barriers|with mask",
    DEADLOCK: r"deadlock: ",
    TIMEOUT: r"ERNIE_SIMT_TIMEOUT",
}
INSTRUCTION, WRONG, CRASH = "instruction rule", "wrong result", "crash"
ALL_CHECKS = {*CHECKS, INSTRUCTION, WRONG, CRASH}


class CannotRun(Exception):
    """A mistake in the list of bugs, or in the call: nothing can be said about the bug."""


def check_of(output: str) -> str:
    """By which check the tests failed, from what pytest printed."""
    report = REPORT.search(output)
    if report is None:
        return WRONG
    said = report.group(1)
    return next((name for name, words in CHECKS.items() if re.search(words, said)), INSTRUCTION)


@dataclass(frozen=True)
class Backend:
    folder: str  # of the build, in the tree
    options: tuple[str, ...]
    build_steps: tuple[tuple[str, ...], ...]
    pytest: tuple[str, ...]
    seeds: int  # a bug that shows in some schedules only gets so many

    def build(self, tree: Path) -> None:
        steps = list(self.build_steps)
        if not (tree / self.folder / "build.ninja").exists():
            steps.insert(0, ("cmake", "-S", ".", "-B", self.folder, "-G", "Ninja", *self.options))
        # One cache entry per file, wherever the tree lies.
        env = {"CCACHE_BASEDIR": str(tree), "CCACHE_NOHASHDIR": "1"}
        for step in steps:
            done = subprocess.run(
                step, cwd=tree, check=False, capture_output=True, text=True, env=os.environ | env
            )
            if done.returncode != 0:
                raise CannotRun("does not compile:\n" + done.stdout[-2000:] + done.stderr[-2000:])

    def first_failure(self, tree: Path, tests: list[str], seeds: int) -> str | None:
        """By which check the tests fail, under the first of `seeds` seeds; None where all pass."""
        for seed in range(1, seeds + 1):
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                 *self.pytest, *tests],
                cwd=tree, check=False, capture_output=True, text=True,
                env=os.environ | {
                    "PYTHONPATH": str(tree / "python"),
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "ERNIE_SIMT_MODULE": str(tree / self.folder / "simt"),
                    "ERNIE_SIMT_SEED": str(seed),
                    "ERNIE_SIMT_TIMEOUT": "20",
                },
            )  # fmt: skip
            # Below zero: a signal ended it, which is one way to notice a bug. 3 and up: a mistake in
            # the call.
            if done.returncode > 2:
                raise CannotRun(f"pytest could not run {tests}:\n{done.stdout}{done.stderr}")
            if done.returncode != 0:
                return CRASH if done.returncode < 0 else check_of(done.stdout)
        return None


HOST = Backend(
    folder="build",
    options=("-DERNIE_CUDA=OFF",),
    build_steps=(
        ("cmake", "--build", "build", "-j2"),
        ("cmake", "--install", "build", "--prefix", "python"),
    ),
    pytest=(),
    seeds=1,
)
CUDA = Backend(
    folder="build/simt",
    options=("-DERNIE_CUDA=OFF", "-DERNIE_SIMT=ON"),
    build_steps=(("cmake", "--build", "build/simt", "--target", "ernie_simt", "-j2"),),
    pytest=("--simt", "-m", "(cuda or simt) and not one_seed"),
    seeds=3,
)
