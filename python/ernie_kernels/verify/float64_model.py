"""The decoder in float64, from the token ids on.

Where the engine computes in bfloat16 a twin runs beside it: the same model, which rounds where the
architecture rounds. How far the twin's probabilities are from the exact ones is what no engine can
avoid, and the measure of what may be asked of one: in a model whose logits are large it is much.

Both take the experts that the engine chose, weighed by their own probabilities: where scores are
nearly equal, what rounding there is decides, and after another choice nothing can be compared. Whether
the engine chose right is judged apart, on its own logits; how often these models would have chosen
otherwise, and by how much, the report tells.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ernie_kernels.verify import formulas, routing
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import (
    Architecture,
    LayerWeights,
    Matrix,
    MLPWeights,
    RouterWeights,
)


@dataclass(slots=True)
class _Routed:
    """A layer with experts under way. Rows are those of both models."""

    x: Array
    ids: routing.Ids
    weights: Array
    sum: Array

    @classmethod
    def none(cls) -> _Routed:
        empty = np.zeros((0, 0))
        return cls(empty, empty.astype(np.int64), empty, empty)


class Float64Model:
    """The state between the layers: ``[num_tokens, hidden_size]``, twice with a twin.

    Args:
        prompts: token ids of each sequence.
        has_twin: whether one that rounds to bfloat16 runs along.
    """

    def __init__(
        self, shape: Architecture, prompts: list[npt.NDArray[np.int64]], *, has_twin: bool
    ) -> None:
        self._shape = shape
        self._has_twin = has_twin
        copies = 2 if has_twin else 1
        lengths = [len(ids) for ids in prompts] * copies
        ends = np.cumsum(lengths)
        self._sequences = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        self._num_tokens = sum(lengths) // copies
        positions = np.concatenate([np.arange(n) for n in lengths])
        self._angles = formulas.rope_angles(positions, shape.head_dim, shape.theta)
        self._hidden = np.zeros((0, shape.hidden_size))
        self._routed = _Routed.none()

    @property
    def hidden(self) -> Array:
        """The exact model's."""
        return self._hidden[: self._num_tokens]

    def embed(self, rows: Array) -> None:
        self._hidden = np.concatenate([rows, rows]) if self._has_twin else rows.copy()

    def attention(self, w: LayerWeights) -> None:
        """The first half of a layer."""
        x = self._norm(w.input_norm)
        query, key, value = (self._linear(x, m).reshape(len(x), -1, self._shape.head_dim)
                             for m in (w.q, w.k, w.v))  # fmt: skip
        query = self._rounded(formulas.rotate(query, self._angles))
        key = self._rounded(formulas.rotate(key, self._angles))
        mixed = np.empty_like(query)
        for rows in self._sequences:
            p, _ = formulas.probabilities(query[rows], key[rows])
            mixed[rows] = formulas.attend(p, value[rows])
        self._add(self._linear(self._rounded(mixed).reshape(len(x), -1), w.o))

    def dense(self, norm: Array, mlp: MLPWeights) -> None:
        """The second half of a dense layer."""
        self._add(self._mlp(self._norm(norm), mlp))

    def route(self, norm: Array, router: RouterWeights, ids: routing.Ids) -> Array:
        """The second half of a layer with experts begins; :meth:`add_expert` follows for each.

        Args:
            ids: the experts that the engine chose for each token.

        Returns:
            The exact model's logits.
        """
        x = self._norm(norm)
        logits = formulas.linear(x, router.gate)
        every_id = np.concatenate([ids, ids]) if self._has_twin else ids
        p = np.take_along_axis(routing.softmax(logits)[0], every_id, -1)
        weights = p / np.maximum(p.sum(-1, keepdims=True), self._shape.experts.norm_min)
        self._routed = _Routed(x, every_id, weights, np.zeros_like(x))
        return logits[: self._num_tokens]

    def add_expert(self, index: int, mlp: MLPWeights) -> None:
        routed = self._routed
        tokens, slots = np.nonzero(routed.ids == index)
        if len(tokens):
            first_twin = int(np.searchsorted(tokens, self._num_tokens))
            y = self._mlp(routed.x[tokens], mlp, first_twin)
            np.add.at(routed.sum, tokens, routed.weights[tokens, slots, None] * y)

    def end_experts(self, shared: MLPWeights | None) -> None:
        total = self._routed.sum
        if shared is not None:
            total = total + self._mlp(self._routed.x, shared)
        self._add(self._rounded(total))

    def final(self, norm: Array) -> Array:
        """After the last norm, of the exact model and then of its twin."""
        return self._norm(norm)

    def _norm(self, weight: Array) -> Array:
        return self._rounded(formulas.rms_norm(self._hidden, weight, self._shape.eps))

    def _mlp(self, x: Array, mlp: MLPWeights, first_twin: int | None = None) -> Array:
        gate, up = (self._linear(x, matrix, first_twin) for matrix in (mlp.gate, mlp.up))
        gated = self._rounded(formulas.silu(gate) * up, first_twin)
        return self._linear(gated, mlp.down, first_twin)

    def _linear(self, x: Array, matrix: Matrix, first_twin: int | None = None) -> Array:
        return self._rounded(formulas.linear(x, matrix.weight, matrix.bias), first_twin)

    def _add(self, x: Array) -> None:
        self._hidden = self._rounded(self._hidden + x)

    def _rounded(self, x: Array, first_twin: int | None = None) -> Array:
        """``x``, the twin's rows rounded in place: from ``first_twin`` on, or half of them."""
        if self._has_twin:
            twin = x[self._num_tokens if first_twin is None else first_twin :]
            twin[...] = twin.astype(np.float32).astype(ml_dtypes.bfloat16)
        return x
