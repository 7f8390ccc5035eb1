"""The whole model beside transformers and llama.cpp: prefill and decode, in turn, in one process.

python bench/random_checkpoint.py /tmp/ernie-0.3b
python bench/bench_model.py /tmp/ernie-0.3b --json bench/results/DATE-CPU.model.jsonl

Ours runs as `LLM.generate` does: scheduler, sampling and streaming included. transformers is
`Ernie4_5ForCausalLM` (or `Ernie4_5_Moe`) with SDPA attention and its dynamic cache; llama.cpp is called through its C
functions, with all matrices of one type, with and without flash attention (the faster one counts).
All decode greedily from the same prompts, one request at a time, and take their arg-max inside the
timed part. Engines take turns (A B C A B C ...), each after the threads of the one before are at rest.

A mixture of experts is too large to run beside itself in many types: name what is to run.

python bench/random_checkpoint.py /tmp/ernie-21b-8 --model 21B --layers 8
python bench/bench_model.py /tmp/ernie-21b-8 --quantization wint4 wint4-all --peers llama.cpp/Q4_0

First, and again for the tokens that the timed calls chose, every engine's answers are compared with
transformers in float32, or with the first of ours where that is left out: the run ends if one of them
does not compute this model. Peers that are not installed are named and left out.

A ratio is peer time / our time: above 1, ours is faster. The last table holds the ratios against
their floors, which are for 2 threads; "at ceiling" is the ratio if ours ran at what the memory (decode)
or the matrix unit (prefill) gives at most. Leave the machine alone meanwhile: it takes nine minutes,
four of them for 2 threads, and the first time two more to make llama.cpp's files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from harness import _cpu_name
from model_agreement import (
    Agreement,
    DisagreementError,
    add_regrets,
    check,
    compare_logits,
)
from model_goals import show_goals
from model_peers import ALL_WINT4, Engine, our_engines, peer_engines
from model_records import Ceilings, ModelResult, results_of, show_case
from model_timing import ModelCase, time_case

PEERS = [
    "transformers/bfloat16",
    "transformers/float32",
    *(f"llama.cpp/{kind}" for kind in ("BF16", "F16", "Q8_0", "Q4_0", "Q4_K")),
]
QUANTIZATIONS = ["none", "wint8", "w8a8", "wint4", ALL_WINT4]
CHECKED_TOKENS = 64


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a bfloat16 checkpoint, Hugging Face names")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, one by one"
    )
    parser.add_argument("--dtype", default="auto", help="of our activations")
    parser.add_argument(
        "--quantization",
        nargs="+",
        default=QUANTIZATIONS,
        choices=QUANTIZATIONS,
        metavar="HOW",
        help=f"ours, what this version cannot is left out: {', '.join(QUANTIZATIONS)} (default: all)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=PEERS,
        choices=PEERS,
        metavar="PEER",
        help=f"none without a word after it: {', '.join(PEERS)} (default: all)",
    )
    parser.add_argument("--prefill", type=int, nargs="*", default=[512], help="prompt lengths")
    parser.add_argument("--context", type=int, default=128, help="prompt before the decoded tokens")
    parser.add_argument("--new-tokens", type=int, default=8, help="decoded and timed per answer")
    parser.add_argument("--rounds", type=int, default=12, help="answers of each engine per case")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ernie-kernels-gguf",
        help="folder for llama.cpp's files (2.3 GB for the 0.3B model), made once (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="append one JSON object per case to this file")
    return parser.parse_args(words)


def cases_of(args: argparse.Namespace) -> list[ModelCase]:
    decode = [ModelCase(args.context, args.new_tokens)] if args.new_tokens else []
    return decode + [ModelCase(length) for length in args.prefill]


def run_case(
    case: ModelCase,
    engines: Sequence[Engine],
    *,
    rng: np.random.Generator,
    config: dict[str, Any],
    rounds: int,
    agreements: dict[Engine, Agreement],
) -> list[ModelResult]:
    ceilings = Ceilings()
    timings = time_case(
        engines,
        case,
        rng=rng,
        vocab_size=config["vocab_size"],
        rounds=rounds,
        each_round=ceilings.measure,
    )
    add_regrets(agreements, timings.prompt, timings.answers)
    results = results_of(case, timings, config=config, ceilings=ceilings, agreements=agreements)
    show_case(results)
    return results


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    begin = time.perf_counter()
    config = json.loads((args.folder / "config.json").read_text())
    engines = our_engines(args.folder, args.dtype, args.quantization)
    if not engines:
        sys.exit("nothing of ours to time")
    engines += peer_engines(args.folder, args.peers, args.cache)
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, config["vocab_size"], CHECKED_TOKENS).tolist()
    print(f"# {_cpu_name()}; loaded in {time.perf_counter() - begin:.0f} s", flush=True)
    agreements = compare_logits(engines, prompt)
    show_agreements(agreements)
    records: list[dict[str, Any]] = []
    try:
        check(agreements)
        for threads in args.threads:
            for engine in engines:
                engine.set_threads(threads)
            for case in cases_of(args):
                results = run_case(
                    case,
                    engines,
                    rng=rng,
                    config=config,
                    rounds=args.rounds,
                    agreements=agreements,
                )
                records += [asdict(result) for result in results]
        check(agreements)
    except DisagreementError as error:
        sys.exit(f"not the same model: {error}")
    show_goals(records)
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    print(f"\n{time.perf_counter() - begin:.0f} s")


def show_agreements(agreements: dict[Engine, Agreement]) -> None:
    print(f"{'agreement with the reference':44}{'KL':>10}{'top-1':>8}")
    for engine, found in agreements.items():
        options = "".join(f" {key}={value}" for key, value in engine.options.items())
        print(f"{engine.name + options:44}{found.kl:10.2e}{found.top1:8.1%}", flush=True)


if __name__ == "__main__":
    main()
