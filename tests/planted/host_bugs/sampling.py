"""Bugs of penalties and sampling."""

from __future__ import annotations

from bug import SAMPLING, Bug

BUGS = [
    Bug(
        "sampling: of equal logits the higher id",
        "csrc/ops/sampling_core.h",
        "| (0xFFFFFFFFu - id);",
        "| id;",
        SAMPLING,
    ),
    Bug(
        "sampling: top_p prefix one short",
        "csrc/cpu/sampling.cpp",
        "if (upper >= mass) {",
        "if (upper > mass) {",
        SAMPLING,
    ),
    Bug(
        "sampling: top_p of all instead of the top_k",
        "csrc/cpu/sampling.cpp",
        "for (const Candidate& c : candidates) total += c.weight;",
        "total = sum_of(block_sums(row));",
        SAMPLING,
    ),
    Bug(
        "sampling: min_p before top_p",
        "csrc/cpu/sampling.cpp",
        "if (row.top_p == 1.f && row.min_p > 0.f)",
        "if (row.min_p > 0.f)",
        SAMPLING,
    ),
    Bug(
        "sampling: bound of top_k too high",
        "csrc/cpu/sampling.cpp",
        "return maxima[k - 1];",
        "return maxima[k / 2];",
        SAMPLING,
    ),
    Bug(
        "sampling: position without effect",
        "csrc/ops/sampling_core.h",
        "philox({{static_cast<uint32_t>(p),",
        "philox({{static_cast<uint32_t>(p) * 0,",
        SAMPLING,
    ),
    Bug(
        "sampling: tail weights in the total",
        "csrc/cpu/sampling.isa.cpp",
        "total = add(total, first_lanes(weight, m));",
        "total = add(total, weight);",
        SAMPLING,
    ),
    Bug(
        "penalties: count of the prompt too",
        "csrc/cpu/sampling.cpp",
        "+ (i >= prompt_len)",
        "+ (i >= 0)",
        SAMPLING,
    ),
    Bug(
        "penalties: repetition applied at every occurrence",
        "csrc/cpu/sampling.cpp",
        "if (marks == 0) continue;",
        "if (marks == 0) marks = kSeen;",
        SAMPLING,
    ),
]
