"""What a good call of an op is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Op:
    call: Callable[..., Any]
    tensors: Callable[[], dict[str, np.ndarray]]
    """Makes one good value for each tensor argument."""
    scalars: dict[str, Any] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    leading: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Dimensions that other arguments must follow, so that the blame falls on those."""
