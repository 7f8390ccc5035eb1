"""Tiny checkpoints with a multi-token prediction module, good or bad at guessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import safetensors_bytes
from tiny_checkpoint import BASE, DTYPES, make_weights

MTP = {"method": "mtp", "num_speculative_tokens": 1}
PROJECTION = "model.mtp_linear_proj.0.weight"


def mtp_weights(config: dict[str, Any], dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The twelve tensors, random. The block is a dense layer, whatever the model's own are."""
    rng = np.random.default_rng(seed + 1000)
    hidden = config["hidden_size"]
    one_layer = {**config, "num_hidden_layers": 1}
    layer = "model.layers.0."
    weights = {
        name.replace(layer, "model.mtp_block.0."): array
        for name, array in make_weights(one_layer, dtype, seed + 2000).items()
        if name.startswith(layer)
    }
    for norm in ("emb", "hidden"):
        values = rng.uniform(0.5, 1.5, hidden)
        weights[f"model.mtp_{norm}_norm.0.weight"] = values.astype(DTYPES[dtype])
    projection = rng.standard_normal((hidden, 2 * hidden)) * (2 * hidden) ** -0.5
    weights[PROJECTION] = projection.astype(DTYPES[dtype])
    return weights


def make_guessable(weights: dict[str, np.ndarray], noise: float) -> None:
    """Let the next token follow from the last one, but for ``noise``, and the module know that.

    The residual stream is then mostly the last token's embedding, which is what the module passes
    on to the head, with a little of the hidden state.
    """
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = (array * noise).astype(array.dtype)
    projection = weights[PROJECTION]
    hidden = len(projection)
    # The embedding's norm makes values near 1 of those near 0.5 * hidden**-0.5.
    passed_on = np.eye(hidden, 2 * hidden)
    passed_on[:, hidden:] = noise * projection[:, hidden:]
    weights[PROJECTION] = passed_on.astype(projection.dtype)
    weights["model.mtp_emb_norm.0.weight"] = np.full(hidden, 0.5 * hidden**-0.5, projection.dtype)


def write_mtp_checkpoint(
    folder: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    noise: float | None = None,
    **changes: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """As ``write_checkpoint``, with the module; guesses are good where ``noise`` is small."""
    folder.mkdir(parents=True, exist_ok=True)
    # Of an untied head, the likeliest token behind a token is not that token.
    config = {**BASE, "dtype": dtype, "tie_word_embeddings": False, **changes}
    weights = make_weights(config, dtype, seed) | mtp_weights(config, dtype, seed)
    if noise is not None:
        make_guessable(weights, noise)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(folder / "model.safetensors", weights)
    return config, weights
