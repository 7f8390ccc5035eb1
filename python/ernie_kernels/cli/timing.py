"""Tokens per second of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Stopwatch:
    """Measures one call: start it before, tell it of every step's tokens."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: float | None = None
        self._last = self._start
        self._num_first_tokens = 0
        self._num_tokens = 0

    def count(self, num_tokens: int) -> None:
        """``num_tokens`` have just come."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
            self._num_first_tokens = num_tokens
        self._num_tokens += num_tokens

    def report(self, num_prompt_tokens: int) -> dict[str, Any]:
        """Seconds and tokens per second; None where nothing could be measured."""
        first = None if self._first is None else self._first - self._start
        decode = None if self._first is None else self._last - self._first
        later = self._num_tokens - self._num_first_tokens
        return {
            "prompt_tokens": num_prompt_tokens,
            "generated_tokens": self._num_tokens,
            "first_token_seconds": first,
            "prompt_tokens_per_second": num_prompt_tokens / first if first else None,
            "generated_tokens_per_second": later / decode if decode and later else None,
        }


def draft_report(stats: Mapping[str, Any]) -> dict[str, Any]:
    """What ``LLM.stats`` says of drafts; of a model that makes none, nothing."""
    names = ("drafted_tokens", "accepted_tokens", "acceptance_rate")
    return {name: stats[name] for name in names} if stats["drafted_tokens"] else {}


def draft_summary(drafted: int, accepted: int) -> str:
    return f"{accepted} of {drafted} drafts accepted ({accepted / drafted:.1%})"


def summary(report: dict[str, Any]) -> str:
    """The report in one line."""

    def rate(key: str) -> str:
        return "-" if report[key] is None else f"{report[key]:.1f} tok/s"

    first = report["first_token_seconds"]
    drafted = report.get("drafted_tokens")
    drafts = f"; {draft_summary(drafted, report['accepted_tokens'])}" if drafted else ""
    return (
        f"[{report['prompt_tokens']} prompt tokens, {rate('prompt_tokens_per_second')}; "
        f"{report['generated_tokens']} generated, {rate('generated_tokens_per_second')}; "
        f"first token after {'-' if first is None else f'{first * 1000:.0f} ms'}{drafts}]"
    )
