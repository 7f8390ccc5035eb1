"""Decoding with the 0.3B configuration on a GPU: with CUDA graphs, kernel by kernel, and transformers.

python bench/bench_decode.py                      # writes a checkpoint of random weights first
python bench/bench_decode.py --folder DIR --batch 1 8

Milliseconds per step through ``LLM.generate``, sampling and scheduling included: all sequences of the
batch get one token in a step. ``busy_ms`` is the step alone, repeated without waiting in between: what
the GPU needs. The peer is ``Ernie4_5ForCausalLM.generate``: eager, and with the static cache for which
transformers compiles the forward pass into CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ernie_kernels as ek
from ernie_kernels import _core
from ernie_kernels.runner.batch import TokenSpan
from random_checkpoint import CONFIG_0_3B, write_checkpoint

STEPS = 64  # of one sample


def load(folder: Path, device: str, graphs: bool, max_num_seqs: int, context: int) -> ek.LLM:
    os.environ["ERNIE_CUDA_GRAPHS"] = str(int(graphs))
    return ek.LLM.from_pretrained(
        folder,
        device=device,
        max_num_seqs=max_num_seqs,
        max_model_len=context + 2 * STEPS,
        kv_cache_memory=1 << 32,
    )


def step_of(llm: ek.LLM, prompts: list[list[int]]) -> float:
    """Seconds per step of a whole answer, but for its first token."""
    params = ek.SamplingParams(max_tokens=STEPS + 1, ignore_eos=True, temperature=0.0)
    stream = llm.generate(prompt_token_ids=prompts, params=params, stream=True)
    for _ in prompts:
        next(stream)
    begin = time.perf_counter()
    for _ in stream:
        pass
    return (time.perf_counter() - begin) / STEPS


def busy_of(llm: ek.LLM, batch: int, context: int) -> float:
    """Seconds that the GPU needs for a step; each sequence reads cache blocks of its own."""
    runner = llm._engine._runner
    blocks = -(-context // runner.block_size)
    spans = [
        TokenSpan(
            np.array([5]),
            context - 1,
            np.arange(row * blocks, (row + 1) * blocks, dtype=np.int32),
            num_outputs=1,
        )
        for row in range(batch)
    ]
    (step := runner._decode_steps._step_for(spans)).fill(spans)
    for _ in range(3):
        step.queue_graph(llm.device)
    _core.synchronize(llm.device)
    begin = time.perf_counter()
    for _ in range(STEPS):
        step.queue_graph(llm.device)
    _core.synchronize(llm.device)
    return (time.perf_counter() - begin) / STEPS


def peers_of(folder: Path, device: str) -> dict[str, Callable[[list[list[int]]], float]]:
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        print("# no torch and transformers: without peers")
        return {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()

    def step(prompts: list[list[int]], cache: str | None) -> float:
        ids = torch.tensor(prompts, device=device)

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                cache_implementation=cache,
            )[0, -1].item()
            return time.perf_counter() - begin

        return (seconds(STEPS + 1) - seconds(1)) / STEPS

    return {
        "eager": lambda prompts: step(prompts, None),
        "compiled": lambda prompts: step(prompts, "static"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="a checkpoint; else one is written")
    parser.add_argument("--layers", type=int, default=CONFIG_0_3B["num_hidden_layers"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    # Whole blocks and one token: after the first time all prompts are read in one step.
    parser.add_argument("--context", type=int, default=513, help="tokens of a prompt")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="ernie_decode_") as scratch:
        folder = args.folder
        if folder is None:
            folder = Path(scratch)
            write_checkpoint(folder, CONFIG_0_3B | {"num_hidden_layers": args.layers})
        run(args, folder)


def run(args: argparse.Namespace, folder: Path) -> None:
    llms = {
        name: load(folder, args.device, graphs, max(args.batch), args.context)
        for name, graphs in (("graphs", True), ("kernels", False))
    }
    steps: dict[str, Callable[[list[list[int]]], float]] = {
        name: lambda prompts, llm=llm: step_of(llm, prompts) for name, llm in llms.items()
    }
    if not args.no_peers:
        steps |= peers_of(folder, args.device)
    rng = np.random.default_rng(0)
    config = llms["graphs"].config
    for batch in args.batch:
        prompts = rng.integers(3, config.vocab_size, (batch, args.context)).tolist()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for sample in range(args.samples + 2):
            for name, step in steps.items():
                seconds = step(prompts)
                if sample > 1:  # before, graphs are made and code is compiled
                    times[name].append(seconds * 1e3)
        row: dict[str, object] = {
            "op": "decode step",
            "case": f"batch {batch}, context {args.context}, {config.num_hidden_layers} layers",
            "device": args.device,
        }
        for name, each in times.items():
            row |= {f"{name}_ms": round(min(each), 4), f"{name}_p25_ms": round(p25(each), 4)}
            if name != "graphs":
                row[f"ratio_p25_{name}"] = round(p25(each) / p25(times["graphs"]), 2)
        if args.device != "cpu":
            row["busy_ms"] = round(busy_of(llms["graphs"], batch, args.context) * 1e3, 4)
        print(json.dumps(row), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


def p25(values: list[float]) -> float:
    return sorted(values)[len(values) // 4]


if __name__ == "__main__":
    main()
