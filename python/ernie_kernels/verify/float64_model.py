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

import numpy as np

from ernie_kernels.verify import formulas, routing
from ernie_kernels.verify.architecture import Architecture
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.media import Prompt
from ernie_kernels.verify.stored_weights import LayerWeights, MLPWeights, RouterWeights
from ernie_kernels.verify.twin import Twin


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
        prompts: of each sequence.
        angles: of every token's pairs, as :func:`.formulas.rope_angles` gives them.
        twin: whether one runs along.
    """

    def __init__(
        self, shape: Architecture, prompts: list[Prompt], angles: Array, twin: Twin
    ) -> None:
        self._shape = shape
        self._twin = twin
        lengths = [len(prompt.ids) for prompt in prompts] * twin.copies
        ends = np.cumsum(lengths)
        self._sequences = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        self._num_tokens = sum(lengths) // twin.copies
        self._angles = np.concatenate([angles] * twin.copies)
        self._hidden = np.zeros((0, shape.hidden_size))
        self._routed = _Routed.none()

    @property
    def hidden(self) -> Array:
        """The exact model's."""
        return self._twin.exact(self._hidden)

    def embed(self, rows: Array, places: routing.Ids, features: Array) -> None:
        """The first layer's input.

        Args:
            rows: of the table, for every token.
            places: the tokens whose rows are features instead.
            features: of these, with those of the twin.
        """
        self._hidden = self._twin.of(rows)
        every_place = [places + copy * self._num_tokens for copy in range(self._twin.copies)]
        self._hidden[np.concatenate(every_place)] = features

    def attention(self, w: LayerWeights) -> None:
        """The first half of a layer."""
        x = self._norm(w.input_norm)
        query, key, value = (self._twin.linear(x, m).reshape(len(x), -1, self._shape.head_dim)
                             for m in (w.q, w.k, w.v))  # fmt: skip
        query = self._twin.rounded(formulas.rotate(query, self._angles))
        key = self._twin.rounded(formulas.rotate(key, self._angles))
        mixed = np.empty_like(query)
        for rows in self._sequences:
            p, _ = formulas.probabilities(query[rows], key[rows])
            mixed[rows] = formulas.attend(p, value[rows])
        self._add(self._twin.linear(self._twin.rounded(mixed).reshape(len(x), -1), w.o))

    def dense(self, norm: Array, mlp: MLPWeights) -> None:
        """The second half of a dense layer."""
        self._add(self._mlp(self._norm(norm), mlp))

    def route(
        self,
        norm: Array,
        routers: tuple[RouterWeights, ...],
        banks: routing.Ids,
        ids: routing.Ids,
    ) -> Array:
        """The second half of a layer with experts begins; :meth:`add_expert` follows for each.

        Args:
            banks: of experts that each token asks.
            ids: the experts that the engine chose for each token, among those of all banks.

        Returns:
            The exact model's logits, each token's of its own bank.
        """
        x = self._norm(norm)
        count = self._shape.experts.count
        every_bank = np.concatenate([banks] * self._twin.copies)
        every_id = np.concatenate([ids] * self._twin.copies)
        logits = np.empty((len(x), count))
        for bank, router in enumerate(routers):
            rows = every_bank == bank
            logits[rows] = formulas.linear(x[rows], router.gate)
        p = np.take_along_axis(routing.softmax(logits)[0], every_id % count, -1)
        weights = p / np.maximum(p.sum(-1, keepdims=True), self._shape.experts.norm_min)
        self._routed = _Routed(x, every_id, weights, np.zeros_like(x))
        return self._twin.exact(logits)

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
        self._add(self._twin.rounded(total))

    def final(self, norm: Array) -> Array:
        """After the last norm, of the exact model and then of its twin."""
        return self._norm(norm)

    def _norm(self, weight: Array) -> Array:
        return self._twin.rounded(formulas.rms_norm(self._hidden, weight, self._shape.eps))

    def _mlp(self, x: Array, mlp: MLPWeights, first_twin: int | None = None) -> Array:
        gate, up = (self._twin.linear(x, matrix, first_twin) for matrix in (mlp.gate, mlp.up))
        gated = self._twin.rounded(formulas.silu(gate) * up, first_twin)
        return self._twin.linear(gated, mlp.down, first_twin)

    def _add(self, x: Array) -> None:
        self._hidden = self._twin.rounded(self._hidden + x)
