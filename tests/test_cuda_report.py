"""The register report of a CUDA build, on reports written here: no compiler and no GPU needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LINES = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, {stack} bytes cumulative stack size, 64 bytes smem
"""


def report(tmp_path: Path, text: str, *options: str) -> subprocess.CompletedProcess:
    (tmp_path / "norm.cu.o.ptxas").write_text(text)
    command = [sys.executable, ROOT / "bench/cuda_report.py", "--build-dir", tmp_path, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def lines(name: str, stack: int = 0, stores: int = 0, loads: int = 0) -> str:
    return LINES.format(name=name, stack=stack, stores=stores, loads=loads)


def test_kernels_without_spills_pass(tmp_path):
    figures = tmp_path / "figures.json"
    text = lines("scale_kernel") + lines("add_kernel")
    done = report(tmp_path, text, "--json", str(figures))
    assert done.returncode == 0, done.stderr
    kernels = json.loads(figures.read_text())
    assert [k["name"] for k in kernels] == ["add_kernel", "scale_kernel"]
    assert {(k["registers"], k["shared"], k["arch"]) for k in kernels} == {(40, 64, "sm_90a")}


@pytest.mark.parametrize("figures", [{"stores": 4}, {"loads": 4}, {"stack": 8}])
def test_a_hand_written_kernel_that_spills_fails(tmp_path, figures):
    done = report(tmp_path, lines("scale_kernel") + lines("add_kernel", **figures))
    assert done.returncode == 1
    assert "add_kernel" in done.stderr
    assert "scale_kernel" not in done.stderr


def test_cutlass_may_spill_and_allowed_frames_may_not_grow(tmp_path):
    cutlass = lines("_ZN7cutlass13device_kernelIiEEvT_", stack=16, stores=8, loads=8)
    assert report(tmp_path, cutlass).returncode == 0
    assert report(tmp_path, lines("rope_table_kernel", stack=40)).returncode == 0
    assert report(tmp_path, lines("rope_table_kernel", stack=48)).returncode == 1
    assert report(tmp_path, lines("rope_table_kernel", stack=40, stores=4)).returncode == 1


def test_a_build_without_kernels_fails(tmp_path):
    assert report(tmp_path, "ptxas info    : 0 bytes gmem\n").returncode == 1


@pytest.mark.parametrize("status", [0, 3])
def test_the_compile_launcher_keeps_the_report_and_passes_the_rest(tmp_path, status):
    text = lines("scale_kernel")
    compiler = f"import sys; sys.stderr.write({text!r} + 'x.cu(1): warning\\n'); sys.exit({status})"
    launcher = [sys.executable, ROOT / "csrc/cuda/keep_ptxas_log.py", tmp_path / "x.o"]
    command = [*launcher, sys.executable, "-c", compiler]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    kept = tmp_path / "x.o.ptxas"
    assert done.returncode == status
    assert done.stderr == "x.cu(1): warning\n"
    assert kept.exists() == (status == 0)
    if status == 0:
        assert kept.read_text() == text
