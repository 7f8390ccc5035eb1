"""The parameters of a request, checked once when they are made."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.tokenizer import check_text

MAX_SAMPLES = 128
MAX_LOGPROBS = 128
MAX_STOP_STRINGS = 64
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_NEW_TOKENS = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt.

    Attributes:
        temperature: 0 (the default) takes the most probable token; otherwise logits are divided by it. Up to
            100; a value below 1e-4 counts as 0.
        top_p: nucleus: keep the most probable tokens that reach this probability; in (0, 1].
        top_k: keep the k most probable tokens; 0 or -1 keeps all.
        min_p: keep tokens of at least this share of the largest probability; in [0, 1].
        max_tokens: new tokens at most, at least 1.
        stop: a string or up to 64 strings of 1..256 bytes. The text ends before the first one that
            is completed.
        stop_token_ids: tokens that end the answer, besides the model's own.
        n: answers per prompt, 1..128.
        seed: a signed 64-bit integer; a token depends on it, the request and the position alone.
            None draws one, which ``RequestOutput.seed`` tells.
        repetition_penalty: > 1 discourages tokens of prompt and answer; in [0.01, 100].
        presence_penalty, frequency_penalty: in [-2, 2], once or per occurrence in the answer.
        logprobs: also return this many of the most probable tokens of each step with their
            log-probabilities, 0..128, besides that of the chosen token. None: none at all.
        ignore_eos: go on after the model's own end token.
        reasoning_max_tokens: of an answer of ``chat`` that begins with reasoning, after so many tokens
            ``</think>`` is put in the place of what the model would have said next. None: never.

    Raises:
        TypeError: a value of the wrong Python type.
        InputError: a value out of range.
        LimitError: more than a limit allows.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 64
    stop: str | tuple[str, ...] | list[str] | None = None
    stop_token_ids: tuple[int, ...] | list[int] | None = None
    n: int = 1
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    ignore_eos: bool = False
    reasoning_max_tokens: int | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("temperature", _number("temperature", self.temperature, 0.0, 100.0))
        put("top_p", _number("top_p", self.top_p, 0.0, 1.0, above=True))
        put("top_k", max(0, _integer("top_k", self.top_k, -1, 2**31 - 1)))
        put("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        put("max_tokens", _integer("max_tokens", self.max_tokens, 1, MAX_NEW_TOKENS, limit=True))
        put("n", _integer("n", self.n, 1, MAX_SAMPLES, limit=True))
        if self.seed is not None:
            put("seed", _integer("seed", self.seed, -(2**63), 2**63 - 1))
        put("repetition_penalty", _number("repetition_penalty", self.repetition_penalty, 0.01, 100))
        for name in ("presence_penalty", "frequency_penalty"):
            put(name, _number(name, getattr(self, name), -2.0, 2.0))
        if self.logprobs is not None:
            put("logprobs", _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS, limit=True))
        if self.reasoning_max_tokens is not None:
            most = _integer(
                "reasoning_max_tokens", self.reasoning_max_tokens, 0, MAX_NEW_TOKENS, limit=True
            )
            put("reasoning_max_tokens", most)
        if not isinstance(self.ignore_eos, bool):
            raise TypeError(f"ignore_eos: expected a bool, got {type(self.ignore_eos).__name__}")
        put("stop", _stop_strings(self.stop))
        put("stop_token_ids", _stop_token_ids(self.stop_token_ids))

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature < 1e-4

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """A finite float in [low, high], or in (low, high] with ``above``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64
        number = math.inf
    if not low <= number <= high or (above and number == low):
        bracket = "(" if above else "["
        raise InputError(f"{name}: expected a number in {bracket}{low:g}, {high:g}], got {number}")
    return number


def _integer(name: str, value: Any, low: int, high: int, *, limit: bool = False) -> int:
    """An integer in [low, high]; with ``limit`` a larger one is a LimitError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if low <= number <= high:
        return number
    error = LimitError if limit and number > high else InputError
    raise error(f"{name}: expected an integer {low}..{high}, got {quoted(number)}")


def _stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, (list, tuple)):
        raise TypeError(f"stop: expected a string or a list of them, got {type(stop).__name__}")
    if len(strings) > MAX_STOP_STRINGS:
        raise LimitError(f"stop: expected at most {MAX_STOP_STRINGS} strings, got {len(strings)}")
    for index, string in enumerate(strings):
        check_text(string, f"stop[{index}]")
        if not string:
            raise InputError(f"stop[{index}]: expected 1..{MAX_STOP_BYTES} bytes, got 0")
        size = len(string.encode("utf-8"))
        if size > MAX_STOP_BYTES:
            raise LimitError(f"stop[{index}]: expected 1..{MAX_STOP_BYTES} bytes, got {size}")
    return tuple(dict.fromkeys(strings))


def _stop_token_ids(ids: Any) -> tuple[int, ...]:
    if ids is None:
        return ()
    # A length first: what has none may have no end.
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Collection):
        raise TypeError(f"stop_token_ids: expected a list, got {type(ids).__name__}")
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise LimitError(f"stop_token_ids: expected at most {MAX_STOP_TOKEN_IDS}, got {len(ids)}")
    return tuple(
        _integer(f"stop_token_ids[{index}]", token_id, 0, 2**31 - 1)
        for index, token_id in enumerate(ids)
    )
