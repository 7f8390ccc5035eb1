"""The vision tower and the resampler of VL-28B, with random weights, beside transformers'.

python bench/bench_vision_tower.py [--threads 1 2] [--only tower] [--peers bfloat16] [--json results.jsonl]

32 blocks of 1280 and 143 million values of resampler, ours in bfloat16 and in float32 (weights of
bfloat16 either way, as a checkpoint has them) and transformers' in both, with sdpa. Ours begins with
pixels and transformers with patches that its processor has made. All run in one process in turn, each
when the threads of the others rest. Before that every engine's rows are held against those of
transformers in float32: ours in float32 must agree to ``MAX_ERROR``, ours in bfloat16 must be as near
as transformers is in bfloat16. Needs 10 GB.

Predicted before any run, two cores of Zen 5 (968 GFLOP/s of bfloat16 products, half of it in float32),
a picture of 448 x 448, 1,024 patches: the tower is 1.29 TFLOP of products and 0.17 of attention. At 90 %
of the peak the products take 1.48 s; attention at two thirds of it 0.26 s, the rest 0.06 s: 1.8 s in
bfloat16, 3.5 s in float32. Products by torch run 5 % below ours; its quick_gelu makes three passes over
5 million values a block (10 ms), its rotation some ten (10 ms), its attention takes twice as long as
ours: 2.6 s, so 1.4 times as long as ours; in float32 4.5 s. The resampler is 74 GFLOP, nearly all of it
products, and 287 MB of weights: 85 ms, and torch's 1.1 times as long.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops
from ernie_kernels.models.vision_config import VisionConfig
from ernie_kernels.models.vision_weight_specs import TOWER
from vision_encoders import (
    CONFIG_VL_28B,
    DTYPES,
    Encoder,
    Grid,
    OurEncoder,
    Picture,
    TransformersEncoder,
    checked_config,
    random_weights,
)

from harness import CpuClock, Result, _cpu_name, has_torch, read_bandwidth
from model_records import versions
from model_timing import settle

PICTURES: dict[str, Grid] = {"448x448": (1, 32, 32), "8 frames of 224x224": (8, 16, 16)}
PARTS = ("tower", "resampler")

# Root mean square of the differences from transformers in float32, over that of its rows.
MAX_ERROR = 1e-4
MAX_ERROR_RATIO = 1.1  # to transformers' own in bfloat16


@dataclass
class VisionResult(Result):
    """One of ours in one case; ``peers`` have the same figures and their ratios.

    Attributes:
        ours: ``"bfloat16"`` or ``"float32"``.
        of_product: ``gflops`` over those of one large product of ours in that dtype in the same run.
        samples: times behind ``best_us``, ``p25_us`` and ``median_us``.
        error: see ``MAX_ERROR``.
    """

    ours: str
    median_us: float
    of_product: float
    product_gflops: float
    samples: int
    error: float


class ProductCeiling:
    """The best rate so far of a large product with a bfloat16 weight."""

    TOKENS, OUT_FEATURES, IN_FEATURES = 1024, 5120, 1280

    def __init__(self, dtype: str) -> None:
        rng = np.random.default_rng(0)
        kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
        self._x = ek.from_numpy(
            rng.standard_normal((self.TOKENS, self.IN_FEATURES), np.float32).astype(kind)
        )
        weight = rng.standard_normal((self.OUT_FEATURES, self.IN_FEATURES), np.float32)
        self._weight = ops.linear_pack(weight.astype(ml_dtypes.bfloat16))
        self.gflops = 0.0

    def measure(self) -> None:
        clock = CpuClock()
        microseconds = min(
            clock.sample(lambda: ops.linear(self._x, self._weight)) for _ in range(5)
        )
        operations = 2 * self.TOKENS * self.OUT_FEATURES * self.IN_FEATURES
        self.gflops = max(self.gflops, operations / microseconds / 1e3)


class DisagreementError(Exception):
    pass


def flops_of(part: str, grid: Grid, vision: VisionConfig, hidden_size: int) -> int:
    """Operations of products and attention; ``hidden_size``: of the text model."""
    frames, rows, columns = grid
    patches, size, merged = frames * rows * columns, vision.hidden_size, vision.merged_size
    if part == "tower":
        block = 4 * size * size + 2 * size * vision.intermediate_size
        attention = vision.depth * 4 * size * frames * (rows * columns) ** 2
        return 2 * patches * (vision.patch_values * size + vision.depth * block) + attention
    tokens = (frames + 1) // 2 * rows * columns // 4
    temporal = 3 * merged * merged + merged * hidden_size
    return 2 * (patches // 4 * 2 * merged * merged + tokens * temporal)


def errors_of(encoders: Sequence[Encoder], part: str) -> dict[str, float]:
    """By the name of the encoder, of those that are not the reference: the last one.

    Raises:
        DisagreementError: one of ours does not compute what transformers does.
    """
    rows = {encoder.name: encoder.values(getattr(encoder, part)()) for encoder in encoders}
    errors: dict[str, float] = {}
    reference = rows[encoders[-1].name]
    for name, values in rows.items():
        if values.shape != reference.shape:
            raise DisagreementError(f"{name}: {values.shape} instead of {reference.shape}")
        difference = np.sqrt(np.mean((values - reference) ** 2, dtype=np.float64))
        errors[name] = float(difference / np.sqrt(np.mean(reference**2, dtype=np.float64)))
    bounds = {"ours float32": MAX_ERROR}
    if "transformers bfloat16" in errors:
        bounds["ours bfloat16"] = MAX_ERROR_RATIO * errors["transformers bfloat16"]
    for name, bound in bounds.items():
        if not errors.get(name, 0.0) <= bound:
            raise DisagreementError(f"{part}: {name}: {errors[name]:.2e}, expected {bound:.2e}")
    return errors


def set_threads(count: int) -> None:
    """Of ours and of torch."""
    ek.set_num_threads(count)
    if has_torch():
        import torch

        torch.set_num_threads(count)


def take_turns(
    functions: dict[str, Callable[[], object]], rounds: int, each_round: Callable[[], object]
) -> dict[str, list[float]]:
    """Sorted microseconds of each; all have run before, when they were held against each other."""
    clock = CpuClock()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        settle()
        each_round()
        for name, function in functions.items():
            settle()
            times[name].append(clock.sample(function))
    return {name: sorted(values) for name, values in times.items()}


def run_case(
    encoders: Sequence[Encoder],
    part: str,
    name: str,
    grid: Grid,
    *,
    errors: dict[str, float],
    flops: int,
    weight_bytes: int,
    rounds: int,
    ceilings: dict[str, ProductCeiling],
    read_gbs: float,
) -> list[VisionResult]:
    def measure_ceilings() -> None:
        for ceiling in ceilings.values():
            ceiling.measure()

    functions = {encoder.name: getattr(encoder, part) for encoder in encoders}
    times = take_turns(functions, rounds, measure_ceilings)
    figures = {
        name: {
            "best_us": round(values[0], 2),
            "p25_us": round(values[len(values) // 4], 2),
            "median_us": round(values[len(values) // 2], 2),
            "gflops": round(flops / values[0] / 1e3, 1),
            "error": errors[name],
        }
        for name, values in times.items()
    }
    results = []
    for encoder in encoders:
        owner, dtype = encoder.name.split()
        if owner != "ours":
            continue
        mine, product = figures[encoder.name], ceilings[dtype].gflops
        rate = weight_bytes / mine["best_us"] / 1e3
        results.append(
            VisionResult(
                op=f"vision {part}",
                case=f"{name}, {grid[0] * grid[1] * grid[2]} patches",
                device="cpu",
                isa=ek.cpu_tier(),
                threads=ek.num_threads(),
                gbytes_per_s=round(rate, 2),
                of_read=round(rate / read_gbs, 3),
                peers={
                    other: row
                    | {
                        "ratio_best": round(row["best_us"] / mine["best_us"], 2),
                        "ratio_p25": round(row["p25_us"] / mine["p25_us"], 2),
                    }
                    for other, row in figures.items()
                    if other.startswith("transformers")
                },
                host=f"{platform.machine()}, {_cpu_name()}",
                versions=versions(),
                ours=dtype,
                of_product=round(mine["gflops"] / product, 3),
                product_gflops=round(product, 1),
                samples=rounds,
                **mine,
            )
        )
    return results


def show(result: VisionResult) -> None:
    peers = "  ".join(
        f"{name} {p['best_us'] / 1e3:.1f} ms = {p['ratio_best']:.2f}x (p25 {p['ratio_p25']:.2f}x), "
        f"error {p['error']:.1e}"
        for name, p in result.peers.items()
    )
    print(
        f"{result.op} {result.case}, {result.threads} threads, {result.ours}: "
        f"{result.best_us / 1e3:.1f} ms (p25 {result.p25_us / 1e3:.1f}), {result.gflops:.0f} GFLOP/s = "
        f"{result.of_product:.0%} of a product, error {result.error:.1e}  {peers}",
        flush=True,
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--rounds", type=int, default=5, help="of the tower; 10 times of the resampler"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of ours")
    parser.add_argument("--peers", nargs="*", choices=DTYPES, default=list(DTYPES), help="timed")
    parser.add_argument("--only", default="", help="cases whose text contains this")
    parser.add_argument("--json", type=Path, help="append one JSON object per case to this file")
    args = parser.parse_args(words)
    config = checked_config(CONFIG_VL_28B)
    vision = config.vision
    assert vision is not None
    encoders: list[Encoder] = []
    with random_weights(config) as checkpoint:
        encoders += [OurEncoder(config, checkpoint, dtype) for dtype in args.dtypes]
        if has_torch():
            encoders += [TransformersEncoder(CONFIG_VL_28B, checkpoint, d) for d in DTYPES]
        else:
            print("torch is not installed: no peers", file=sys.stderr)
        weight_bytes = {
            "tower": checkpoint.nbytes_of(f"{TOWER}."),
            "resampler": checkpoint.nbytes - checkpoint.nbytes_of(f"{TOWER}."),
        }
    untimed = {f"transformers {dtype}" for dtype in DTYPES if dtype not in args.peers}
    ceilings: dict[int, dict[str, ProductCeiling]] = {}
    read_gbs: dict[int, float] = {}
    for threads in args.threads:
        set_threads(threads)
        ceilings[threads] = {dtype: ProductCeiling(dtype) for dtype in args.dtypes}
        read_gbs[threads] = read_bandwidth("cpu")
    for name, grid in PICTURES.items():
        picture = Picture(grid, vision.hidden_size)
        for encoder in encoders:
            encoder.show(picture)
        for part in PARTS:
            if args.only not in f"{part} {name}":
                continue
            set_threads(max(args.threads))
            errors = errors_of(encoders, part)
            for threads in args.threads:
                set_threads(threads)
                results = run_case(
                    [encoder for encoder in encoders if encoder.name not in untimed],
                    part,
                    name,
                    grid,
                    errors=errors,
                    flops=flops_of(part, grid, vision, config.hidden_size),
                    weight_bytes=weight_bytes[part],
                    rounds=args.rounds * (1 if part == "tower" else 10),
                    ceilings=ceilings[threads],
                    read_gbs=read_gbs[threads],
                )
                for result in results:
                    show(result)
                    if args.json:
                        with args.json.open("a") as file:
                            file.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
