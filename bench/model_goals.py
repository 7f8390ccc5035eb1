"""The table of speed goals: what the ratios of ``bench_model.py`` must be at least.

python bench/model_goals.py RESULTS.jsonl        # of a kept run
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A floor under a ratio, for 2 threads. Of several of ours or the peers, the fastest counts.

    Attributes:
        case: how its name begins.
        peer: its name; one that ends in a space or "_" stands for all that begin so.
    """

    name: str
    case: str
    ours: tuple[str, ...]
    peer: str
    floor: float


FLOAT, INT8 = ("bfloat16",), ("wint8", "w8a8")
GOALS = [
    Goal("C1a", "decode", FLOAT, "transformers bfloat16", 2.2),
    Goal("C1a", "decode", FLOAT, "transformers float32", 1.8),
    Goal("C1b", "decode", FLOAT, "llama.cpp BF16", 1.2),
    Goal("C1c", "decode", INT8, "llama.cpp Q8_0", 1.5),
    Goal("C3a", "prefill 512", FLOAT, "transformers bfloat16", 2.0),
    Goal("C3a", "prefill 512", FLOAT, "transformers float32", 1.1),
    Goal("C3b", "prefill 512", INT8, "llama.cpp ", 2.5),
    Goal("C1d", "decode", ("wint4-all",), "llama.cpp Q4_", 1.3),
    Goal("MoE", "decode", ("wint4", "wint4-all"), "llama.cpp Q4_0", 1.2),
]


@dataclass
class Standing:
    """How a goal stands with some number of threads; the figures of both sides, by p25."""

    goal: Goal
    threads: int
    ours: Mapping[str, Any]
    peer_name: str
    peer: Mapping[str, Any]

    @property
    def is_met(self) -> bool:
        """By the best times and by the lower quartiles."""
        return min(self.peer["ratio_best"], self.peer["ratio_p25"]) >= self.goal.floor

    @property
    def most_possible(self) -> float:
        """The ratio if ours ran at the ceiling that bounds the case; infinite if none was kept."""
        share = self.ours.get(self.ceiling, 0.0)
        return self.peer["ratio_best"] / min(1.0, share) if share else float("inf")

    @property
    def ceiling(self) -> str:
        """Where the share of it is kept: decoding reads all weights, a prefill is products."""
        if self.goal.case == "decode":
            return "of_read"
        return "of_int8" if self.ours["ours"] == "w8a8" else "of_matrix"


def standings(records: Iterable[Mapping[str, Any]]) -> list[Standing | Goal]:
    """Those measured, per number of threads; a goal of which nothing was measured as it is."""
    rows = list(records)
    found: list[Standing | Goal] = []
    for goal in GOALS:
        measured = []
        for threads in sorted({row["threads"] for row in rows}):
            mine = [
                row
                for row in rows
                if row["threads"] == threads
                and row["case"].startswith(goal.case)
                and row["ours"] in goal.ours
            ]
            if not mine:
                continue
            best = min(mine, key=lambda row: row["p25_us"])
            names = [
                name
                for name in best["peers"]
                if name == goal.peer
                or (goal.peer.endswith((" ", "_")) and name.startswith(goal.peer))
            ]
            if names:
                fastest = min(names, key=lambda name: best["peers"][name]["p25_us"])
                measured.append(Standing(goal, threads, best, fastest, best["peers"][fastest]))
        found += measured or [goal]
    return found


def show_goals(records: Sequence[Mapping[str, Any]]) -> None:
    """Floors are for 2 threads. A miss whose "at ceiling" is below the floor is bound by the machine."""
    print(
        f"\n{'goal':5}{'case':13}{'ours':12}{'peer':23}{'threads':>8}{'floor':>7}{'best':>7}{'p25':>7}"
        f"{'':9}{'of the ceiling: ours, peer':>28}{'at ceiling':>12}"
    )
    for standing in standings(records):
        if isinstance(standing, Goal):
            goal = standing
            print(
                f"{goal.name:5}{goal.case:13}{'|'.join(goal.ours):12}{goal.peer:23}"
                f"{'':8}{goal.floor:7.2f}  not measured"
            )
            continue
        goal, ours, peer = standing.goal, standing.ours, standing.peer
        key = standing.ceiling
        what = {"of_read": "read", "of_matrix": "product", "of_int8": "int8 product"}[key]
        shares = f"{ours[key]:.0%}, {peer[key]:.0%} of {what}" if key in ours else f"no {what} kept"
        print(
            f"{goal.name:5}{goal.case:13}{ours['ours']:12}{standing.peer_name:23}"
            f"{standing.threads:8}{goal.floor:7.2f}{peer['ratio_best']:7.2f}{peer['ratio_p25']:7.2f}"
            f"  {'met' if standing.is_met else 'MISSED':7}{shares:>28}{standing.most_possible:12.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    lines = parser.parse_args().results.read_text().splitlines()
    show_goals([json.loads(line) for line in lines])
