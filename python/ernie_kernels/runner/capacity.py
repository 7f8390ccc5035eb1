"""How large the cache is and how long a sequence may be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ernie_kernels import _core
from ernie_kernels.errors import ArgumentError, CapacityError

# Of the memory that is available, unless the caller says how much. A GPU is as a rule there for the
# model alone; beside the cache it holds the activations of a step, graphs and what others take.
HOST_SHARE, DEVICE_SHARE = 0.1, 0.9
DEVICE_RESERVE = 256 << 20  # bytes
# The default cache holds one sequence of this many tokens even if that is more than its share.
DEFAULT_MIN_TOKENS = 8192
CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class CachePlan:
    num_blocks: int
    max_model_len: int  # tokens of one sequence, prompt and answer


def plan_cache(
    *,
    bytes_per_block: int,
    block_size: int,
    max_position_embeddings: int,
    max_model_len: int | None,
    max_num_seqs: int,
    kv_cache_memory: int | None,
    available_memory: int,
    share: float = HOST_SHARE,
) -> CachePlan:
    """Choose the number of blocks and the model length.

    A given ``kv_cache_memory`` (bytes) is used in full, though never for more than
    ``max_num_seqs`` sequences of the model length. Otherwise the cache gets a ``share`` of
    the available memory, and at least one sequence of the model length, up to 8192 tokens of it.

    Raises:
        ArgumentError: ``max_model_len`` is beyond the model's positions, or ``kv_cache_memory``
            holds no block.
        CapacityError: the cache cannot hold one sequence of the ``max_model_len`` asked for.
    """
    if max_model_len is not None and not 1 <= max_model_len <= max_position_embeddings:
        raise ArgumentError(
            f"max_model_len: expected 1..{max_position_embeddings} (max_position_embeddings of "
            f"config.json), got {max_model_len}"
        )
    wanted_len = max_model_len or max_position_embeddings
    blocks_of_one = -(-wanted_len // block_size)
    if kv_cache_memory is None:
        blocks = int(available_memory * share) // bytes_per_block
        least = wanted_len if max_model_len else min(wanted_len, DEFAULT_MIN_TOKENS)
        blocks = max(blocks, -(-least // block_size))
    else:
        blocks = kv_cache_memory // bytes_per_block
        if blocks < 1:
            raise ArgumentError(
                f"kv_cache_memory: expected at least {bytes_per_block} bytes, one block of "
                f"{block_size} tokens, got {kv_cache_memory}"
            )
    blocks = min(blocks, blocks_of_one * max_num_seqs)
    if max_model_len is not None and blocks < blocks_of_one:
        raise CapacityError(
            f"max_model_len={max_model_len} needs {blocks_of_one * bytes_per_block} bytes of KV "
            f"cache, kv_cache_memory allows {blocks * bytes_per_block}; raise it or lower "
            "max_model_len"
        )
    return CachePlan(blocks, min(wanted_len, blocks * block_size))


def available_memory_for_cache(device: str, other_bytes: int) -> tuple[int, float]:
    """What weights and images, ``other_bytes``, leave for the cache and all else, in bytes, and the
    cache's share of it."""
    if device == "cpu":
        return max(0, available_host_memory() - other_bytes), HOST_SHARE
    free, _ = _core.device_memory(device)
    return max(0, free - other_bytes - DEVICE_RESERVE), DEVICE_SHARE


def available_host_memory() -> int:
    """Bytes that may be allocated without swapping, within the limit of a container."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in meminfo.splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    in_container = _available_in_container(CONTROL_GROUP)
    return available if in_container is None else min(available, in_container)


def _available_in_container(group: Path) -> int | None:
    """What the control group, of the second or the first version, has left; None: no limit.

    Pages that only hold what was read from files count as used there, and are the first to go: a
    checkpoint that has just been read must not look like memory that is taken.
    """
    for folder, limit, usage, prefix in (
        (group, "memory.max", "memory.current", ""),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            counts = {
                name: int(count) for name, _, count in (line.partition(" ") for line in lines)
            }
        except (OSError, ValueError):  # no control group of this version, or "max"
            continue
        files = sum(counts.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
        return max(0, left + files)
    return None
