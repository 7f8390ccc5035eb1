"""``ernie-kernels doctor``: passes here, and notices and survives whatever is broken."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import run

from ernie_kernels import _core, ops
from ernie_kernels.doctor import examine, facts, media_facts
from ernie_kernels.doctor.case import Case
from ernie_kernels.doctor.examination import _worst
from ernie_kernels.doctor.op_checks import CHECKS, CPU_ONLY
from ernie_kernels.errors import ArgumentError
from op_calls import NO_OPS

ROOT = Path(__file__).parent.parent.parent


def test_this_machine_is_healthy(capfd):
    code, out, err = run(capfd, "doctor")
    assert (code, err) == (0, "")
    assert out.endswith("\neverything is fine\n")
    for expected in ("ernie_kernels", f"tier in use              {_core.cpu_tier()}", "compiler",
                     "numpy", "sentencepiece", "demo model", "' tuples.'   pass"):  # fmt: skip
        assert expected in out
    assert "FAIL" not in out
    assert "not known" not in out


def test_json(capfd):
    code, out, _ = run(capfd, "doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["healthy"] is True
    assert report["problems"] == []
    assert report["processor"]["tier in use"] == _core.cpu_tier()
    assert report["demo"]["cpu"] == " tuples."
    assert {
        "software",
        "processor",
        "memory",
        "build",
        "GPU",
        "packages",
        "images and videos",
    } < report.keys()
    assert all(op["passed"] and op["milliseconds"] >= 0 for op in report["ops"])


def test_every_check_passes_on_every_device(device):
    wanted = {name for name in CHECKS if device == "cpu" or name not in CPU_ONLY}
    for name in wanted:
        check, dtypes = CHECKS[name]
        for dtype in dtypes:
            worst = _worst(name, check(Case(device, dtype)))
            assert worst.passed, (dtype, worst)


def test_every_op_has_its_check():
    functions = {name for name in ops.__all__ if not inspect.isclass(getattr(ops, name))} - NO_OPS
    assert sorted(CHECKS) == sorted(functions)


def test_packages_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = dict(each.split(">=") for each in project["dependencies"])
    optional = dict(
        each.split(">=") for extra in project["optional-dependencies"].values() for each in extra
    )
    assert required == facts.REQUIRED
    assert optional == facts.OPTIONAL


def test_build_info_tells_what_was_built():
    info = _core.build_info()
    assert info["compiler"].split()[0] in ("GCC", "Clang")
    assert info["cuda"] is _core.has_cuda()
    assert (info["cuda_architectures"] is None) == (info["simt"] or not info["cuda"])


# ------------------------------------------------------------------------------------ what is broken

WRITTEN = {"kv_cache_write": 2}  # the argument that an op writes, where it is not the first


@pytest.mark.parametrize(
    ("op", "dtype"), [(op, dtype) for op, (_, dtypes) in CHECKS.items() for dtype in dtypes]
)
def test_one_wrong_element_fails_the_op(monkeypatch, op, dtype):
    check, _ = CHECKS[op]
    right = getattr(_core, op)

    def wrong(*arguments):
        right(*arguments)
        written = arguments[WRITTEN.get(op, 0)].numpy().reshape(-1)
        written[0] += written.dtype.type(1)

    assert _worst(op, check(Case("cpu", dtype))).passed
    monkeypatch.setattr(_core, op, wrong)
    assert not _worst(op, check(Case("cpu", dtype))).passed


def test_an_op_that_fails_or_raises_is_a_line(capfd, monkeypatch):
    def broken(*arguments):
        raise ArgumentError("linear: it is broken")

    def not_a_number(out, *arguments):
        out.numpy()[...] = float("nan")

    monkeypatch.setattr(_core, "linear", broken)
    monkeypatch.setattr(_core, "silu_and_mul", not_a_number)
    code, out, _ = run(capfd, "doctor")
    assert code == 1
    assert "linear, float32 on cpu: linear: it is broken" in out
    assert "silu_and_mul, bfloat16 on cpu: error inf is beyond its bound" in out
    assert "attention, " not in out
    code, out, _ = run(capfd, "doctor", "--json")
    assert code == 1
    assert json.loads(out)["healthy"] is False


def test_a_missing_demo_model_is_a_line(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("ernie_kernels.llm.DEMO_FOLDER", tmp_path)
    code, out, _ = run(capfd, "doctor")
    assert code == 1
    assert "demo model: cpu: 'config.json': is missing" in out


def test_another_answer_of_the_demo_model_is_a_line(capfd, monkeypatch):
    monkeypatch.setattr("ernie_kernels.doctor.examination._answer", lambda device: "banana")
    code, out, _ = run(capfd, "doctor")
    assert code == 1
    assert "is answered 'banana', expected ' tuples.'" in out


def test_no_proc(capfd, monkeypatch):
    """As on a system without Linux's /proc and /sys: fewer facts, no failure."""

    def missing(self, *arguments, **options):
        raise FileNotFoundError(2, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "read_text", missing)
    found = examine()
    by_name = {fact.name: fact.value for fact in found.facts}
    assert by_name["total"] is None
    assert by_name["limit of the container"] == "none"
    assert by_name["compiler"] is not None


