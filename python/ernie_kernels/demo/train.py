"""Trains the demo checkpoint: a small dense ERNIE-4.5 on the documentation of Python.

    python python/ernie_kernels/demo/train.py --output /tmp/demo

Needs torch and transformers, no GPU and no download: the text is the standard library of the
Python that runs this. On two cores it takes under half an hour. The output folder is a checkpoint
in Hugging Face layout, with `training.json` beside it: figures, loss curve, baseline, versions.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import sentencepiece
import torch
import torch.distributed
import torch.multiprocessing
import transformers
from bigram import Bigram
from dataset import TokenSets, byte_count, digest, token_stream, tokenize
from tqdm import tqdm
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM
from vocabulary import BOS, EOS, tokenizer_config

# Small: two and a half megabytes of text teach few embedding rows well.
VOCAB_SIZE = 1024
MAX_POSITIONS = 1024
TOKENS_PER_STEP = 4096
# Attention over 512 positions costs more than everything else together, so windows start short and
# grow, early enough for the learning rate to teach the later positions: (from progress, tokens).
WINDOWS = ((0.0, 128), (0.35, 256), (0.75, 512))
LONGEST_WINDOW = 512
# Muon for the matrices (its updates scaled to those of AdamW), AdamW for the embedding and norms.
# After 400 steps, both at 3e-3 and a vocabulary of 2048, the tuning loss was 4.12 nats/token,
# against 4.52 with AdamW alone.
MATRIX_LEARNING_RATE = 8e-3
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 60
WEIGHT_DECAY = 0.1
AVERAGE_DECAY = 0.995
STEPS_PER_LOG = 250


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()

    split = corpus.load()
    model_proto, vocabulary, tokens = tokenize(split, VOCAB_SIZE)
    print(f"{len(split.train)} documents, {sum(map(len, tokens.train))} training tokens")
    bigram = Bigram(np.concatenate(tokens.train_documents), VOCAB_SIZE)
    scale = bigram.best_scale(tokens.tuning)
    bigram_loss = mean([bigram.losses(row, scale) for row in tokens.held_out])
    print(f"bigram: {bigram_loss:.4f} nats/token held out")

    curve = train(tokens, vocabulary.separator, arguments)
    (arguments.output / "tokenizer.model").write_bytes(model_proto)
    settings = json.dumps(tokenizer_config(MAX_POSITIONS), indent=2)
    (arguments.output / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
    saved = Ernie4_5ForCausalLM.from_pretrained(arguments.output, dtype=torch.bfloat16)
    loss = mean(document_losses(saved, tokens.held_out))
    print(f"held out: {loss:.4f} nats/token, {loss / bigram_loss:.3f} of the bigram's")

    held_out_tokens = sum(len(row) - 1 for row in tokens.held_out)
    held_out_bytes = byte_count(split.held_out)
    report = {
        "held_out": {
            "loss_nats_per_token": round(loss, 4),
            "bigram_loss_nats_per_token": round(bigram_loss, 4),
            "ratio": round(loss / bigram_loss, 4),
            "bits_per_byte": round(loss * held_out_tokens / held_out_bytes / math.log(2), 4),
            "documents": len(split.held_out),
            "tokens": held_out_tokens,
            "bytes": held_out_bytes,
            "weights": "bfloat16, as saved",
        },
        "training": {
            "seed": arguments.seed,
            "steps": curve[-1]["step"],
            "tokens_per_step": TOKENS_PER_STEP,
            "documents": len(split.train),
            "bytes": byte_count(split.train),
            "document_tokens": sum(map(len, tokens.train_documents)),
            "tokens_with_all_renderings": sum(map(len, tokens.train)),
            "text_sha256": digest(split.train),
            "parameters": sum(parameter.numel() for parameter in saved.parameters()),
            "processes": arguments.processes,
            "minutes": round((time.monotonic() - started) / 60, 1),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "loss_curve": curve,
    }
    write_report(report, arguments.output / "training.json")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where the checkpoint goes"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=2200,
        help=f"optimizer steps of {TOKENS_PER_STEP} tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=28.0,
        help="most time that the steps may take: on a slower machine the learning rate falls to "
        "zero by then instead, and the result depends on the machine (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="each takes a part of every batch and one core (default: %(default)s)",
    )
    return parser.parse_args()


def model_config() -> Ernie4_5Config:
    """Like ERNIE-4.5-0.3B in all but size: head_dim larger than hidden / heads, two kv heads."""
    return Ernie4_5Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=160,
        intermediate_size=400,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        pad_token_id=0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=True,
    )


# --- training --------------------------------------------------------------------------------


def train(
    tokens: TokenSets, separator: int, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Trains in ``arguments.processes`` processes, saves the weights, returns the loss curve.

    One thread each: these matrices are too small to share, and a thread that waits for another
    at every operation loses more than it gains, above all on a busy machine.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            train_process, (Path(folder), tokens, separator, arguments), arguments.processes
        )
        return json.loads((Path(folder) / "curve.json").read_text(encoding="utf-8"))


def train_process(
    rank: int, folder: Path, tokens: TokenSets, separator: int, arguments: argparse.Namespace
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=arguments.processes
    )
    model = Ernie4_5ForCausalLM(model_config())
    optimizers = make_optimizers(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)
    )
    curve: list[dict[str, float]] = []
    recent: list[float] = []
    started = time.monotonic()
    stream = token_stream(tokens.train, TOKENS_PER_STEP, arguments.seed)
    bar = tqdm(total=arguments.steps, unit="step", disable=rank > 0)
    for step in range(arguments.steps):
        minutes = (time.monotonic() - started) / 60
        progress = agreed(max(step / arguments.steps, minutes / arguments.minutes))
        if progress >= 1:
            break
        chunk = torch.from_numpy(next(stream))
        share = TOKENS_PER_STEP // arguments.processes
        chunk = chunk[rank * share : (rank + 1) * share + 1]
        loss = training_loss(model, chunk, window_at(progress), separator)
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate_factor(step, progress)
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        recent.append(loss.item())
        bar.set_postfix(loss=f"{np.mean(recent[-50:]):.3f}", refresh=False)
        bar.update()
        if rank == 0 and (step + 1) % STEPS_PER_LOG == 0:
            curve.append(curve_point(step + 1, recent, average.module, tokens.tuning))
            bar.write(json.dumps(curve[-1]))
            recent.clear()
    bar.close()
    if rank == 0:
        if recent:
            steps = int(curve[-1]["step"] if curve else 0) + len(recent)
            curve.append(curve_point(steps, recent, average.module, tokens.tuning))
        arguments.output.mkdir(parents=True, exist_ok=True)
        averaged: Any = average.module
        averaged.to(torch.bfloat16).save_pretrained(arguments.output)
        (folder / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
    torch.distributed.destroy_process_group()


def agreed(value: float) -> float:
    """The value of process 0: clocks differ."""
    shared = torch.tensor([value], dtype=torch.float64)
    torch.distributed.broadcast(shared, src=0)
    return shared.item()


def average_gradients(model: torch.nn.Module) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for gradient, part in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def make_optimizers(model: Ernie4_5ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        [{"params": matrices, "initial_lr": MATRIX_LEARNING_RATE}],
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    embedding = {"params": [model.model.embed_tokens.weight], "weight_decay": WEIGHT_DECAY}
    adamw = torch.optim.AdamW(
        [
            {**embedding, "initial_lr": LEARNING_RATE},
            {"params": norms, "weight_decay": 0.0, "initial_lr": LEARNING_RATE},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    return [muon, adamw]


def window_at(progress: float) -> int:
    return max(window for start, window in WINDOWS if progress >= start)


def learning_rate_factor(step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to zero at ``progress`` 1."""
    return min((step + 1) / WARM_UP_STEPS, 0.5 * (1 + math.cos(math.pi * progress)))


