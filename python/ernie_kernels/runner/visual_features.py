"""Rows that the vision tower has made of images and frames, kept while they are of use.

Whoever is about to read some holds them; the most recent ones stay within a bound beside that, for
prompts that show the same picture again where its keys and values are not in the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from ernie_kernels._core import Tensor, empty, queue_copy
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.vision.item import VisualItem

# In bfloat16 with 2560 values a row, 13,000 rows: forty pictures of 512 x 512.
MAX_BYTES = 64 << 20
ENTRY_BYTES = 1024  # what an entry takes beside its rows, counted generously
MAX_ENTRIES = 4096


@dataclass(slots=True, weakref_slot=True, eq=False)
class Features:
    """Of one image, or of two frames: ``[num_tokens, hidden_size]``, on the model's device."""

    rows: Tensor

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + ENTRY_BYTES


class FeatureStore:
    """All features of an engine. Not thread-safe; may be interrupted anywhere.

    Args:
        max_bytes: of those that nobody holds.

    Attributes:
        num_encoded: images and pairs of frames that went through the vision tower.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.num_encoded = 0
        self._max_bytes = max_bytes
        self._held: WeakValueDictionary[bytes, Features] = WeakValueDictionary()
        self._recent: OrderedDict[bytes, Features] = OrderedDict()  # least recently used first

    @property
    def nbytes(self) -> int:
        """Of those that are kept for later."""
        return sum(features.nbytes for features in self._recent.values())

    def provide(
        self,
        media: PromptMedia,
        start: int,
        stop: int,
        encode: Callable[[Sequence[VisualItem]], Tensor],
    ) -> None:
        """Let ``media`` have the features of its tokens ``start .. stop - 1``.

        Args:
            encode: items to their features one below the other, ``[sum of num_tokens,
                hidden_size]``. Parts of equal contents are encoded once.
        """
        missing: dict[bytes, VisualItem] = {}
        wanted = media.parts_between(start, stop)
        for index in wanted:
            part = media.parts[index]
            if media.features[index] is None:
                media.features[index] = self._held.get(part.key)
                if part.key in self._recent:
                    self._recent.move_to_end(part.key)
            if media.features[index] is None:
                missing[part.key] = part.item
        if not missing:
            return
        rows = encode(list(missing.values()))
        first = 0
        made: dict[bytes, Features] = {}
        for key, item in missing.items():
            # Each in memory of its own: one that stays must not keep the others.
            own = empty([item.num_tokens, rows.shape[1]], rows.dtype_name, rows.device)
            queue_copy(own, rows[first : first + item.num_tokens])
            made[key] = self._held[key] = Features(own)
            first += item.num_tokens
        self.num_encoded += len(made)
        for index in wanted:
            if media.features[index] is None:
                media.features[index] = made[media.parts[index].key]
        for key, features in made.items():
            self._keep(key, features)

    def clear(self) -> None:
        """Forget what nobody holds."""
        self._recent.clear()

    def _keep(self, key: bytes, features: Features) -> None:
        self._recent[key] = features
        while self._recent and (len(self._recent) > MAX_ENTRIES or self.nbytes > self._max_bytes):
            self._recent.popitem(last=False)
