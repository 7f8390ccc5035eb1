"""Where things are and who may include whom. csrc/README.md explains; this file enforces."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"

# One name per op family, the same in every folder: `git ls-files | grep norm` finds all of it.
FAMILY_FILES = [
    "csrc/ops/{}.h",
    "csrc/cpu/{}.cpp",
    "csrc/bindings/{}.cpp",
    "python/ernie_kernels/ops/{}.py",
    "tests/ops/test_{}.py",
    "bench/bench_{}.py",
]

ALLOWED = {
    "core": {"core"},
    "io": {"core", "io"},
    "ops": {"core", "ops"},
    "cpu": {"core", "ops", "cpu"},
    "cuda": {"core", "ops", "cuda"},
    "bindings": {"core", "io", "ops", "bindings"},
}
# Plans of CUDA launches are pure host code: builds without CUDA test them through a binding.
HOST_PLAN = re.compile(r"cuda/\w+/config\.h")
# Inner loops are compiled with AVX-512 flags: whatever else they include is, too.
LEAF_SYSTEM_HEADERS = {"math.h", "immintrin.h", "cstdint", "cstring"}

INCLUDE = re.compile(r'^\s*#include ([<"])([^>"]+)[>"]', re.MULTILINE)


def test_every_include_points_down():
    wrong = []
    for path in sorted(CSRC.rglob("*.*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        folder = path.relative_to(CSRC).parts[0]
        for bracket, target in INCLUDE.findall(path.read_text()):
            if folder == "bindings" and HOST_PLAN.fullmatch(target):
                continue
            if bracket == '"' and target.split("/")[0] not in ALLOWED[folder]:
                wrong.append(f"{path.relative_to(CSRC)} includes {target}")
            if bracket == "<" and ".isa." in path.name and target not in LEAF_SYSTEM_HEADERS:
                wrong.append(f"{path.relative_to(CSRC)} includes <{target}>")
    assert not wrong, "\n".join(wrong)


def test_every_op_family_has_its_files():
    families = [path.stem for path in (CSRC / "ops").glob("*.cpp")]
    wanted = [pattern.format(family) for family in families for pattern in FAMILY_FILES]
    assert [path for path in wanted if not (ROOT / path).exists()] == []


def test_cuda_goes_through_the_doors_that_tests_replace():
    """launch(), ERNIE_SHARED and ptx/: kernels run without a GPU where these are emulated."""
    doors = {CSRC / "cuda" / "common.cuh", *(CSRC / "cuda" / "ptx").glob("*.cuh")}
    forbidden = re.compile(r"<<<|__shared__|\basm\b")
    wrong = [
        f"{path.relative_to(CSRC)}:{number}: {line.strip()}"
        for path in sorted((CSRC / "cuda").rglob("*.cu*"))
        if path not in doors
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line.split("//")[0])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_instruction_is_emulated():
    """Each function of csrc/cuda/ptx has a namesake in the stand-in, and a probe calls it."""
    name = r"(?:__device__ __forceinline__ [\w ]+?|ERNIE_WGMMA_BYTES\()\b(\w+)(?:\(|, \w+, \")"
    instructions = {
        found
        for path in (CSRC / "cuda" / "ptx").glob("*.cuh")
        for found in re.findall(name, path.read_text())
    } - {"name"}
    assert len(instructions) > 50
    simt = ROOT / "tests" / "simt"
    emulated = "".join(path.read_text() for path in (simt / "include/cuda/ptx").glob("*.cuh"))
    probes = (simt / "probes/instructions.cu").read_text()
    for place, text in (("the stand-in", emulated), ("probes/instructions.cu", probes)):
        missing = sorted(i for i in instructions if not re.search(rf"\b{i}\b", text))
        assert not missing, f"{place} lacks {missing}"
