"""The whole dense model beside transformers: prefill and decode, interleaved in one process.

python bench/random_checkpoint.py /tmp/ernie-0.3b
python bench/bench_model.py /tmp/ernie-0.3b --threads 2 --peer bfloat16

Ours runs through the same runner as ``LLM.generate``, sampling included. The peer is
``Ernie4_5ForCausalLM`` with its SDPA attention and dynamic cache, greedy arg-max included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ernie_kernels as ek

from harness import _cpu_name, read_bandwidth

PREFILL = [128, 512]
CONTEXT = 128  # tokens in the cache when decoding starts


def ours_functions(llm: ek.LLM, prompts: dict[int, list[int]]) -> dict[str, Callable[[], float]]:
    """Each returns seconds: of a prefill with one new token, or per decoded token."""

    def prefill(length: int) -> float:
        params = ek.SamplingParams(max_tokens=1, ignore_eos=True)
        begin = time.perf_counter()
        llm.generate(prompt_token_ids=[prompts[length]], params=params)
        return time.perf_counter() - begin

    def decode(count: int = 8) -> float:
        params = ek.SamplingParams(max_tokens=count + 1, ignore_eos=True)
        stream = llm.generate(prompt_token_ids=[prompts[CONTEXT]], params=params, stream=True)
        next(stream)
        begin = time.perf_counter()
        for _ in stream:
            pass
        return (time.perf_counter() - begin) / count

    return {f"prefill {n}": lambda n=n: prefill(n) for n in PREFILL} | {"decode": decode}


def peer_functions(model, prompts: dict[int, list[int]]) -> dict[str, Callable[[], float]]:
    import torch

    def ids_of(length: int):
        return torch.tensor([prompts[length]])

    def prefill(length: int) -> float:
        ids = ids_of(length)
        begin = time.perf_counter()
        model(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax().item()
        return time.perf_counter() - begin

    def decode(count: int = 8) -> float:
        out = model(ids_of(CONTEXT), use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        begin = time.perf_counter()
        for _ in range(count):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
        return (time.perf_counter() - begin) / count

    return {f"prefill {n}": lambda n=n: prefill(n) for n in PREFILL} | {"decode": decode}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto", help="of our activations")
    parser.add_argument("--peer", default="bfloat16", choices=["bfloat16", "float32", "none"])
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    begin = time.perf_counter()
    llm = ek.LLM.from_pretrained(
        args.folder, dtype=args.dtype, num_threads=args.threads, max_model_len=2048
    )
    loaded = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    weights = llm.stats()["weight_bytes"]
    print(
        f"loaded in {loaded:.2f} s; peak resident {peak:.0f} MiB, weights {weights / 2**20:.0f} MiB"
    )
    rng = np.random.default_rng(0)
    prompts = {n: rng.integers(3, llm.config.vocab_size, n).tolist() for n in {*PREFILL, CONTEXT}}
    functions = {"ours": ours_functions(llm, prompts)}
    if args.peer != "none":
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(args.threads)
        torch.set_grad_enabled(False)
        model = AutoModelForCausalLM.from_pretrained(
            args.folder, dtype=getattr(torch, args.peer), attn_implementation="sdpa"
        ).eval()
        functions["transformers"] = peer_functions(model, prompts)
    read = read_bandwidth("cpu")
    print(f"# {_cpu_name()}, {args.threads} threads, reads {read:.1f} GB/s")
    for what in functions["ours"]:
        times: dict[str, list[float]] = {who: [] for who in functions}
        for sample in range(args.samples + 1):
            for who, table in functions.items():
                seconds = table[what]()
                if sample:
                    times[who].append(seconds)
        best = {who: min(t) for who, t in times.items()}
        p25 = {who: sorted(t)[len(t) // 4] for who, t in times.items()}
        tokens = 1 if what == "decode" else int(what.split()[1])
        row = {
            "case": what,
            "threads": args.threads,
            "peer": args.peer,
            "ours_ms": round(best["ours"] * 1e3, 2),
            "ours_p25_ms": round(p25["ours"] * 1e3, 2),
            "ours_tokens_per_s": round(tokens / best["ours"], 1),
            "cpu": _cpu_name(),
            "tier": ek.cpu_tier(),
            "read_gbs": round(read, 1),
        }
        if what == "decode":
            row["ours_gbs"] = round(weights / best["ours"] / 1e9, 1)
        if "transformers" in best:
            row |= {
                "peer_ms": round(best["transformers"] * 1e3, 2),
                "ratio_best": round(best["transformers"] / best["ours"], 2),
                "ratio_p25": round(p25["transformers"] / p25["ours"], 2),
            }
        print(json.dumps(row), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
