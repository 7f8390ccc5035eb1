"""Ops on the paged key/value cache. C++ contract: csrc/ops/kv_cache.h."""

from __future__ import annotations

from ernie_kernels import _core
from ernie_kernels._core import Tensor


def kv_cache_write(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Store the keys and values of this step's tokens in the cache, in place.

    ``k_cache[slot // block_size, h, slot % block_size] = key[t, h]`` with
    ``slot = slot_mapping[t]``, and the same for the values.

    Args:
        key: ``[num_tokens, num_kv_heads, head_dim]``, float32 or bfloat16, last stride 1; rotated.
        value: same shape and dtype as ``key``, last stride 1.
        k_cache: ``[num_blocks, num_kv_heads, block_size, head_dim]``, dtype of ``key``,
            contiguous; written.
        v_cache: same shape and dtype as ``k_cache``, contiguous; written.
        slot_mapping: ``[num_tokens]``, int32 or int64, contiguous. -1 skips the token; all others
            lie in ``[0, num_blocks * block_size)`` and differ from one another.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU,
            a slot is out of range. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the block layout of Kwon et al. 2023, arXiv:2309.06180, heads before rows.
    """
    _core.kv_cache_write(key, value, k_cache, v_cache, slot_mapping)


def kv_cache_copy_blocks(k_cache: Tensor, v_cache: Tensor, block_mapping: Tensor) -> None:
    """Copy whole blocks within both caches, in place.

    ``cache[to] = cache[from]`` for every row ``from, to`` of ``block_mapping``.

    Args:
        k_cache: ``[num_blocks, num_kv_heads, block_size, head_dim]``, any dtype, contiguous.
        v_cache: same shape and dtype as ``k_cache``, contiguous.
        block_mapping: ``[num_pairs, 2]``, int32 or int64, contiguous. No block is written twice or
            both read and written.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU,
            a block is out of range, written twice, or read and written. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: copy-on-write of shared blocks, Kwon et al. 2023, arXiv:2309.06180.
    """
    _core.kv_cache_copy_blocks(k_cache, v_cache, block_mapping)
