"""Names for the contents of cache blocks: equal names mean equal keys and values."""

from __future__ import annotations

import hashlib
import os

import numpy as np

# Of this process alone: nobody outside can prepare two contents of one name.
_KEY = os.urandom(32)
DIGEST_BYTES = 16


def block_hash(parent: bytes, token_ids: np.ndarray, media: bytes = b"") -> bytes:
    """The name of a full block: of its tokens and of all that comes before them.

    Args:
        parent: the name of the block before; of the first block what :func:`salt_hash` returns.
        token_ids: int64, those of the block, and those behind it that its contents depend on. As many
            for all blocks.
        media: what images and videos make of them, as :meth:`.PromptMedia.name_of` says.
    """
    return _digest(parent + token_ids.tobytes() + media, b"block")


def salt_hash(salt: bytes) -> bytes:
    """Where a sequence's names begin. Sequences of different ``salt`` never share a block."""
    return _digest(salt, b"salt")


def _digest(data: bytes, person: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, key=_KEY, person=person).digest()
