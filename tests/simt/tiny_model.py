"""A model of one layer: small enough that each of its runtime calls can fail in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ernie_kernels as ek
from tiny_checkpoint import write_checkpoint

VOCAB_SIZE = 24


def write_tiny(folder: Path) -> Path:
    write_checkpoint(
        folder,
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
    )
    return folder


def load_tiny(folder: Path, max_num_seqs: int = 2, **options: Any) -> ek.LLM:
    return ek.LLM.from_pretrained(
        folder, device="cuda", kv_cache_memory=1 << 16, max_num_seqs=max_num_seqs, **options
    )
