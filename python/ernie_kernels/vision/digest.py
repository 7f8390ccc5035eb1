"""Keyed names of visual items: equal names mean equal features."""

from __future__ import annotations

import hashlib
import os

import numpy as np

# Of this process alone: nobody outside can prepare two pictures of one name.
_KEY = os.urandom(32)
DIGEST_BYTES = 16


def item_key(
    kind: str, grid_thw: tuple[int, int, int], preprocessing: bytes, content: np.ndarray
) -> bytes:
    """The name of an item.

    Every part has its length before it, the contents their dtype and shape: 30 x 100 pixels and
    100 x 30 of the same bytes have two names.

    Args:
        preprocessing: whatever else decides the features, such as mean and deviation.
        content: C-contiguous.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, key=_KEY, person=b"visual")
    head = f"{kind} {grid_thw} {content.dtype.str} {content.shape}".encode()
    for part in (head, preprocessing):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    digest.update(content.data.cast("B"))
    return digest.digest()
