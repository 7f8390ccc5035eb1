"""Bugs of the int8 products, and of what they share with those of 4 bits."""

from __future__ import annotations

from bug import WINT8, Bug

BUGS = [
    Bug(
        "quantize: halves rounded towards zero",
        "csrc/ops/quantize_core.h",
        "(rest >= 0.5f)",
        "(rest > 0.5f)",
        WINT8,
    ),
    Bug(
        "wint8: up rows scaled as the gate's",
        "csrc/cpu/scaled_linear.h",
        "scale_row(up, scale + size, columns);",
        "scale_row(up, scale, columns);",
        WINT8,
    ),
    Bug(
        "wint8: shift of the unsigned operand not taken back",
        "csrc/cpu/wint8.isa.cpp",
        "-128 * x_sum",
        "-127 * x_sum",
        WINT8,
    ),
    Bug(
        "wint8: last pair of columns left out",
        "csrc/cpu/quantized_tile.isa.h",
        "if (left > 0) add_pair<Format, 0>",
        "if (left > 2) add_pair<Format, 0>",
        WINT8,
    ),
    Bug(
        "wint8: scale of a row's first columns for all",
        "csrc/cpu/wint8.isa.cpp",
        "x_scale += 1;",
        "x_scale += 0;",
        WINT8,
    ),
    Bug(
        "wint8: blocks of columns start afresh",
        "csrc/cpu/int8_product.h",
        ".accumulate = g > 0});",
        ".accumulate = false});",
        WINT8,
    ),
    Bug(
        "wint8: small activations taken as zero",
        "csrc/cpu/quantize_activations.isa.cpp",
        "!(factor <= kMaxFloat)",
        "!(factor <= 1e30f)",
        WINT8,
    ),
    Bug(
        "wint8: -128 widened to minus zero",
        "csrc/cpu/wint8.isa.cpp",
        "static_cast<char>(0xc3)",
        "static_cast<char>(0x80)",
        WINT8,
    ),
    Bug(
        "wint8: activations left in the order of packing",
        "csrc/cpu/quantize_activations.isa.cpp",
        "_mm512_permutexvar_epi32(order, in_lanes)",
        "in_lanes",
        WINT8,
    ),
]
