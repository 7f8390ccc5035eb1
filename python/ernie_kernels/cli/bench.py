"""``ernie-kernels bench``: how fast a model generates."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ernie_kernels import _core
from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.cli.command import add_command, add_json
from ernie_kernels.cli.options import add_folder, add_model_options, load_model
from ernie_kernels.cli.throughput import (
    BatchSpeed,
    ThroughputBench,
    as_json,
    cache_bytes,
    read_ceiling,
)
from ernie_kernels.cli.timing import draft_summary
from ernie_kernels.errors import ArgumentError, OutOfMemoryError
from ernie_kernels.llm import DEMO_FOLDER, LLM
from ernie_kernels.load_arguments import check_folder, check_integer
from ernie_kernels.models.config import load_config
from ernie_kernels.models.quantization import Quantization
from ernie_kernels.runner.capacity import available_host_memory

MAX_BATCH_SIZE = 512

DESCRIPTION = """\
Measure how fast a model reads prompts and generates, at several batch sizes, through the same
engine as 'generate'. Prompts are random token ids; an end token ends nothing.

  ernie-kernels bench
      the demo model: a look at the machinery, too small to say much about the machine
  ernie-kernels bench ./ERNIE-4.5-0.3B-PT
      a checkpoint
  ernie-kernels bench ./ERNIE-4.5-0.3B-PT --batch_sizes 1 8 --prompt_tokens 512 --new_tokens 64
  ernie-kernels bench ./ERNIE-4.5-0.3B-PT --num_threads 1 --json > one_thread.json
  ernie-kernels bench ./ERNIE-4.5-21B-A3B-PT \\
      --speculative_config '{"method": "mtp", "num_speculative_tokens": 1}'
      do guesses pay? Compare with the same command without them. Random prompts are hard to go on
      from: 'generate' on texts of your own tells how many of the guesses are right

