"""What a load came to, in one line of the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_kernels.checkpoint_file import quoted

if TYPE_CHECKING:
    from ernie_kernels.llm import LLM
    from ernie_kernels.models.quantization import Quantization

logger = logging.getLogger("ernie_kernels")


def log_loaded(llm: LLM, folder: Path, quantization: Quantization) -> None:
    stats = llm.stats()
    limit = llm.config.max_position_embeddings
    logger.info(
        "%s: %.1f MB of weights%s, %s on %s (%s, %d threads), cache of %d tokens (%.1f MB), "
        "model length %d%s",
        quoted(folder.resolve().name),
        stats["weight_bytes"] / 1e6,
        "" if quantization.name is None else f" ({quantization.name})",
        llm.dtype,
        llm.device,
        stats["cpu_tier"],
        stats["num_threads"],
        stats["num_blocks"] * stats["block_size"],
        stats["kv_cache_bytes"] / 1e6,
        llm.max_model_len,
        "" if llm.max_model_len == limit else f" of {limit}",
    )
