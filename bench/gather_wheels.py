"""Gather what bench/gpu_check.py needs on a machine without a network.

    python bench/gather_wheels.py [--python 3.12] [--into third_party/wheels]

Fetches the packages below, as wheels for x86-64 Linux, and the CUTLASS headers' wheel. Such a
machine is taken to have torch, numpy, CMake and a compiler; a package that it has already is
not installed again, so a wheel too many costs only its size.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    # at run time
    "ml_dtypes", "sentencepiece", "tokenizers", "jinja2", "markupsafe", "tqdm",
    # to build
    "pybind11", "ninja",
    # to test
    "pytest", "pytest-timeout", "hypothesis", "iniconfig", "pluggy", "packaging", "pygments",
    "sortedcontainers", "pillow",
]  # fmt: skip
GLIBC = [5, 12, 17, 24, 27, 28, 31, 34]  # manylinux_2_N; pip takes each number literally
LIMIT = 40 << 20


def cutlass_requirement() -> str:
    cmake = (ROOT / "third_party" / "cutlass.cmake").read_text(encoding="utf-8")
    return "nvidia-cutlass==" + re.search(r"set\(cutlass_version (\S+)\)", cmake)[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="3.12", help="version on the GPU machine")
    parser.add_argument("--into", type=Path, default=ROOT / "third_party" / "wheels")
    args = parser.parse_args()
    shutil.rmtree(args.into, ignore_errors=True)  # two versions of one package stop the install
    args.into.mkdir(parents=True)

    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    pip += ["--only-binary=:all:", "--python-version", args.python, "--implementation", "cp"]
    for name in platforms:
        pip += ["--platform", name]
    done = subprocess.run(
        [*pip, "--dest", str(args.into), *PACKAGES, cutlass_requirement()], check=False
    )
    if done.returncode != 0:
        print("gather_wheels: pip could not fetch all packages; see above", file=sys.stderr)
        return 1

    wheels = sorted(args.into.iterdir())
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:7.2f} MiB  {wheel.name}")
    total = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{total / 2**20:7.2f} MiB  in all, in {args.into}")
    if total > LIMIT:
        print(f"gather_wheels: more than {LIMIT >> 20} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
