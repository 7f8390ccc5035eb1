"""What can be known of a machine and of this installation. Every function survives its absence."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ernie_kernels import __version__, _core
from ernie_kernels.doctor.fact import Fact
from ernie_kernels.doctor.media_facts import SECTION as MEDIA
from ernie_kernels.doctor.media_facts import media_facts
from ernie_kernels.errors import Error

# What pyproject.toml lists, and the least versions.
REQUIRED = {
    "numpy": "1.26",
    "ml_dtypes": "0.4",
    "sentencepiece": "0.2",
    "tokenizers": "0.20",
    "jinja2": "3.1.6",
    "tqdm": "4.60",
}
OPTIONAL = {
    "Pillow": "11",
    "av": "14",
    "pytest": "8",
    "pytest-timeout": "2.3",
    "hypothesis": "6.100",
    "torch": "2.11",
    "transformers": "5.17",
    "safetensors": "0.5",
}
TIERS = ("portable", "avx2", "avx512", "avx512_bf16")


def all_facts() -> Iterator[Fact]:
    sections: dict[str, Callable[[], Iterator[Fact]]] = {
        "software": _software,
        "processor": _processor,
        "memory": _memory,
        "build": _build,
        "GPU": _gpu,
        "packages": _packages,
        MEDIA: media_facts,
    }
    for section, facts in sections.items():
        try:
            yield from facts()
        except Exception as error:  # noqa: BLE001  (a doctor that dies of an illness helps nobody)
            yield Fact(section, "not known", described(error))


def described(error: Exception) -> str:
    """An error in one line: our own as they are, others with their class."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Error) else f"{type(error).__name__}: {text}"


# --------------------------------------------------------------------------------------- sections


def _software() -> Iterator[Fact]:
    yield Fact("software", "ernie_kernels", __version__)
    yield Fact("software", "Python", platform.python_version())
    yield Fact("software", "system", f"{platform.system()} {platform.release()}")
    yield Fact("software", "machine", platform.machine())


def _processor() -> Iterator[Fact]:
    yield Fact("processor", "name", _cpu_name())
    best = _core.detected_cpu_tier()
    has = TIERS[: TIERS.index(best) + 1] if best in TIERS else (best,)
    forced = os.environ.get("ERNIE_CPU_ISA")
    try:
        yield Fact("processor", "tier in use", _core.cpu_tier())
    except Error as error:
        yield Fact("processor", "tier in use", None, f"{error}; unset ERNIE_CPU_ISA")
    yield Fact("processor", "tiers it has", ", ".join(has))
    yield Fact("processor", "ERNIE_CPU_ISA", ascii(forced)[1:-1] if forced else "not set")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        threads = _core.num_threads()
    except Error as error:
        yield Fact("processor", "threads", None, f"{error}; unset ERNIE_NUM_THREADS")
    else:
        # More threads than cores wait for each other at the end of every op.
        yield Fact("processor", "threads", f"{threads} on {cores} cores")


def _cpu_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _memory() -> Iterator[Fact]:
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        meminfo = ""
    for name, key in (("total", "MemTotal"), ("available", "MemAvailable")):
        found = re.search(rf"^{key}:\s*(\d+) kB$", meminfo, re.MULTILINE)
        yield Fact("memory", name, gigabytes(int(found[1]) * 1024) if found else None)
    yield Fact("memory", "limit of the container", _container_limit())


def _container_limit(group: Path = Path("/sys/fs/cgroup")) -> str:
    """Of the control group, in its second or its first version."""
    for file in (group / "memory.max", group / "memory" / "memory.limit_in_bytes"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        # The first version says "none" by a number beyond all memory.
        if text.isdigit() and int(text) < 1 << 60:
            return gigabytes(int(text))
        return "none"
    return "none"


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _build() -> Iterator[Fact]:
    info = _core.build_info()
    yield Fact("build", "compiler", info["compiler"])
    cuda = "no"
    if info["simt"]:
        cuda = "the tests' SIMT machine instead of a GPU"
    elif info["cuda"]:
        cuda = f"{info['cuda_compiler']}, for {info['cuda_architectures']}"
    yield Fact("build", "CUDA backend", cuda)
    if info["sanitizers"]:
        yield Fact("build", "sanitizers", ", ".join(info["sanitizers"]))


def _packages() -> Iterator[Fact]:
    for name, least in REQUIRED.items():
        version = _installed(name)
        if version is None:
            problem = f"{name} is missing: pip install '{name}>={least}'"
        elif _numbers(version) < _numbers(least):
            problem = f"{name} {version} is too old: pip install '{name}>={least}'"
        else:
            problem = None
        yield Fact("packages", name, version or "missing", problem)
    for name, least in OPTIONAL.items():
        version = _installed(name)
        if version is None:
            yield Fact("packages", name, "not installed (optional)")
        else:
            old = _numbers(version) < _numbers(least)
            yield Fact(
                "packages", name, f"{version} (optional{f', {least} wanted' if old else ''})"
            )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


# ------------------------------------------------------------------------------------------- GPU


def _gpu() -> Iterator[Fact]:
    found: list[str] = []
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield Fact("GPU", "driver", "none (libcuda.so.1 cannot be loaded)")
    else:
        driver, found = _ask_driver(library)
        yield Fact("GPU", "driver", driver)
    for index, name in enumerate(found):
        yield Fact("GPU", f"device {index}", name)
    yield Fact("GPU", "usable here", *_usable(bool(found)))


def _usable(found: bool) -> tuple[str, str | None]:
    """Whether ops run on a GPU, why not, and what is wrong about that."""
    if count := _core.device_count():
        return f"{count} device{'s' if count > 1 else ''}", None
    if not _core.has_cuda():
        remedy = "; ERNIE_CUDA=ON pip install . builds it" if found else ""
        return f"no: this build has no CUDA backend{remedy}", None
    try:
        _core.empty([0], "uint8", "cuda:0")  # tells what is wrong with driver or GPU
    except Error as error:
        return f"no: {error}", str(error) if found else None
    return "no", None


def _ask_driver(library: ctypes.CDLL) -> tuple[str, list[str]]:
    """The driver's version or what it complains of, and the GPUs it names."""
    status = library.cuInit(0)
    if status != 0:
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        return f"found, but cuInit says {(text.value or b'error').decode()} ({status})", []
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(128)
        major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
        library.cuDeviceGetName(name, len(name), index)
        # Attributes 75 and 76 of the driver's interface: the compute capability.
        library.cuDeviceGetAttribute(ctypes.byref(major), 75, index)
        library.cuDeviceGetAttribute(ctypes.byref(minor), 76, index)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), index)
        devices.append(
            f"{name.value.decode(errors='replace')}, capability {major.value}.{minor.value}, "
            f"{gigabytes(memory.value)}"
        )
    major_version, rest = divmod(version.value, 1000)
    return f"for CUDA up to {major_version}.{rest // 10}", devices