def training_loss(
    model: Ernie4_5ForCausalLM, chunk: torch.Tensor, window: int, separator: int
) -> torch.Tensor:
    # On a CPU the fused kernel only pays where the scores no longer fit the cache.
    model.set_attn_implementation("sdpa" if window == LONGEST_WINDOW else "eager")
    inputs = chunk[:-1].view(-1, window)
    # A turn ends with </s>: the separator stands in the history only, and is never predicted.
    targets = torch.where(chunk[1:] == separator, EOS, chunk[1:])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets)


def curve_point(
    step: int, recent: list[float], model: torch.nn.Module, tuning: list[np.ndarray]
) -> dict[str, float]:
    with torch.autocast("cpu", torch.bfloat16):
        loss = mean(document_losses(model, tuning))
    return {
        "step": step,
        "train_loss": round(float(np.mean(recent)), 4),
        "tuning_loss_of_average": round(loss, 4),
    }


# --- measuring and saving --------------------------------------------------------------------


@torch.no_grad()
def document_losses(model: torch.nn.Module, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Nats per token of each document by itself, in windows of ``LONGEST_WINDOW`` tokens.

    A token at the start of a later window has no context but the token before it, as a bigram
    model has.
    """
    losses = []
    for row in rows:
        for start in range(0, len(row) - 1, LONGEST_WINDOW):
            window = torch.from_numpy(row[start : start + LONGEST_WINDOW + 1])
            logits = model(input_ids=window[None, :-1], use_cache=False).logits[0].float()
            loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            losses.append(loss.numpy())
    return losses


def mean(losses: list[np.ndarray]) -> float:
    """Over tokens, not over documents."""
    return float(np.concatenate(losses).mean())


def write_report(report: dict[str, Any], path: Path) -> None:
    text = json.dumps(report, indent=2)
    for point in report["loss_curve"]:  # one line per point reads as a table
        block = json.dumps(point, indent=2).replace("\n", "\n    ")
        text = text.replace(block, json.dumps(point))
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
