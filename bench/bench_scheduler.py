"""What a step costs beside the model: scheduling, the batch's arrays, text and outputs.

python bench/bench_scheduler.py [--json FILE]

A model that computes nothing, so that all the time is the runner's own. Sequences decode, 32 steps
in a row: one of them fills a block, has its contents named and takes the next block. Microseconds of
a step, the best and the lower quartile of such rows; each column contains those before it:

  engine      scheduler, block manager, engine and ticket
  arrays      and what the model's kernels are given: ids, positions, slots, block tables
  outputs     and the text of each token, stop strings, the caller's chunks
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import ernie_kernels as ek
from ernie_kernels.runner.batch import ForwardBatch
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.collector import Collector
from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.requests import ModelLimits, make_requests

from harness import _cpu_name

COUNTS = [1, 8, 32]
COLUMNS = ["engine", "arrays", "outputs"]
PROMPT = 512
BLOCK_SIZE = 32
MAX_TOKENS = 8192
DECODE_STEP = 13e3  # microseconds, of the 0.3B model with one sequence and two threads


class NoModel:
    """In the place of ``ModelRunner``: rows without contents."""

    num_drafts = 0

    def __init__(self, *, makes_arrays: bool) -> None:
        self.max_tokens_per_step = 512
        self._makes_arrays = makes_arrays

    def run(self, spans: list) -> np.ndarray:
        if self._makes_arrays:
            ForwardBatch.from_spans(spans, BLOCK_SIZE, "cpu")
        return np.empty((sum(span.num_outputs for span in spans), 0))

    def decode(self, spans: list) -> None:
        """As on the CPU: it has no way of its own."""

    def flagged(self, spans: list) -> list[tuple[int, int]]:
        """It has no routers."""
        return []

    def logits(self, rows: np.ndarray) -> np.ndarray:
        return rows


class NoSampler:
    """Each position has its token, the same for all sequences."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(
        self, logits: np.ndarray, sequences: list, positions: list[int]
    ) -> tuple[list[int], list[None]]:
        tokens = [3 + 17 * position % (self._vocab_size - 3) for position in positions]
        return tokens, [None] * len(sequences)


def rows_of_steps(count: int, column: str, tokenizer: ek.Tokenizer) -> list[float]:
    """Sorted microseconds per step, of rows of 32 steps with ``count`` sequences."""
    has_text = column == "outputs"
    engine = Engine(
        NoModel(makes_arrays=column != "engine"),
        BlockManager(count * (PROMPT + MAX_TOKENS) // BLOCK_SIZE, BLOCK_SIZE),
        NoSampler(tokenizer.vocab_size),
        eos_token_ids=[],
        tokenizer=tokenizer if has_text else None,
        max_num_seqs=count,
    )
    rng = np.random.default_rng(1)
    prompts = rng.integers(3, tokenizer.vocab_size, (count, PROMPT)).tolist()
    params = ek.SamplingParams(
        max_tokens=MAX_TOKENS, stop=["\n\nUser:", "</s>"] if has_text else None
    )
    limits = ModelLimits(tokenizer.vocab_size, PROMPT + MAX_TOKENS)
    requests = make_requests(None, prompts, params, tokenizer, limits)
    collector = Collector(requests, has_text=has_text)
    outputs = engine.outputs(engine.add_requests(requests))

    def step() -> None:
        taken = next(outputs)
        if has_text:
            for _ in collector.chunks(taken):
                pass

    for _ in range(count + 2 * BLOCK_SIZE):  # prompts of one step each, and some to get warm
        step()
    times = []
    for _ in range(100):
        begin = time.perf_counter()
        for _ in range(BLOCK_SIZE):
            step()
        times.append((time.perf_counter() - begin) / BLOCK_SIZE * 1e6)
    assert engine.stats()["running"] == count
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="append one JSON object per line to this file")
    args = parser.parse_args()
    with ek.LLM.from_pretrained(max_model_len=64) as demo:
        tokenizer = demo.tokenizer
    assert tokenizer is not None
    print(f"# {_cpu_name()}; best (p25) us per step, and of {DECODE_STEP / 1e3:.0f} ms")
    for count in COUNTS:
        cells = []
        for column in COLUMNS:
            times = rows_of_steps(count, column, tokenizer)
            best, p25 = times[0], times[len(times) // 4]
            cells.append(f"{column} {best:7.1f} ({p25:7.1f}) {best / DECODE_STEP:5.2%}")
            if args.json:
                record = {"sequences": count, "column": column, "best_us": best, "p25_us": p25}
                with args.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        print(f"{count:3d} sequences  " + "   ".join(cells), flush=True)


if __name__ == "__main__":
    main()
