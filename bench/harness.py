"""Timing for every bench script: named peers side by side, rates beside the machine's ceilings.

Each measurement alternates ours and the peers' in one process (A B A B ...), so that a busy
neighbour slows all of them, and reports the best and the lower quartile of the samples. A ratio is
peer time / our time: above 1, ours is faster. Every case checks the results against each other
before it times them.

A bench script yields ``Case`` objects; ``main`` runs them, prints a table and appends JSON lines.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import ernie_kernels as ek
from ernie_kernels import _core


@dataclass
class Case:
    """One op at one shape.

    Attributes:
        op: the op's name.
        case: the shape, in the words of the op's docstring.
        ours: runs the op once.
        peers: name -> runs the same work once.
        nbytes: bytes the op must move at least.
        flops: floating-point operations it must do.
        check: raises if ours and the peers disagree; called once before timing.
    """

    op: str
    case: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    nbytes: int = 0
    flops: int = 0
    check: Callable[[], None] | None = None


@dataclass
class Result:
    op: str
    case: str
    device: str
    isa: str  # CPU tier, or the GPU's name
    threads: int
    best_us: float
    p25_us: float
    gbytes_per_s: float  # of the best time
    of_read: float  # gbytes_per_s over the measured read bandwidth
    gflops: float
    peers: dict[str, dict[str, float]]  # name -> best_us, p25_us, ratio_best, ratio_p25
    host: str
    versions: dict[str, str]


def has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def torch_tensor(array: np.ndarray, device: str):
    """A copy as a torch tensor; bfloat16 by its bits, which numpy cannot hand over."""
    import torch

    if array.dtype.name != "bfloat16":
        return torch.from_numpy(array.copy()).to(device)
    return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)


def rotated(items: Sequence) -> Callable[[], object]:
    """Takes the next of ``items`` on each call: weights that come from memory, not from cache."""
    state = [0]

    def take():
        state[0] = (state[0] + 1) % len(items)
        return items[state[0]]

    return take


def copies_beyond_cache(nbytes: int, total: int = 400 << 20) -> int:
    """How many copies of ``nbytes`` exceed any cache together."""
    return max(2, total // max(1, nbytes))


class CpuClock:
    def sample(self, fn: Callable[[], object]) -> float:
        begin = time.perf_counter()
        fn()
        return (time.perf_counter() - begin) * 1e6


class CudaClock:
    """Times by events on torch's current stream, on which ops with torch arguments run."""

    def __init__(self) -> None:
        import torch

        self.cuda = torch.cuda

    def sample(self, fn: Callable[[], object], repeats: int = 10) -> float:
        start, stop = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            fn()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e3 / repeats


def interleave(
    functions: dict[str, Callable[[], object]], device: str, samples: int, seconds: float
) -> dict[str, list[float]]:
    """At least ``samples`` times of each in microseconds, for about ``seconds`` per function."""
    clock = CpuClock() if device == "cpu" else CudaClock()
    for fn in functions.values():
        for _ in range(3):
            fn()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds * len(functions)
    taken = 0
    while taken < samples or (time.perf_counter() < end and taken < 20 * samples):
        for name, fn in functions.items():
            times[name].append(clock.sample(fn))
        taken += 1
    return {name: sorted(values) for name, values in times.items()}


def measure(case: Case, device: str, *, samples: int, seconds: float, read_gbs: float) -> Result:
    if case.check is not None:
        case.check()
    times = interleave({"ours": case.ours, **case.peers}, device, samples, seconds)
    best = {name: values[0] for name, values in times.items()}
    p25 = {name: values[len(values) // 4] for name, values in times.items()}
    rate = case.nbytes / best["ours"] / 1e3
    versions = {"ernie_kernels": ek.__version__, "numpy": np.__version__}
    if "torch" in sys.modules:
        versions["torch"] = sys.modules["torch"].__version__
    return Result(
        op=case.op,
        case=case.case,
        device=device,
        isa=ek.cpu_tier() if device == "cpu" else sys.modules["torch"].cuda.get_device_name(),
        threads=ek.num_threads() if device == "cpu" else 0,
        best_us=round(best["ours"], 2),
        p25_us=round(p25["ours"], 2),
        gbytes_per_s=round(rate, 2),
        of_read=round(rate / read_gbs, 3) if read_gbs else 0.0,
        gflops=round(case.flops / best["ours"] / 1e3, 1),
        peers={
            name: {
                "best_us": round(best[name], 2),
                "p25_us": round(p25[name], 2),
                "ratio_best": round(best[name] / best["ours"], 2),
                "ratio_p25": round(p25[name] / p25["ours"], 2),
            }
            for name in case.peers
        },
        host=f"{platform.machine()}, {_cpu_name()}",
        versions=versions,
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines[:30] if ":" in line)
    names = {key.strip(): value.strip() for key, value in fields.items()}
    return (
        f"{names.get('model name', '?')} family {names.get('cpu family', '?')} "
        f"model {names.get('model', '?')}"
    )


def read_bandwidth(device: str) -> float:
    """The device's measured ceiling in GB/s: reading (CPU) or copying (GPU) a large buffer."""
    if device == "cpu":
        return max(_core.measure_read_bandwidth(512 << 20) for _ in range(5)) / 1e9
    import torch

    a = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    clock = CudaClock()
    best = min(clock.sample(lambda: b.copy_(a), 3) for _ in range(10))
    return 2 * a.nbytes / best / 1e3


def show(result: Result) -> None:
    peers = "  ".join(
        f"{name} {p['best_us']:.1f} us = {p['ratio_best']:.2f}x (p25 {p['ratio_p25']:.2f}x)"
        for name, p in result.peers.items()
    )
    print(
        f"{result.op:14} {result.case:44} {result.best_us:10.1f} us (p25 {result.p25_us:.1f}) "
        f"{result.gbytes_per_s:7.1f} GB/s = {result.of_read:4.0%} of read  "
        f"{result.gflops:8.1f} GFLOP/s  {peers}",
        flush=True,
    )


def main(cases: Callable[[str], Iterable[Case]], description: str | None = None) -> None:
    """Entry point of a bench script."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="of ours and the peers' (CPU)")
    parser.add_argument("--samples", type=int, default=50, help="at least this many per case")
    parser.add_argument("--seconds", type=float, default=1.0, help="about this long per function")
    parser.add_argument("--only", default="", help="cases whose text contains this")
    parser.add_argument("--json", type=Path, help="append one JSON object per case to this file")
    args = parser.parse_args()
    ek.set_num_threads(args.threads)
    if has_torch():
        import torch

        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
    else:
        print("torch is not installed: no peers", file=sys.stderr)
    ceiling = read_bandwidth(args.device)
    print(f"# {_cpu_name()}, {args.device}, {args.threads} threads, ceiling {ceiling:.1f} GB/s")
    for case in cases(args.device):
        if args.only not in f"{case.op} {case.case}":
            continue
        result = measure(
            case, args.device, samples=args.samples, seconds=args.seconds, read_gbs=ceiling
        )
        show(result)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