A decode step reads all weights once. Where 'read GB/s' comes near what the machine reads at best,
memory is the limit: more requests at a time then cost little, fewer bytes a weight save much.
"""

COLUMNS = (
    ("batch", 6),
    ("prompt tok/s", 14),
    ("generated tok/s", 17),
    ("first token ms", 16),
    ("token ms p50", 14),
    ("p95", 9),
    ("read GB/s", 11),
)


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "bench", run, summary="measure tokens per second", description=DESCRIPTION
    )
    add_folder(parser, "MODEL")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[1, 4, 16],
        metavar="N",
        help="requests at the same time (default: 1 4 16)",
    )
    parser.add_argument(
        "--prompt-tokens", type=int, default=128, metavar="N", help="of each (default: 128)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="of each (default: 32)"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        metavar="N",
        help="runs of each batch size, of which the medians count; one more warms up (default: 3)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the prompts (default: 0)"
    )
    add_json(parser)
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    check_options(arguments)
    folder = check_folder(arguments.model_path, DEMO_FOLDER)
    with load_for_bench(arguments) as llm:
        bench = ThroughputBench(
            llm,
            prompt_tokens=arguments.prompt_tokens,
            new_tokens=arguments.new_tokens,
            seed=arguments.seed,
        )
        runs = len(arguments.batch_sizes) * (arguments.repeats + 1)
        # disable=None: no bar where stderr is no terminal.
        with tqdm(total=runs, desc="bench", unit="run", leave=False, disable=None) as bar:
            speeds = []
            for batch_size in arguments.batch_sizes:
                bar.set_postfix_str(f"batch {batch_size}")
                speeds.append(bench.measure(batch_size, arguments.repeats, bar.update))
        ceiling = read_ceiling(llm.device)
        if arguments.json:
            report = {
                "model": folder.resolve().name,
                "prompt_tokens": arguments.prompt_tokens,
                "new_tokens": arguments.new_tokens,
                "repeats": arguments.repeats,
                "seed": arguments.seed,
                "quantization": arguments.quantization,
                "speculative_config": arguments.speculative_config,
                **as_json(llm, speeds, ceiling),
            }
            print(json.dumps(report, indent=2))
        else:
            print_table(llm, folder.resolve().name, arguments, speeds, ceiling)
    return 0


def check_options(arguments: argparse.Namespace) -> None:
    """Raises ArgumentError for a number that no model could run."""
    for batch_size in arguments.batch_sizes:
        check_integer("batch_sizes", batch_size, 1, MAX_BATCH_SIZE)
    check_integer("prompt_tokens", arguments.prompt_tokens, 1, 1 << 21)
    check_integer("new_tokens", arguments.new_tokens, 1, 1 << 21)
    check_integer("repeats", arguments.repeats, 1, 1000)
    check_integer("seed", arguments.seed, 0, 2**63 - 1)


def load_for_bench(arguments: argparse.Namespace) -> LLM:
    """Load with a cache for the largest batch. Says what to change where there is no room for it."""
    folder = check_folder(arguments.model_path, DEMO_FOLDER)
    config = load_config(folder)
    tokens = arguments.prompt_tokens + arguments.new_tokens
    if arguments.max_model_len is not None and tokens > arguments.max_model_len:
        raise ArgumentError(
            f"bench: --prompt-tokens and --new-tokens make {tokens} tokens, --max-model-len is "
            f"{arguments.max_model_len}: raise it or lower them"
        )
    if tokens > config.max_position_embeddings:
        raise ArgumentError(
            f"bench: --prompt-tokens and --new-tokens make {tokens} tokens, this model has "
            f"{config.max_position_embeddings} positions (max_position_embeddings of config.json): "
            "lower them"
        )
    batch_size = max(arguments.batch_sizes)
    # The scheduler lets nobody in without some blocks to spare.
    room = batch_size + 1 + batch_size // 16
    # Of the widest dtype: the checkpoint's own is known only when it has been opened.
    with_mtp = arguments.speculative_config is not None
    needed = cache_bytes(config, "float32", room, tokens, with_mtp=with_mtp)
    available = available_host_memory()
    if needed > available and arguments.device in ("auto", "cpu"):
        raise OutOfMemoryError(
            f"bench: {batch_size} requests of {tokens} tokens need up to {needed / 1e9:.1f} GB of "
            f"KV cache, {available / 1e9:.1f} GB of memory are available: lower --batch-sizes, "
            "--prompt-tokens or --new-tokens"
        )
    return load_model(
        arguments,
        max_model_len=arguments.max_model_len or tokens,
        max_num_seqs=room,
        kv_cache_memory=needed,
    )


def print_table(
    llm: LLM,
    name: str,
    arguments: argparse.Namespace,
    speeds: list[BatchSpeed],
    ceiling: float | None,
) -> None:
    weights = llm.stats()["weight_bytes"]
    rounding = Quantization.of(arguments.quantization).name
    quantized = f", {rounding} weights" if rounding else ""
    print(
        f"{quoted(name)}: {weights / 1e6:.1f} MB of weights, {llm.dtype}{quantized} on "
        f"{llm.device} ({_core.cpu_tier()}, {_core.num_threads()} threads)\n"
        f"each request {arguments.prompt_tokens} prompt and {arguments.new_tokens} new tokens; "
        f"medians of {arguments.repeats} runs\n"
    )
    print("".join(f"{title:>{width}}" for title, width in COLUMNS))
    for speed in speeds:
        cells = (
            str(speed.batch_size),
            number(speed.prompt_tokens_per_second, 1, 1),
            number(speed.generated_tokens_per_second, 1, 1),
            number(speed.first_token_seconds, 1e3, 1),
            number(speed.token_seconds_p50, 1e3, 2),
            number(speed.token_seconds_p95, 1e3, 2),
            number(speed.read_bytes_per_second, 1e-9, 1),
        )
        print("".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)))
    if arguments.new_tokens > 1 and any(s.generated_tokens_per_second is None for s in speeds):
        print("\n-: the first requests end before the last begin; give more --new-tokens")
    for speed in speeds:
        if speed.drafted_tokens:
            print(
                f"\nbatch {speed.batch_size}: "
                f"{draft_summary(speed.drafted_tokens, speed.accepted_tokens)}"
            )
    if ceiling is not None:
        print(
            f"\nread GB/s: weights and cache that a decode step reads, over its time. From memory "
            f"this machine\nreads {ceiling / 1e9:.1f} GB/s at best; what fits in its caches comes "
            "faster."
        )


def number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"