def test_a_section_that_raises_is_a_line(monkeypatch):
    def broken():
        raise OSError("no such call")

    monkeypatch.setattr(_core, "build_info", broken)
    found = examine()
    (line,) = [fact for fact in found.facts if fact.section == "build"]
    assert (line.name, line.value) == ("not known", "OSError: no such call")
    assert any(fact.section == "packages" for fact in found.facts)


def test_missing_and_old_packages(monkeypatch):
    right = importlib.metadata.version

    def version(name):
        if name in ("sentencepiece", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return {"jinja2": "3.1.5", "tqdm": "4.60.0rc1"}.get(name) or right(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    problems = [fact.problem for fact in facts._packages() if fact.problem]
    assert problems == [
        "sentencepiece is missing: pip install 'sentencepiece>=0.2'",
        "jinja2 3.1.5 is too old: pip install 'jinja2>=3.1.6'",
    ]
    values = {fact.name: fact.value for fact in facts._packages()}
    assert values["torch"] == "not installed (optional)"


def media_facts_without(monkeypatch, *missing: str) -> dict[str, str | None]:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    found = list(media_facts.media_facts())
    assert [fact.problem for fact in found] == [None] * 3
    return {fact.name: fact.value for fact in found}


def test_what_can_be_shown(monkeypatch):
    pytest.importorskip("PIL")
    values = media_facts_without(monkeypatch, "av")
    assert values["images"].startswith("JPEG, PNG, WebP, by Pillow ")
    assert values["GIF, lists of frames"] == "yes; timestamps are drawn"
    assert values["video files"] == "no: PyAV is missing; pip install 'ernie-kernels[video]'"


def test_nothing_can_be_shown(monkeypatch):
    values = media_facts_without(monkeypatch, "PIL", "av")
    missing = "no: Pillow is missing; pip install 'ernie-kernels[{}]'"
    assert list(values.values()) == [missing.format(each) for each in ("vision", "vision", "video")]


def test_a_pillow_that_lacks_something(monkeypatch):
    features = pytest.importorskip("PIL.features")
    monkeypatch.setattr(features, "check", lambda name: name not in ("webp", "freetype2"))
    images, frames, _ = media_facts.media_facts()
    assert images.value.endswith("; this build of it cannot read WebP")
    assert "pass draw_timestamps=False" in frames.value


def test_a_broken_pillow_is_a_problem(monkeypatch):
    pytest.importorskip("PIL.features")
    monkeypatch.delattr("PIL.features")
    monkeypatch.setitem(sys.modules, "PIL.features", None)
    images, _ = media_facts.media_facts()
    assert images.problem.startswith("Pillow is installed and cannot be imported")


def command(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_runs_where_a_package_cannot_be_imported():
    done = command(
        "import sys; sys.modules['sentencepiece'] = None\n"
        "from ernie_kernels.cli import main; sys.exit(main(['doctor']))"
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "demo model: cpu: ModuleNotFoundError: import of sentencepiece halted" in done.stdout
    assert "rms_norm" in done.stdout


def test_runs_with_a_tier_that_there_is_not():
    done = command(
        "import sys; from ernie_kernels.cli import main; sys.exit(main(['doctor']))",
        ERNIE_CPU_ISA="sse9",
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "processor: tier in use: ERNIE_CPU_ISA: expected portable" in done.stdout
    assert "unset ERNIE_CPU_ISA" in done.stdout


# ------------------------------------------------------------------------------------ the machine


def test_container_limits(tmp_path):
    assert facts._container_limit(tmp_path) == "none"
    (tmp_path / "memory").mkdir()
    first_version = tmp_path / "memory" / "memory.limit_in_bytes"
    first_version.write_text("9223372036854771712\n")
    assert facts._container_limit(tmp_path) == "none"
    first_version.write_text("2000000000\n")
    assert facts._container_limit(tmp_path) == "2.0 GB"
    (tmp_path / "memory.max").write_text("max\n")
    assert facts._container_limit(tmp_path) == "none"
    (tmp_path / "memory.max").write_text("1500000000\n")
    assert facts._container_limit(tmp_path) == "1.5 GB"


class Driver:
    """Answers as libcuda does, through pointers."""

    def __init__(self, status: int) -> None:
        self.status = status

    def cuInit(self, flags):
        return self.status

    def cuGetErrorName(self, status, name):
        name._obj.value = b"CUDA_ERROR_NO_DEVICE"

    def cuDriverGetVersion(self, version):
        version._obj.value = 12080

    def cuDeviceGetCount(self, count):
        count._obj.value = 2

    def cuDeviceGetName(self, name, size, index):
        name.value = f"Card {index}".encode()

    def cuDeviceGetAttribute(self, value, attribute, index):
        value._obj.value = {75: 9, 76: 0}[attribute]

    def cuDeviceTotalMem_v2(self, memory, index):
        memory._obj.value = 150 * 10**9


def gpu_facts(monkeypatch, library) -> dict[str, str]:
    def load(name):
        if library is None:
            raise OSError(name)
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    return {fact.name: fact for fact in facts._gpu()}


@pytest.mark.skipif(_core.has_cuda(), reason="about a build without CUDA")
def test_why_there_is_no_gpu(monkeypatch):
    found = gpu_facts(monkeypatch, None)
    assert found["driver"].value == "none (libcuda.so.1 cannot be loaded)"
    assert found["usable here"].value == "no: this build has no CUDA backend"
    found = gpu_facts(monkeypatch, Driver(100))
    assert found["driver"].value == "found, but cuInit says CUDA_ERROR_NO_DEVICE (100)"
    found = gpu_facts(monkeypatch, Driver(0))
    assert found["driver"].value == "for CUDA up to 12.8"
    assert found["device 1"].value == "Card 1, capability 9.0, 150.0 GB"
    assert "ERNIE_CUDA=ON pip install . builds it" in found["usable here"].value


def test_why_a_gpu_of_a_cuda_build_is_not_used(monkeypatch):
    def refused(*arguments):
        raise ArgumentError("cuda:0: expected a GPU of compute capability 8.0 or newer")

    monkeypatch.setattr(_core, "has_cuda", lambda: True)
    monkeypatch.setattr(_core, "device_count", lambda: 0)
    monkeypatch.setattr(_core, "empty", refused)
    found = gpu_facts(monkeypatch, Driver(0))
    assert "8.0 or newer" in found["usable here"].value
    assert "8.0 or newer" in found["usable here"].problem
    assert gpu_facts(monkeypatch, None)["usable here"].problem is None
