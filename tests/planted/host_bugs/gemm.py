"""Bugs of the bfloat16 and float32 products."""

from __future__ import annotations

from bug import GEMM, Bug

BUGS = [
    Bug(
        "linear: first of a bfloat16 pair used twice",
        "csrc/cpu/gemm.isa.cpp",
        "half_step<true>(acc, x, x_stride, w, w_stride);",
        "half_step<false>(acc, x, x_stride, w, w_stride);",
        GEMM,
    ),
    Bug(
        "linear: depth blocks start afresh",
        "csrc/cpu/panel_product.h",
        ".accumulate = k > 0,",
        ".accumulate = false,",
        GEMM,
    ),
    Bug(
        "linear: order of k depends on the rows",
        "csrc/cpu/gemm.isa.cpp",
        "    step(acc, x, x_stride, w, w_stride);\n  }\n",
        "    const int64_t half = ROWS == 1 ? steps / 2 : 0;\n"
        "    const int64_t turned = (s < half ? steps - half : -half) * advance;\n"
        "    step(acc, x + turned, x_stride, w + turned * kPanelRows, w_stride);\n  }\n",
        GEMM,
    ),
    Bug(
        "linear: padding of an odd row not cleared",
        "csrc/cpu/gemm.isa.cpp",
        "for (int64_t i = n; i < padded_n; ++i) out[i] = 0.f;",
        "(void)padded_n;",
        GEMM,
    ),
    Bug(
        "linear: last panel one column short",
        "csrc/cpu/gemm_blocks.h",
        "std::min(kWidth, out_features - column)",
        "std::min(kWidth, out_features - column - 1)",
        GEMM,
    ),
    Bug(
        "linear: bias of the first panel for all",
        "csrc/cpu/gemm.cpp",
        "a.bias->ptr<B>() + column : nullptr;\n  for",
        "a.bias->ptr<B>() : nullptr;\n  for",
        GEMM,
    ),
    Bug(
        "linear: activation before the bias",
        "csrc/cpu/gemm.isa.cpp",
        "f(bias == nullptr ? sum : add(sum, load_n(bias + i, m)))",
        "bias == nullptr ? f(sum) : add(f(sum), load_n(bias + i, m))",
        GEMM,
    ),
    Bug(
        "linear: one activation for another",
        "csrc/bindings/gemm.cpp",
        'if (name == "gelu") return Activation::kGelu;',
        'if (name == "gelu") return Activation::kQuickGelu;',
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: up rows from the panel's first",
        "csrc/cpu/gemm_blocks.h",
        "finish(gate, up + skip,",
        "finish(gate, up,",
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: up bias is the gate's",
        "csrc/cpu/gemm.cpp",
        "gate_bias + size : nullptr",
        "gate_bias : nullptr",
        GEMM,
    ),
    Bug(
        "linear_silu_and_mul: projections not rounded",
        "csrc/cpu/gemm.isa.cpp",
        "                    static_cast<T*>(nullptr));\n",
        "                    static_cast<float*>(nullptr));\n",
        GEMM,
    ),
    Bug(
        "linear: tile of five rows as four",
        "csrc/cpu/tile.isa.h",
        "tile.template operator()<(kTileRows < 5 ? 1 : 5), PANELS>(row, panel);",
        "tile.template operator()<(kTileRows < 5 ? 1 : 4), PANELS>(row, panel);",
        GEMM,
    ),
    Bug(
        "linear: the fourth of five panels left out",
        "csrc/cpu/tile.isa.h",
        "      panel += 3;\n",
        "      panel += 4;\n",
        GEMM,
    ),
    Bug(
        "pack: rows of an odd matrix shifted",
        "csrc/cpu/gemm.cpp",
        "r < rows && column < k ? weight[r * row_stride + column] : T{}",
        "r < rows && column <= k ? weight[r * row_stride + column] : T{}",
        GEMM,
    ),
]
