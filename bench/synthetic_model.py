"""Run a model of full size without a file: its weights are made while it is loaded, one by one.

python bench/synthetic_model.py                                       # 21B-A3B in wint4, about 12 GB
python bench/synthetic_model.py --layers 8 --quantization wint8

Says how much memory loading took and how fast it then reads a prompt and generates. Values are seeded
and random, so that every weight, expert and scale is in use; what is generated means nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from unittest import mock

import ml_dtypes
import numpy as np
from tqdm import tqdm

import ernie_kernels as ek
import ernie_kernels.load_model as loading
from ernie_kernels.models.loader import NUMPY_DTYPES, WeightSpec
from random_checkpoint import CONFIGS, FLOAT32, shapes_of

# Of random numbers, each tensor a window with a place of its own. No multiple of a row.
POOL_SIZE = (1 << 24) - 3


class SyntheticCheckpoint:
    """In the place of a :class:`~ernie_kernels.models.loader.Checkpoint`: bfloat16, no file.

    Args:
        shapes: of all tensors, by name.
    """

    layout = "huggingface"
    dtype = "bfloat16"

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        self._shapes = dict(shapes)
        self.nbytes = self.nbytes_of("")
        self._normal = np.random.default_rng(seed).standard_normal(POOL_SIZE, np.float32)
        self._pools: dict[float, np.ndarray] = {}  # by scale
        self._bar = tqdm(total=self.nbytes, unit="B", unit_scale=True, desc="making weights")

    def nbytes_of(self, prefix: str) -> int:
        """Of the tensors whose names begin so."""
        named = (item for item in self._shapes.items() if item[0].startswith(prefix))
        return sum((4 if n.endswith(FLOAT32) else 2) * int(np.prod(shape)) for n, shape in named)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._pools = {}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def require(self, specs: Mapping[str, WeightSpec], *, optional: Collection[str] = ()) -> None:
        for name, spec in specs.items():
            if name not in optional and self._shapes[name] != spec.shape:
                raise ValueError(f"{name}: {self._shapes[name]}, expected {spec.shape}")

    def shape_of(self, *names: str) -> tuple[int, ...]:
        shapes = [self._shapes[name] for name in names]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def tensor(self, *names: str, dtype: str) -> np.ndarray:
        result = np.empty(self.shape_of(*names), NUMPY_DTYPES[dtype])
        self.read_into(result, *names)
        return result

    def read_into(self, destination: np.ndarray, *names: str) -> None:
        row = 0
        for name in names:
            shape = self._shapes[name]
            self._fill(name, destination[row : row + shape[0]].reshape(-1))
            row += shape[0]

    def _fill(self, name: str, values: np.ndarray) -> None:
        scale = scale_of(name, self._shapes[name])
        if scale is None:
            values[...] = 1
            return
        pool = self._pool(scale)
        at, done = zlib.crc32(name.encode()) % POOL_SIZE, 0
        while done < len(values):
            count = min(len(values) - done, POOL_SIZE - at)
            values[done : done + count] = pool[at : at + count]
            at, done = 0, done + count
        self._bar.update(len(values) * (4 if name.endswith(FLOAT32) else 2))

    def _pool(self, scale: float) -> np.ndarray:
        if scale not in self._pools:
            self._pools[scale] = (self._normal * np.float32(scale)).astype(ml_dtypes.bfloat16)
        return self._pools[scale]


def scale_of(name: str, shape: tuple[int, ...]) -> float | None:
    """Of random values that leave activations near 1; None for the weight of a norm, which is 1."""
    if name.endswith("bias"):
        return 0.1 if len(shape) == 1 else 0.005  # the latter: of a router, which decides by it
    return None if len(shape) == 1 else shape[1] ** -0.5


def load(config: Mapping[str, Any], **options: Any) -> ek.LLM:
    """``LLM.from_pretrained`` of a folder that would hold such a model."""
    checkpoint = SyntheticCheckpoint(shapes_of(dict(config)))
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loading, "open_checkpoint", return_value=checkpoint),
    ):
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return ek.LLM.from_pretrained(folder, **options)


def memory(field: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM`` of this process."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+)", status)
    return int(found[1]) << 10 if found else 0


def run(llm: ek.LLM, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """Tokens per second of reading a prompt and of generating behind it."""
    rng = np.random.default_rng(1)
    ids = rng.integers(3, llm.config.vocab_size, prompt_tokens).tolist()
    params = ek.SamplingParams(max_tokens=new_tokens + 1, ignore_eos=True)
    begin = time.perf_counter()
    times = []
    for _ in llm.generate(prompt_token_ids=[ids], params=params, stream=True):
        times.append(time.perf_counter())
    first = times[0] - begin
    return {
        "prompt_tokens_per_s": prompt_tokens / first,
        "new_tokens_per_s": new_tokens / (times[-1] - times[0]),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=CONFIGS, default="21B")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--quantization", default="wint4", help="none, wint8, w8a8 or wint4")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    config = dict(CONFIGS[args.model])
    if args.layers is not None:
        config["num_hidden_layers"] = args.layers
    begin, before = time.perf_counter(), memory("VmRSS")
    quantization = None if args.quantization == "none" else args.quantization
    with load(
        config,
        device=args.device,
        quantization=quantization,
        num_threads=args.threads,
        max_model_len=1024,
        max_num_seqs=1,
    ) as llm:
        print(
            f"{args.model}, {config['num_hidden_layers']} layers, {args.quantization}: "
            f"{llm.stats()['weight_bytes'] / 1e9:.2f} GB of weights, "
            f"{(memory('VmHWM') - before) / 1e9:.2f} GB at most, "
            f"loaded in {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
        for name, value in run(llm, args.prompt_tokens, args.new_tokens).items():
            print(f"{name}: {value:.2f}")
        print(f"{memory('VmHWM') / 1e9:.2f} GB at most, all included")


if __name__ == "__main__":
    main()
