"""What a verification found."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ernie_kernels.errors import ArgumentError
from ernie_kernels.verify.bounds import Expected
from ernie_kernels.verify.formulas import Array, log_softmax


@dataclass(frozen=True, slots=True)
class Limits:
    """When a verification fails.

    Attributes:
        bound_scale: every bound of a part is multiplied by it; 1 is what the ops promise.
        mean_kl: nats; of the engine's next-token probabilities from those of float64.
        top1: share of the tokens, near ties left out, whose most probable next token is the same.
        near_tie: nats; where float64's first leads its second by less, either counts as right.
        over_rounding_kl, over_rounding_top1: added to the two are so many times the KL and the
            disagreement that rounding alone makes in float64, where the engine rounds to bfloat16.
    """

    bound_scale: float
    mean_kl: float
    top1: float
    near_tie: float
    over_rounding_kl: float = 0.0
    over_rounding_top1: float = 0.0

    def __post_init__(self) -> None:
        least = {"bound_scale": sys.float_info.min}
        most = {"top1": 1.0}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not least.get(name, 0.0) <= value <= most.get(name, sys.float_info.max):  # NaN too
                expected = "0 to 1" if name in most else "a number above 0"
                raise ArgumentError(f"verify: {name}: expected {expected}, got {value!r}")

    @classmethod
    def default(cls, dtype: str, *, is_quantized: bool, has_4_bits: bool = False) -> Limits:
        """Float32: what sums in float32 explain. Bfloat16: some times what rounding alone explains.

        Below the bounds of the parts a net, wide enough that a right model is not refused: where
        all of the demo model has 4 bits (``has_4_bits``: its dense matrices), its mean KL is 0.13.
        """
        exact = dtype == "float32"
        allowed = {} if exact else {"over_rounding_kl": 10.0, "over_rounding_top1": 4.0}
        if has_4_bits:
            return cls(1.0, mean_kl=0.5, top1=0.5, near_tie=0.5, **allowed)
        if is_quantized:
            return cls(1.0, mean_kl=5e-2, top1=0.9, near_tie=0.5, **allowed)
        if exact:
            return cls(1.0, mean_kl=1e-5, top1=0.995, near_tie=0.01)
        return cls(1.0, mean_kl=1e-5, top1=0.98, near_tie=0.1, **allowed)


@dataclass(frozen=True, slots=True)
class PartResult:
    """One part on the engine's own input: its worst element, in shares of its bound."""

    name: str
    error: float
    bound: float  # of the same element
    share: float  # error / bound; infinite where either is NaN, and for any error over a bound of 0

    @classmethod
    def of(cls, name: str, actual: Array, expected: Expected, scale: float = 1.0) -> PartResult:
        bound = scale * expected.bound
        with np.errstate(divide="ignore", invalid="ignore"):
            error = np.abs(actual - expected.value)
            error = np.where(np.isnan(error), np.inf, error)
            share = np.where(error == 0, 0.0, error / bound)
        share = np.where(np.isnan(share), np.inf, share)  # NaN would be no maximum
        worst = np.unravel_index(np.argmax(share), share.shape)
        return cls(name, float(error[worst]), float(bound[worst]), float(share[worst]))

    @property
    def passed(self) -> bool:
        return self.share <= 1


def worst_of(parts: Iterable[PartResult]) -> PartResult:
    return max(parts, key=lambda part: part.share)


@dataclass(frozen=True, slots=True)
class StageResult:
    """The embedding, a layer, or the head.

    Attributes:
        max_error, relative_error: of its output against a float64 model that has run from the token
            ids on: the largest difference, and norm of the differences / norm of the output. They
            accumulate from layer to layer and are told, not judged.
        parts: judged one by one, each on the engine's own input.
        num_other_choices: tokens for which that model, left to itself, would choose other experts. It
            takes the engine's, which are judged as a part.
        widest_gap: between scores of experts that it would choose and of those it takes.
    """

    name: str
    max_error: float
    relative_error: float
    parts: tuple[PartResult, ...]
    num_other_choices: int = 0
    widest_gap: float = 0.0

    @property
    def worst(self) -> PartResult:
        return worst_of(self.parts)

    @property
    def passed(self) -> bool:
        return all(part.passed for part in self.parts)


