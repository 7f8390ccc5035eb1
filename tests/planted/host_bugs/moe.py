"""Bugs of the routing of tokens to experts."""

from __future__ import annotations

from bug import MOE, Bug

BUGS = [
    Bug(
        "moe route: probabilities below e^-87 lost",
        "csrc/ops/moe_core.h",
        "0xc2d00000u;  // of -104",
        "0xc2ae0000u;",
        MOE,
    ),
    Bug(
        "moe route: infinities taken for finite",
        "csrc/ops/moe_core.h",
        "< 0x7f800000u;",
        "<= 0x7f800000u;",
        MOE,
    ),
    Bug(
        "moe route: the bias weighs",
        "csrc/cpu/moe.cpp",
        "weights[j] = p[e];",
        "weights[j] = scores[e];",
        MOE,
    ),
    Bug(
        "moe route: the bias does not choose",
        "csrc/cpu/moe.cpp",
        "sample_key(scores[e],",
        "sample_key(p[e],",
        MOE,
    ),
    Bug(
        "moe route: every row is flagged",
        "csrc/cpu/moe.cpp",
        "if (!finite && a.flags)",
        "if (a.flags)",
        MOE,
    ),
    Bug(
        "moe route: norm_min not heeded",
        "csrc/cpu/moe.cpp",
        "std::max(sum_of(weights, k), a.norm_min)",
        "sum_of(weights, k)",
        MOE,
    ),
    Bug(
        "moe route: tail left out of the sum",
        "csrc/cpu/moe.isa.cpp",
        "for (int64_t l = 0; i + l < n; ++l)",
        "for (int64_t l = 0; i + l + 1 < n; ++l)",
        MOE,
    ),
    Bug(
        "moe route: every token has the biases of the first bank",
        "csrc/cpu/moe.cpp",
        "a.correction_bias.ptr<float>() + first;",
        "a.correction_bias.ptr<float>();",
        MOE,
    ),
    Bug(
        "moe route: a row that is not finite goes to the first bank",
        "csrc/cpu/moe.cpp",
        "static_cast<int32_t>(first + j);",
        "static_cast<int32_t>(j);",
        MOE,
    ),
    Bug(
        "moe sort: entries of an expert in descending order",
        "csrc/cpu/moe.cpp",
        "for (int64_t i = num_entries - 1; i >= 0; --i)",
        "for (int64_t i = 0; i < num_entries; ++i)",
        MOE,
    ),
    Bug(
        "moe sort: the id after the last passes",
        "csrc/cpu/moe.cpp",
        "ids[i] >= a.num_experts",
        "ids[i] > a.num_experts",
        MOE,
    ),
    Bug(
        "moe sort: slots for tokens",
        "csrc/cpu/moe.cpp",
        "static_cast<int32_t>(i / top_k);",
        "static_cast<int32_t>(i % top_k);",
        MOE,
    ),
    Bug(
        "moe dispatch: rows taken as contiguous",
        "csrc/cpu/moe.cpp",
        "t * a.hidden_states.step(0) * itemsize",
        "t * row_bytes",
        MOE,
    ),
    Bug(
        "moe combine: shared experts left out of the tail",
        "csrc/cpu/moe.isa.cpp",
        "if (shared != nullptr) acc = add(acc, load_n(",
        "if (false) acc = add(acc, load_n(",
        MOE,
    ),
    Bug(
        "moe combine: the place after the last passes",
        "csrc/cpu/moe.cpp",
        "places[i] >= num_entries",
        "places[i] > num_entries",
        MOE,
    ),
    Bug(
        "moe combine: overlap of out and shared not refused",
        "csrc/ops/moe.cpp",
        'if (shared != nullptr) check.disjoint_or_same_rows("out", a.out, "shared", *shared);',
        "(void)0;",
        MOE,
    ),
]
