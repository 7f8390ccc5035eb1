"""What a model needs of a stored tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

# A size, and the keys of config.json that it comes from.
Extent = tuple[int, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A shape, and the configuration keys it comes from, for messages."""

    shape: tuple[int, ...]
    config_keys: tuple[str, ...] = ()
    # A matrix that files of one layout store either way: the shape decides, and a square one lies as
    # the layout says.
    either_way: bool = False
    # A matrix that Hugging Face files hold as [in, out]; those of Paddle hold all of them so.
    transposed: bool = False

    @classmethod
    def of(cls, *extents: Extent, either_way: bool = False, transposed: bool = False) -> Self:
        """A tensor of these sizes."""
        keys = dict.fromkeys(key for _, names in extents for key in names)
        return cls(tuple(size for size, _ in extents), tuple(keys), either_way, transposed)
