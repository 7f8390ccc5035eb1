"""The dense decoder in float64, from the token ids on.

Where the engine computes in bfloat16 a twin runs beside it: the same model, which rounds where the
architecture rounds. How far the twin's probabilities are from the exact ones is what no engine can
avoid, and the measure of what may be asked of one: in a model whose logits are large it is much.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ernie_kernels.verify import formulas
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Architecture, LayerWeights, Matrix


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

    @property
    def hidden(self) -> Array:
        """The exact model's."""
        return self._hidden[: self._num_tokens]

    def embed(self, rows: Array) -> None:
        self._hidden = np.concatenate([rows, rows]) if self._has_twin else rows.copy()

    def layer(self, w: LayerWeights) -> None:
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
        x = self._norm(w.post_norm)
        gated = formulas.silu(self._linear(x, w.gate)) * self._linear(x, w.up)
        self._add(self._linear(self._rounded(gated), w.down))

    def final(self, norm: Array) -> Array:
        """After the last norm, of the exact model and then of its twin."""
        return self._norm(norm)

    def _norm(self, weight: Array) -> Array:
        return self._rounded(formulas.rms_norm(self._hidden, weight, self._shape.eps))

    def _linear(self, x: Array, matrix: Matrix) -> Array:
        return self._rounded(formulas.linear(x, matrix.weight, matrix.bias))

    def _add(self, x: Array) -> None:
        self._hidden = self._rounded(self._hidden + x)

    def _rounded(self, x: Array) -> Array:
        """``x``, the twin's rows rounded in place."""
        if self._has_twin:
            twin = x[self._num_tokens :]
            twin[...] = twin.astype(np.float32).astype(ml_dtypes.bfloat16)
        return x
