"""Where the time goes from the bytes of a JPEG to features: VL-28B's tower, random weights.

python bench/bench_vision_stages.py [--threads 1 2] [--dtype float32] [--json results.jsonl]

Every op of the encoder is timed where it is called, by the matrix that it multiplies; what is left of
the whole is Python, buffers and the waiting of one op for the next.

Predicted for two cores of Zen 5, bfloat16, 1024 x 768 (resized to 1036 x 756, 3,996 patches): decode
6 ms, resize 5 ms, digest 2 ms, patches and their product 8 ms: one thread each but for the last, and
three thousandths of the whole. Products of the tower 5.8 s, attention, which grows with the square,
3.9 s, the resampler 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import ernie_kernels as ek
from bench_image import photograph
from ernie_kernels import ops
from ernie_kernels.models.ernie_vl import VisualEncoder
from ernie_kernels.models.slices import all_at_once
from ernie_kernels.vision import VisionLimits, VisionProcessor
from ernie_kernels.vision.digest import item_key
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.resize import bicubic_resize
from vision_encoders import CONFIG_VL_28B, DTYPES, OurEncoder, checked_config, random_weights

from harness import _cpu_name
from model_records import versions

SIZES = [(448, 448), (1024, 768)]
PREPARATION = ("decode", "resize", "digest")
# Of a block; then those of the resampler.
MATRICES = ("qkv", "proj", "fc1", "fc2")
TIMED_OPS = (
    "patch_embed", "rope_2d_table", "layer_norm", "add_layer_norm", "rope_2d", "varlen_attention",
    "temporal_merge", "rms_norm",
)  # fmt: skip
WHOLE = "whole"

Times = dict[str, float]


def names_of_matrices(encoder: VisualEncoder) -> dict[int, str]:
    """What a product is for, by the identity of its weight."""
    names = {
        id(getattr(block, name).weight): f"blocks: {name}"
        for block in encoder.tower.blocks
        for name in MATRICES
    }
    resampler = encoder.resampler
    for merger in ("spatial_linear", "temporal_linear"):
        for layer in ("fc1", "fc2"):
            names[id(getattr(getattr(resampler, merger), layer).weight)] = f"resampler: {merger}"
    return names | {id(resampler.mlp.weight): "resampler: mlp"}


@contextmanager
def timed_ops(names: dict[int, str]) -> Iterator[Times]:
    """Seconds of every op of an encoder while this is open."""
    seconds: Times = defaultdict(float)

    def timed(function: Callable[..., Any], name_of: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **options)
            seconds[name_of(*args)] += time.perf_counter() - begin
            return result

        return call

    with mock.patch.multiple(
        ops,
        linear=timed(ops.linear, lambda x, weight, *_: names[id(weight)]),
        **{
            name: timed(getattr(ops, name), lambda *_, name=name: name)  # type: ignore[misc]
            for name in TIMED_OPS
        },
    ):
        yield seconds


def run_once(
    data: bytes, processor: VisionProcessor, encoder: VisualEncoder, names: dict[int, str]
) -> tuple[Times, ek.Tensor]:
    """Seconds by stage, in the order in which they begin, and the features."""
    times: Times = {}

    def stage(name: str, function: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = function()
        times[name] = time.perf_counter() - begin
        return result

    begin = time.perf_counter()
    stored = stage("decode", lambda: load_image(data, "image", VisionLimits()))
    rows, columns = processor.target_size("image", "image", *stored.shape[:2])
    pixels = stage("resize", lambda: bicubic_resize(stored, rows, columns)[None])
    grid = (1, rows // 14, columns // 14)
    key = stage("digest", lambda: item_key("image", grid, b"", pixels))
    item = ek.vision.VisualItem("image", grid, pixels, None, key)
    with timed_ops(names) as of_ops:
        features = all_at_once(encoder.slices([item]))
    times |= of_ops
    times[WHOLE] = time.perf_counter() - begin
    return times, features


def stages(runs: Sequence[Times]) -> Times:
    """Of the run whose whole took least; the last but one stage is what no other one explains."""
    best = min(runs, key=lambda times: times[WHOLE])
    known = {name: seconds for name, seconds in best.items() if name != WHOLE}
    return known | {"between": best[WHOLE] - sum(known.values()), WHOLE: best[WHOLE]}


def show(title: str, found: Times) -> None:
    print(f"\n{title}\n{'':28}{'ms':>10}{'share':>9}")
    for name, seconds in found.items():
        print(f"{name:28}{seconds * 1e3:10.2f}{seconds / found[WHOLE]:9.1%}", flush=True)


def record(width: int, height: int, dtype: str, found: Times, samples: int) -> dict[str, Any]:
    return {
        "op": "vision stages",
        "case": f"JPEG {width}x{height}, {dtype}",
        "device": "cpu",
        "isa": ek.cpu_tier(),
        "threads": ek.num_threads(),
        "samples": samples,
        "stages_us": {name: round(seconds * 1e6, 1) for name, seconds in found.items()},
        "host": f"{platform.machine()}, {_cpu_name()}",
        "versions": versions(),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="pictures whose size contains this")
    parser.add_argument("--json", type=Path, help="append one JSON object per picture to this file")
    args = parser.parse_args(words)
    config = checked_config(CONFIG_VL_28B)
    with random_weights(config) as checkpoint:
        encoder = OurEncoder(config, checkpoint, args.dtype).encoder
    processor, names = VisionProcessor(), names_of_matrices(encoder)
    for threads in args.threads:
        ek.set_num_threads(threads)
        for width, height in SIZES:
            if args.only not in f"{width}x{height}":
                continue
            data = photograph(width, height)
            expected = all_at_once(encoder.slices([processor.image(data)])).numpy()
            runs = []
            for _ in range(args.rounds):
                times, features = run_once(data, processor, encoder, names)
                assert np.array_equal(features.numpy(), expected)
                runs.append(times)
            found = stages(runs)
            show(f"JPEG {width} x {height}, {args.dtype}, {threads} threads", found)
            if args.json:
                line = record(width, height, args.dtype, found, args.rounds)
                with args.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
