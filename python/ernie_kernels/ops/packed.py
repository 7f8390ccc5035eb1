"""Weights in the order that the CPU's kernels read them, and what every op that takes one asks."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels._core import Tensor
from ernie_kernels.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix ``[out_features, in_features]`` in panels of 16 rows, padded with zeros.

    Attributes:
        tensor: the panels; their dtype and shape are the subclass's.
        out_features: rows.
        in_features: columns.
    """

    tensor: Tensor
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes


def matrix_of(
    op: str,
    weight: Tensor | PackedMatrix,
    kind: type[PackedMatrix],
    x: Tensor,
    out: Tensor | None,
    columns: str = "out_features",
) -> tuple[Tensor | PackedMatrix, int | None]:
    """The tensor of a weight of this kind, and its rows; ``(weight, None)`` of anything else.

    Panels are padded, so the core cannot tell 17 features from 20: widths of ``x`` and ``out`` are
    checked here. ``columns`` is what those of ``out`` are called: ``"intermediate_size"`` is half as
    many as the weight has rows.
    """
    if not isinstance(weight, kind):
        return weight, None
    check_width(f"{op}: x", x, "in_features", weight.in_features)
    rows = weight.out_features
    if columns == "out_features":
        check_width(f"{op}: out", out, columns, rows)
    elif rows % 2 == 0:
        check_width(f"{op}: out", out, columns, rows // 2)
    return weight.tensor, rows


def check_width(name: str, tensor: Tensor | None, what: str, expected: int) -> None:
    shape = getattr(tensor, "shape", None)
    if shape is not None and len(shape) == 2 and shape[1] != expected:
        message = f"{name}: expected {what}={expected} columns, got shape {list(shape)}"
        raise ArgumentError(message)
