"""What the matrices of a model can be rounded to while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WINT8 = "wint8"  # int8 weights, activations as they are
W8A8 = "w8a8"  # the same weights, and int8 activations; CPU only
WINT4 = "wint4"  # weights of 4 bits

# As a word for a whole model, wint4 leaves 8 bits in all but the experts, as FastDeploy does.
_WORDS = {
    None: (None, None),
    WINT8: (WINT8, WINT8),
    W8A8: (W8A8, W8A8),
    WINT4: (WINT8, WINT4),
}
QUANTIZATIONS = (WINT8, W8A8, WINT4)

# FastDeploy's way to say it for each kind of matrix.
DENSE_KEY, EXPERTS_KEY = "dense_quant_type", "moe_quant_type"
METHOD_KEY, MIXED = "quantization", "mix_quant"


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the matrices of a model are kept: None as they are stored, or ``WINT8``, ``W8A8``, ``WINT4``.

    Routers, norms and biases never are rounded, nor an embedding that is no head.

    Attributes:
        dense: of projections, of shared experts too, and of the vocabulary head.
        experts: of the experts that a router chooses.
    """

    dense: str | None = None
    experts: str | None = None

    @classmethod
    def of(cls, asked: Quantization | Mapping[str, Any] | str | None) -> Quantization:
        """Of one of ``QUANTIZATIONS`` or of FastDeploy's two keys; ``load_arguments`` checks them."""
        if isinstance(asked, Quantization):
            return asked
        if isinstance(asked, Mapping):
            return cls(asked.get(DENSE_KEY), asked.get(EXPERTS_KEY))
        return cls(*_WORDS[asked])

    @property
    def name(self) -> str | None:
        """The word for it where there is one; None where nothing is rounded."""
        for word, kinds in _WORDS.items():
            if kinds == (self.dense, self.experts):
                return word
        parts = (("dense", self.dense), ("experts", self.experts))
        return " and ".join(f"{what} {kind}" for what, kind in parts if kind)

    def expert_dtype(self, weight_dtype: str) -> str:
        """In which experts lie in memory, where those that are not rounded have ``weight_dtype``."""
        stored = stored_as(self.experts)
        return weight_dtype if stored is None else ELEMENT_DTYPES[stored]

    @property
    def rounds_activations(self) -> bool:
        return W8A8 in (self.dense, self.experts)


# Of the elements of a rounded matrix; those of 4 bits lie two in a byte.
ELEMENT_DTYPES = {WINT8: "int8", WINT4: "uint8"}


def stored_as(kind: str | None) -> str | None:
    """How a matrix of this kind lies in memory: the weights of ``W8A8`` are those of ``WINT8``."""
    return WINT8 if kind == W8A8 else kind
