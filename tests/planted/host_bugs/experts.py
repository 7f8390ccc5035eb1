"""Bugs of the experts' products and of 4-bit weights."""

from __future__ import annotations

from bug import EXPERTS, FUSED_MOE, WINT4, Bug

GROUPED, PRODUCTS, WINT4_CPP, WINT4_ISA, QUANTIZED_TILE = (
    "csrc/cpu/grouped_gemm.cpp",
    "csrc/cpu/expert_products.h",
    "csrc/cpu/wint4.cpp",
    "csrc/cpu/wint4.isa.cpp",
    "csrc/cpu/quantized_tile.isa.h",
)

BUGS = [
    Bug(
        "grouped: the first row of a block gathered for all",
        PRODUCTS,
        "prepare_row(x_, source_of(row + r),",
        "prepare_row(x_, source_of(row),",
        EXPERTS,
    ),
    Bug(
        "grouped: int8 rows gathered with the scales of another",
        PRODUCTS,
        "std::copy_n(from.scale, x_.groups, to.scale);",
        "std::copy_n(x_.scale, x_.groups, to.scale);",
        EXPERTS,
    ),
    Bug(
        "grouped: scales of the first expert for all",
        PRODUCTS,
        "expert * w_.out_features + row : nullptr",
        "row : nullptr",
        EXPERTS,
    ),
    Bug(
        "grouped: up rows scaled as the gate's",
        GROUPED,
        "w.scale(expert, first), columns);",
        "w.scale(expert, column), columns);",
        EXPERTS,
    ),
    Bug(
        "grouped: panels of an expert begin in the one before",
        PRODUCTS,
        "panels_(ceil_div(w.out_features, kPanelRows))",
        "panels_(std::max<int64_t>(1, w.out_features / kPanelRows))",
        EXPERTS,
    ),
    Bug(
        "grouped: plain rows of an expert from the first on",
        PRODUCTS,
        "(expert * w.step(0) + first * w.step(1)) * itemsize",
        "(expert * w.step(0) + first / 32 * 32 * w.step(1)) * itemsize",
        EXPERTS,
    ),
    Bug(
        "grouped: the last block of rows goes on into the next expert",
        GROUPED,
        "{e, row, std::min(size, offsets[e + 1] - row)}",
        "{e, row, std::min(size, offsets[num_experts] - row)}",
        EXPERTS,
    ),
    Bug(
        "grouped: up rows from their panel's first",
        GROUPED,
        "acc += skip;",
        "acc += 0 * skip;",
        EXPERTS,
    ),
    Bug(
        "grouped: offsets that end early pass",
        GROUPED,
        "e == 0 ? 0 : num_rows))",
        "e == 0 ? 0 : std::min(at[e], num_rows)))",
        EXPERTS,
    ),
    Bug(
        "grouped: 4-bit panels follow each other by pairs of columns",
        "csrc/cpu/panel_product.h",
        "return kPanelRows * round_up(k, 8) / 2;",
        "return kPanelRows * round_up(k, 2) / 2;",
        EXPERTS,
    ),
    Bug(
        "fused_moe: shared experts forgotten",
        "csrc/ops/fused_moe.cpp",
        ".shared = a.shared,",
        ".shared = std::nullopt,",
        FUSED_MOE,
    ),
    Bug(
        "fused_moe: rows gathered for the second product too",
        "csrc/ops/fused_moe.cpp",
        ".source_rows = std::nullopt,",
        ".source_rows = source_rows,",
        FUSED_MOE,
    ),
    Bug(
        "fused_moe: every bank has the offsets of the first",
        "csrc/ops/fused_moe.cpp",
        "first_expert += count;",
        "first_expert += 0 * count;",
        FUSED_MOE,
    ),
    Bug(
        "fused_moe: rows between the products as wide as the last bank's",
        "csrc/ops/fused_moe.cpp",
        "width = std::max(width, bank.intermediate_size);",
        "width = bank.intermediate_size;",
        FUSED_MOE,
    ),
    Bug(
        "fused_moe: a bank's rounded rows begin with the first of all",
        PRODUCTS,
        "x_.from(row - first_row_)",
        "x_.from(row)",
        FUSED_MOE,
    ),
    Bug(
        "grouped: the blocks of a bank overwrite those of the one before",
        GROUPED,
        "next += rows.count;",
        "next += rows.count / 2;",
        FUSED_MOE,
    ),
    Bug(
        "quantize: scales not rounded to the weight's dtype",
        "csrc/cpu/quantized_weight.h",
        "sizeof(T) == 2 ? to_float(to_bf16(scale)) : scale",
        "scale",
        WINT4,
    ),
    Bug(
        "wint4: even and odd columns exchanged when packed",
        WINT4_CPP,
        "return gather(bytes & 0x0f0f0f0fu) | gather(bytes >> 4 & 0x0f0f0f0fu) << 16;",
        "return gather(bytes >> 4 & 0x0f0f0f0fu) | gather(bytes & 0x0f0f0f0fu) << 16;",
        WINT4,
    ),
    Bug(
        "wint4: the third pair of the last columns left out",
        QUANTIZED_TILE,
        "if (left > 4) add_pair<Format, 2>",
        "if (left > 6) add_pair<Format, 2>",
        WINT4,
    ),
    Bug(
        "wint4: the second half of a word begins one weight late",
        WINT4_ISA,
        "(i % 2 != 0 ? 16 : 0) + 4 * (i / 2)",
        "(i % 2 != 0 ? 16 : 0) + 4 * (i / 2) % 12",
        WINT4,
    ),
    Bug(
        "wint4: the last pair of columns not expanded",
        QUANTIZED_TILE,
        "if (c + 6 < k) store_pairs",
        "if (c + 8 < k) store_pairs",
        WINT4,
    ),
]
