"""Trains the demo checkpoint: a small dense ERNIE-4.5 on the documentation of Python.

    python python/ernie_kernels/demo/train.py --output /tmp/demo

Needs torch and transformers, no GPU and no download: the text is the standard library of the
Python that runs this. On two cores it takes under half an hour. The output folder is a checkpoint
in Hugging Face layout, with `training.json` beside it: figures, loss curve, baseline, versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import conversations
import corpus
import numpy as np
import sentencepiece
import torch
import transformers
from bigram import Bigram
from tqdm import tqdm
from transformers import Ernie4_5Config, Ernie4_5ForCausalLM
from vocabulary import BOS, EOS, Vocabulary, tokenizer_config, train_model

VOCAB_SIZE = 2048
MAX_POSITIONS = 1024
TOKENS_PER_STEP = 4096
# Attention over 512 positions costs more than everything else together, so windows start short and
# grow, early enough for the learning rate to teach the later positions: (from progress, tokens).
WINDOWS = ((0.0, 128), (0.35, 256), (0.75, 512))
LONGEST_WINDOW = 512
# Muon for the matrices (its updates scaled to those of AdamW), AdamW for the embedding and norms.
# After 400 steps the tuning loss was 4.12 nats/token, against 4.52 with AdamW alone.
MATRIX_LEARNING_RATE = 6e-3
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
WEIGHT_DECAY = 0.1
AVERAGE_DECAY = 0.995
STEPS_PER_LOG = 250


@dataclass(frozen=True)
class TokenSets:
    """Token ids; a row per document, ``<s>`` first and ``</s>`` last."""

    train: list[np.ndarray]  # everything that is trained on, some texts in several renderings
    train_documents: list[np.ndarray]  # every training document once
    tuning: list[np.ndarray]
    held_out: list[np.ndarray]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    started = time.monotonic()

    split = corpus.load()
    dialogues = list(conversations.from_documents(split.train))
    model_proto = train_model(vocabulary_lines(split.train, dialogues), VOCAB_SIZE)
    vocabulary = Vocabulary(model_proto)
    tokens = encode(split, dialogues, vocabulary)
    print(f"{len(split.train)} documents, {sum(map(len, tokens.train))} training tokens")

    bigram = Bigram(np.concatenate(tokens.train_documents), VOCAB_SIZE)
    scale = bigram.best_scale(tokens.tuning)
    bigram_loss = mean([bigram.losses(row, scale) for row in tokens.held_out])
    print(f"bigram: {bigram_loss:.4f} nats/token held out")

    model = Ernie4_5ForCausalLM(model_config())
    curve = train(model, tokens, vocabulary.separator, arguments)

    arguments.output.mkdir(parents=True, exist_ok=True)
    save(model, model_proto, arguments.output)
    saved = Ernie4_5ForCausalLM.from_pretrained(arguments.output, dtype=torch.bfloat16)
    loss = mean(document_losses(saved, tokens.held_out))
    held_out_bytes = sum(len(document.text.encode()) for document in split.held_out)
    held_out_tokens = sum(len(row) - 1 for row in tokens.held_out)
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
            "bytes": sum(len(document.text.encode()) for document in split.train),
            "document_tokens": sum(map(len, tokens.train_documents)),
            "tokens_with_all_renderings": sum(map(len, tokens.train)),
            "text_sha256": digest(split.train),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "threads": arguments.threads,
            "minutes": round((time.monotonic() - started) / 60, 1),
            "cpu_minutes": round(time.process_time() / 60, 1),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sentencepiece": sentencepiece.__version__,
        },
        "loss_curve": curve,
    }
    text = json.dumps(report, indent=2)
    # One line per point of the curve reads as a table.
    for point in curve:
        text = text.replace(json.dumps(point, indent=2).replace("\n", "\n    "), json.dumps(point))
    (arguments.output / "training.json").write_text(text + "\n", encoding="utf-8")
    print(f"held out: {loss:.4f} nats/token, {loss / bigram_loss:.3f} of the bigram's")


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
        default=4000,
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
    parser.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
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


# --- data ------------------------------------------------------------------------------------


def vocabulary_lines(
    documents: list[corpus.Document], dialogues: list[conversations.Conversation]
) -> Iterator[str]:
    for document in documents:
        yield from filter(None, document.text.split("\n"))
    for dialogue in dialogues:
        for question, answer in dialogue.turns:
            yield from (conversations.render_question(question) + answer).split("\n")


def encode(
    split: corpus.Split, dialogues: list[conversations.Conversation], vocabulary: Vocabulary
) -> TokenSets:
    def rows(documents: list[corpus.Document]) -> list[np.ndarray]:
        return [np.array(vocabulary.encode_text(document.text)) for document in documents]

    # Docstrings once more without the signature above them, so that a text may start with one.
    bare = [
        np.array(vocabulary.encode_text(passage.text))
        for document in split.train
        for passage in document.passages
        if passage.signature
    ]
    spoken = [np.array(vocabulary.encode_conversation(dialogue)) for dialogue in dialogues]
    documents = rows(split.train)
    return TokenSets(
        train=documents + bare + spoken,
        train_documents=documents,
        tuning=rows(split.tuning),
        held_out=rows(split.held_out),
    )


def token_stream(rows: list[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """``TOKENS_PER_STEP`` + 1 tokens at a time, the documents in a new order in each pass."""
    random = np.random.default_rng(seed)
    pending = np.zeros(0, dtype=np.int64)
    while True:
        order = random.permutation(len(rows))
        pending = np.concatenate([pending, *(rows[i] for i in order)])
        while len(pending) > TOKENS_PER_STEP:
            yield pending[: TOKENS_PER_STEP + 1]
            pending = pending[TOKENS_PER_STEP:]


def digest(documents: list[corpus.Document]) -> str:
    joined = "\0".join(document.text for document in documents)
    return hashlib.sha256(joined.encode()).hexdigest()


# --- training --------------------------------------------------------------------------------


def train(
    model: Ernie4_5ForCausalLM, tokens: TokenSets, separator: int, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """Trains in place and leaves averaged weights in ``model``; returns the loss curve."""
    optimizers = make_optimizers(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY)
    )
    curve: list[dict[str, float]] = []
    recent: list[float] = []
    started = time.monotonic()
    stream = token_stream(tokens.train, arguments.seed)
    bar = tqdm(total=arguments.steps, unit="step")
    for step in range(arguments.steps):
        minutes = (time.monotonic() - started) / 60
        progress = max(step / arguments.steps, minutes / arguments.minutes)
        if progress >= 1:
            break
        chunk = torch.from_numpy(next(stream))
        loss = training_loss(model, chunk, window_at(progress), separator)
        loss.backward()
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
        if (step + 1) % STEPS_PER_LOG == 0:
            curve.append(curve_point(step + 1, recent, average.module, tokens.tuning))
            bar.write(json.dumps(curve[-1]))
            recent.clear()
    bar.close()
    model.load_state_dict(average.module.state_dict())
    if recent:
        curve.append(curve_point(step + 1, recent, model, tokens.tuning))
    return curve


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


def save(model: Ernie4_5ForCausalLM, model_proto: bytes, folder: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(model_proto)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config(MAX_POSITIONS), indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
