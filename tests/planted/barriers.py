"""Every barrier, wait, commit and fence of the CUDA kernels, as a bug: the kernel without it.

Nothing is listed by hand: what synchronises is found in the sources, so that a new kernel's barriers
are planted too. A wait for copies is also planted as one that waits for one group too few.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from backends import COPY, RACE, UNWRITTEN
from bug import (
    ATTENTION,
    CUDA_GEMM,
    CUDA_GROUPED,
    CUDA_WINT8,
    GRID_LOOPS,
    MOE,
    NORM,
    SAMPLING,
    VISION,
    Bug,
)

CUDA = Path("csrc/cuda")
# Functions of ptx.cuh with such a name order something.
ORDERING_WORDS = re.compile(r"wait|barrier|fence|commit|arrive")
BUILT_IN = r"__syncthreads(?:_\w+)?|__syncwarp|__threadfence(?:_\w+)?"
FUNCTION = re.compile(
    r"^(?:__global__|__device__)[^;{]*?\b(\w+)\((?:[^()]|\([^()]*\))*\)\s*(?:const\s*)?\{",
    re.MULTILINE,
)

# By the first part of a file's path in csrc/cuda: the tests that run its kernels, and for headers of
# many the one unit that is compiled again.
TESTS = {
    "common.cuh": [*NORM, *GRID_LOOPS],
    "moe": [*MOE, *GRID_LOOPS],
    "norm.cu": [*NORM, *GRID_LOOPS],
    "sampling.cu": [*SAMPLING, *GRID_LOOPS],
    "vision.cu": [*VISION, *GRID_LOOPS],
    "attention": ATTENTION,
    "gemm": CUDA_GEMM,
    "wint8": CUDA_WINT8,
    "grouped_gemm": CUDA_GROUPED,
}
UNITS = {
    "common.cuh": "norm.cu",
    "attention/decode_kernel.cuh": "attention/hdim64_bf16.cu",
    "attention/prefill_kernel.cuh": "attention/hdim64_bf16.cu",
    "gemm/output.cuh": "gemm/tile_bf16.cu",
    "gemm/pipeline.cuh": "gemm/tile_bf16.cu",
    "wint8/narrow_kernel.cuh": "wint8/narrow_bf16.cu",
    "grouped_gemm/work.cuh": "grouped_gemm/narrow_bf16.cu",
    "grouped_gemm/narrow_kernel.cuh": "grouped_gemm/narrow_bf16.cu",
    "grouped_gemm/tile_kernel.cuh": "grouped_gemm/tile_bf16.cu",
}

# By which check the absence of any of them may be noticed: the schedule decides which comes first.
CHECKS = (RACE, UNWRITTEN, COPY)


def kernel_sources(root: Path) -> dict[Path, str]:
    """Path in the tree and text of all CUDA sources but the instructions themselves."""
    paths = sorted((root / CUDA).rglob("*.cu*"))
    return {
        p.relative_to(root): p.read_text() for p in paths if "ptx" not in (p.stem, p.parent.name)
    }


def ordering_functions(root: Path) -> dict[str, str]:
    """Name and result type of the functions of ptx.cuh that order something."""
    paths = [root / CUDA / "ptx.cuh", *(root / CUDA / "ptx").glob("*.cuh")]
    declaration = re.compile(r"^__device__ __forceinline__ (\w+) (\w+)\(", re.MULTILINE)
    declared = [found for path in paths for found in declaration.findall(path.read_text())]
    return {name: result for result, name in declared if ORDERING_WORDS.search(name)}


def lines_around(text: str, begin: int, end: int) -> tuple[int, int]:
    """The shortest run of whole lines that ends with [begin, end) and occurs once."""
    end = text.index("\n", end) + 1
    while True:
        begin = text.rfind("\n", 0, begin) + 1
        if text.count(text[begin:end]) == 1:
            return begin, end
        begin -= 1


def replacements(match: re.Match[str], result: str) -> dict[str, str]:
    """What to put in the call's place, by what the kernel is then."""
    name, template, argument = match.groups()
    if name.startswith("__syncthreads_"):
        return {"without": f"({argument})"}  # each thread's own vote
    nothing = {"void": "(void)0", "bool": "true"}.get(result, "0")
    if name.endswith("wait_group"):
        return {
            "without": nothing,
            "with one group too few in": f"{name}<{template[1:-1]} + 1>({argument})",
        }
    return {"without": nothing}


def bugs_of_file(path: Path, text: str, functions: dict[str, str]) -> Iterator[Bug]:
    names = "|".join([BUILT_IN, *map(re.escape, functions)])
    calls = re.compile(rf"(?<!\w)({names})(<[^;()]*>)?\(([^;()]*)\)")
    inside = path.relative_to(CUDA)
    seen: Counter[tuple[str, str]] = Counter()
    for match in calls.finditer(text):
        if "//" in text[text.rfind("\n", 0, match.start()) : match.start()]:
            continue
        name = match[1]
        function = [f[1] for f in FUNCTION.finditer(text, 0, match.start())][-1]
        seen[function, name] += 1
        number = seen[function, name]
        place = f"{name} {number}" if number > 1 else name
        begin, end = lines_around(text, match.start(), match.end())
        unit = UNITS.get(str(inside), "")
        for how, replacement in replacements(match, functions.get(name, "void")).items():
            yield Bug(
                f"{function} {how} {place}",
                str(path),
                text[begin:end],
                text[begin : match.start()] + replacement + text[match.end() : end],
                TESTS[inside.parts[0]],
                CHECKS,
                str(CUDA / unit) if unit else "",
            )


def barrier_bugs(root: Path) -> list[Bug]:
    functions = ordering_functions(root)
    return [
        bug
        for path, text in kernel_sources(root).items()
        for bug in bugs_of_file(path, text, functions)
    ]