def stage_of(
    name: str,
    actual: Array,
    expected: Array,
    parts: list[PartResult],
    num_other_choices: int = 0,
    widest_gap: float = 0.0,
) -> StageResult:
    """Of a stage's output and the float64 model's."""
    difference = actual - expected
    norm = float(np.linalg.norm(expected))
    relative = float(np.linalg.norm(difference)) / norm if norm else float("inf")
    largest = float(np.abs(difference).max())
    return StageResult(name, largest, relative, tuple(parts), num_other_choices, widest_gap)


@dataclass(frozen=True, slots=True)
class LogitsResult:
    """The engine's logits, as ``LLM.forward`` gives them, against float64's.

    KL in nats; ``top1`` counts every token, ``clear_top1`` those where float64 has no near tie.
    """

    num_tokens: int
    mean_kl: float
    max_kl: float
    top1: float
    clear_top1: float

    @classmethod
    def of(cls, actual: Array, expected: Array, near_tie: float) -> LogitsResult:
        p, q = log_softmax(expected), log_softmax(actual)
        divergence = (np.exp(p) * (p - q)).sum(-1)
        same = actual.argmax(-1) == expected.argmax(-1)
        second, first = np.sort(np.partition(expected, -2)[:, -2:]).T
        clear = first - second >= near_tie
        # Of no clear token none is wrong.
        clear_top1 = float(same[clear].mean()) if clear.any() else 1.0
        return cls(
            num_tokens=len(actual),
            mean_kl=float(divergence.mean()),
            max_kl=float(divergence.max()),
            top1=float(same.mean()),
            clear_top1=clear_top1,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that :func:`~ernie_kernels.verify.verify` found."""

    model: str
    reference: str
    device: str
    dtype: str
    quantization: str | None
    cpu_tier: str
    prompt_lengths: tuple[int, ...]
    limits: Limits
    pictures: tuple[str, ...] = ()  # what the last prompt shows
    stages: list[StageResult] = field(default_factory=list)
    logits: LogitsResult | None = None
    rounding: LogitsResult | None = None  # of float64 that rounds to bfloat16 as the engine does

    @property
    def mean_kl_limit(self) -> float:
        """With what rounding alone makes, known no better than to 0.3 nats on one token."""
        over = 0.0
        if self.rounding is not None:
            over = self.rounding.mean_kl + 0.3 / self.rounding.num_tokens
        return self.limits.mean_kl + self.limits.over_rounding_kl * over

    @property
    def top1_limit(self) -> float:
        """With what rounding alone makes, known no better than to one token."""
        over = 0.0
        if self.rounding is not None:
            over = 1 - self.rounding.clear_top1 + 1 / self.rounding.num_tokens
        return max(0.0, self.limits.top1 - self.limits.over_rounding_top1 * over)

    @property
    def logits_failures(self) -> list[str]:
        found = []
        if self.logits is not None:  # written so that NaN fails
            if not self.logits.mean_kl <= self.mean_kl_limit:
                found.append(f"mean KL {self.logits.mean_kl:.2g} is over {self.mean_kl_limit:.2g}")
            if not self.logits.clear_top1 >= self.top1_limit:
                found.append(
                    f"top-1 agreement {self.logits.clear_top1:.1%} is under {self.top1_limit:.1%}"
                )
        return found

    @property
    def failures(self) -> list[str]:
        """What is wrong, a line each, in the order of the model."""
        found = [
            f"{stage.name}: {part.name}: error {part.error:.2g}, bound {part.bound:.2g}"
            for stage in self.stages
            for part in stage.parts
            if not part.passed
        ]
        return found + self.logits_failures

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is infinite or NaN becomes None."""
        result = _finite(asdict(self))
        for stage, of_stage in zip(result["stages"], self.stages, strict=True):
            stage["passed"] = of_stage.passed
            for part, of_part in zip(stage["parts"], of_stage.parts, strict=True):
                part["passed"] = of_part.passed
        return {
            **result,
            "mean_kl_limit": self.mean_kl_limit,
            "top1_limit": self.top1_limit,
            "failures": self.failures,
            "passed": self.passed,
        }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
