"""What ptxas says of every CUDA kernel of a build: registers, spills, static shared memory.

    cmake --build build/cuda --target ernie_cuda
    python bench/cuda_report.py --build-dir build/cuda

Reads the reports that the build keeps beside its objects, prints one line per kernel and
architecture, and exits with 1 where a hand-written kernel uses local memory (spilled registers or
a stack frame) that ALLOWED does not explain, or where no kernel is found. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Kernels that may use a stack frame or spill: bytes of each at most, and why.
ALLOWED = {
    "rope_table_kernel": (40, 0, "cosine and sine of angles above 2^31, which no position reaches"),
    "attention_prefill_kernel<128, 2, PagedKeys>": (
        8,
        4,
        "one word on sm_80, at the limit of 255 registers; 64-row tiles would read the keys twice",
    ),
}


@dataclass
class Kernel:
    file: str
    name: str
    arch: str
    registers: int
    stack: int  # bytes
    spill_stores: int  # bytes
    spill_loads: int  # bytes
    shared: int  # bytes, static
    cutlass: bool

    @property
    def local(self) -> int:
        return max(self.stack, self.spill_stores, self.spill_loads)

    def complaint(self) -> str | None:
        """Why this kernel fails the report; None when it does not."""
        if self.cutlass or self.local == 0:
            return None
        full = self.name.split("(")[0]
        plain = full.split("<")[0].split("::")[-1]
        stack, spill, _ = ALLOWED.get(full) or ALLOWED.get(plain) or (0, 0, "")
        if self.stack <= stack and max(self.spill_stores, self.spill_loads) <= spill:
            return None
        return (
            f"{self.file}: {self.name} for {self.arch}: {self.stack} bytes of stack, "
            f"{self.spill_stores} of spill stores, {self.spill_loads} of spill loads"
        )


ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
STACK = re.compile(r"(\d+) bytes cumulative stack size")
SHARED = re.compile(r"(\d+) bytes smem")


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names, or the given ones where binutils are missing."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run(
        [tool], input="\n".join(names), capture_output=True, text=True, check=True
    )
    readable = done.stdout.splitlines()
    return {
        name: re.sub(r"\(anonymous namespace\)::|ernie::cuda::", "", new).removeprefix("void ")
        for name, new in zip(names, readable, strict=True)
    }


def parse(report: Path, build_dir: Path) -> Iterator[Kernel]:
    """The kernels of one object, with mangled names."""
    file = str(report.relative_to(build_dir)).split(".dir/")[-1].removesuffix(".o.ptxas")
    kernel, entry = None, None
    for line in report.read_text().splitlines():
        if match := ENTRY.search(line):
            entry = match[1]
            kernel = Kernel(file, match[1], match[2], 0, 0, 0, 0, 0, "cutlass" in match[1])
        elif "Function properties for" in line:
            entry = line.split()[-1]
        elif kernel is not None and (match := FRAME.search(line)):
            # Functions that are not inlined count with the kernel that calls them.
            kernel.stack = max(kernel.stack, int(match[1]))
            kernel.spill_stores += int(match[2])
            kernel.spill_loads += int(match[3])
        elif kernel is not None and entry is not None and (match := USED.search(line)):
            kernel.registers = int(match[1])
            if match := STACK.search(line):
                kernel.stack = max(kernel.stack, int(match[1]))
            if match := SHARED.search(line):
                kernel.shared = int(match[1])
            yield kernel
            kernel = entry = None


def collect(build_dir: Path) -> list[Kernel]:
    kernels = [k for path in sorted(build_dir.rglob("*.ptxas")) for k in parse(path, build_dir)]
    names = demangle(sorted({k.name for k in kernels}))
    for kernel in kernels:
        kernel.name = names[kernel.name].split("(")[0]
    return sorted(kernels, key=lambda k: (k.cutlass, k.file, k.name, k.arch))


def table(kernels: list[Kernel]) -> str:
    lines = [f"{'arch':<8} {'regs':>4} {'stack':>5} {'spill':>5} {'smem':>6}  kernel"]
    for k in kernels:
        spill = k.spill_stores + k.spill_loads
        name = k.name if len(k.name) <= 100 else k.name[:97] + "..."
        lines.append(f"{k.arch:<8} {k.registers:>4} {k.stack:>5} {spill:>5} {k.shared:>6}  {name}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-dir", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()

    kernels = collect(args.build_dir)
    for title, group in (
        ("hand-written", [k for k in kernels if not k.cutlass]),
        ("CUTLASS", [k for k in kernels if k.cutlass]),
    ):
        if group:
            print(f"{title}: {len(group)} kernels\n{table(group)}\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    complaints = [text for k in kernels if (text := k.complaint())]
    for name, (stack, spill, reason) in ALLOWED.items():
        print(f"allowed: {name}: up to {stack} bytes of stack, {spill} of spill: {reason}")
    if not kernels:
        complaints = [f"no ptxas report under {args.build_dir}: build the target ernie_cuda first"]
    for text in complaints:
        print(f"FAILED: {text}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
