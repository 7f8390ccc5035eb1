"""Rows that the vision tower has made of images and frames, and makes: a slice of work at a time.

Whoever is about to read some holds them; the most recent ones stay within a bound beside that, for
prompts that show the same picture again where its keys and values are not in the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakValueDictionary

from ernie_kernels._core import Tensor, empty, queue_copy
from ernie_kernels.models.ernie_vl import PATCHES_PER_PIECE
from ernie_kernels.models.vision_memory import MAX_FEATURE_BYTES
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.vision.item import VisualItem

ENTRY_BYTES = 1024  # what an entry takes beside its rows, counted generously
MAX_ENTRIES = 4096

# Items to their features one below the other, ``[sum of num_tokens, hidden_size]``; gives the products
# of each slice of the work that is done.
Encode = Callable[[Sequence[VisualItem]], Generator[int, None, Tensor]]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Features:
    """Of one image, or of two frames: ``[num_tokens, hidden_size]``, on the model's device."""

    rows: Tensor

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens ``start .. stop - 1`` of a prompt, which it is about to read."""

    media: PromptMedia
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class _Job:
    """Parts of a prompt on their way through the tower."""

    num_tokens: dict[bytes, int]  # of each by its key, in order
    slices: Generator[int, None, Tensor]


class FeatureStore:
    """All features of an engine. Not thread-safe; may be interrupted anywhere.

    Args:
        max_bytes: of those that nobody holds; and of those that prompts hold, beyond which only the
            first of them gets more.

    Attributes:
        num_encoded: images and pairs of frames that went through the vision tower.
        num_hits: that were found instead, as an earlier or another prompt shows the same.
    """

    def __init__(self, max_bytes: int = MAX_FEATURE_BYTES) -> None:
        self.num_encoded = 0
        self.num_hits = 0
        self._max_bytes = max_bytes
        self._held: WeakValueDictionary[bytes, Features] = WeakValueDictionary()
        self._recent: OrderedDict[bytes, Features] = OrderedDict()  # least recently used first
        # At most one, of a prompt that is not done.
        self._jobs: WeakKeyDictionary[PromptMedia, _Job] = WeakKeyDictionary()

    @property
    def nbytes(self) -> int:
        """Of those that are kept for later."""
        return sum(features.nbytes for features in self._recent.values())

    @property
    def total_nbytes(self) -> int:
        """Of those too that prompts hold."""
        return sum(features.nbytes for features in list(self._held.values()))

    def may_read(self, reading: Reading, readings: list[Reading]) -> bool:
        """As :meth:`find`; notes who has asked, for :meth:`next_reading`."""
        readings.append(reading)
        return self.find(reading)

    def find(self, reading: Reading) -> bool:
        """Let a prompt hold what is there of what it is about to read; whether that is all."""
        media = reading.media
        is_complete = True
        for index in media.parts_between(reading.start, reading.stop):
            key = media.parts[index].key
            if media.features[index] is None:
                media.features[index] = self._held.get(key)
                self.num_hits += media.features[index] is not None
                if key in self._recent:
                    self._recent.move_to_end(key)
            is_complete &= media.features[index] is not None
        return is_complete

    def next_reading(self, readings: Iterable[Reading]) -> Reading | None:
        """Whose images :meth:`advance` goes on with; None: there is nothing to do for now.

        Args:
            readings: of all prompts, in the order in which they came.
        """
        for media in self._jobs:
            return Reading(media, 0, 0)
        held = 0
        for reading in readings:
            if not self.find(reading):
                return None if held > self._max_bytes else reading
            features = reading.media.features
            held += sum(each.nbytes for each in features if each is not None)
        return None

    def advance(self, reading: Reading, encode: Encode) -> int:
        """Do a slice of the work that :meth:`next_reading` names; returns its products.

        An exception gives the work up, to be begun anew.
        """
        media = reading.media
        job = self._jobs.pop(media, None)
        if job is None:
            items = self._next_items(reading)
            counts = {key: item.num_tokens for key, item in items.items()}
            job = _Job(counts, encode(list(items.values())))
        try:
            products = next(job.slices)
        except StopIteration as end:
            self._finish(media, job, end.value)
            return 0
        self._jobs[media] = job
        return products

    @property
    def is_encoding(self) -> bool:
        """Whether :meth:`advance` has begun something that it has not ended."""
        return bool(self._jobs)

    def give_up_all_but(self, wanted: Collection[PromptMedia]) -> None:
        """What is under way for other prompts: theirs have ended, whoever still holds them."""
        for media in [media for media in self._jobs if media not in wanted]:
            self._jobs.pop(media, None)

    def clear(self) -> None:
        """Forget what nobody holds, and what is under way."""
        self._recent.clear()
        self._jobs.clear()

    @staticmethod
    def _next_items(reading: Reading) -> dict[bytes, VisualItem]:
        """The first missing parts by their keys, as many as run well at the same time."""
        items: dict[bytes, VisualItem] = {}
        room = PATCHES_PER_PIECE
        media = reading.media
        for index in media.parts_between(reading.start, reading.stop):
            part = media.parts[index]
            if media.features[index] is None and part.key not in items:
                frames, h, w = part.item.grid_thw
                room -= frames * h * w
                if items and room < 0:
                    break
                items[part.key] = part.item
        return items

    def _finish(self, media: PromptMedia, job: _Job, rows: Tensor) -> None:
        first = 0
        made: dict[bytes, Features] = {}
        for key, count in job.num_tokens.items():
            # Each in memory of its own: one that stays must not keep the others.
            own = empty([count, rows.shape[1]], rows.dtype_name, rows.device)
            queue_copy(own, rows[first : first + count])
            made[key] = self._held[key] = Features(own)
            first += count
        self.num_encoded += len(made)
        for index, part in enumerate(media.parts):
            if part.key in made:
                media.features[index] = made[part.key]
        for key, features in made.items():
            self._keep(key, features)

    def _keep(self, key: bytes, features: Features) -> None:
        self._recent[key] = features
        while self._recent and (len(self._recent) > MAX_ENTRIES or self.nbytes > self._max_bytes):
            self._recent.popitem(last=False)
