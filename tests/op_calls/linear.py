"""Matrix products, of quantised weights too."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from op_calls.one_op import Op, zeros

OPS = {
    "linear": Op(
        ops.linear,
        lambda: {"x": zeros(3, 8), "weight": zeros(5, 8), "bias": zeros(5), "out": zeros(3, 5)},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "linear with gelu": Op(
        ops.linear,
        lambda: {"x": zeros(3, 8), "weight": zeros(5, 8), "bias": zeros(5), "out": zeros(3, 5)},
        scalars={"activation": "gelu"},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "linear_silu_and_mul": Op(
        ops.linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 8),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "linear_pack": Op(ops.linear_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}),
    "wint8_linear": Op(
        ops.wint8_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 8, dtype=np.int8),
            "scale": zeros(5),
            "bias": zeros(5),
            "out": zeros(3, 5),
        },
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint8_linear with int8 activations": Op(
        ops.wint8_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 8, dtype=np.int8),
            "scale": zeros(5),
            "out": zeros(3, 5),
        },
        scalars={"int8_activations": True},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint8_linear_silu_and_mul": Op(
        ops.wint8_linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 8, dtype=np.int8),
            "scale": zeros(10),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "wint8_quantize": Op(
        ops.wint8_quantize, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint8_quantize and pack": Op(
        ops.wint8_quantize_and_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint8_pack": Op(
        ops.wint8_pack,
        lambda: {"weight": zeros(5, 8, dtype=np.int8)},
        leading={"weight": (0, 1)},
    ),
    "wint4_linear": Op(
        ops.wint4_linear,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(5, 4, dtype=np.uint8),
            "scale": zeros(5),
            "bias": zeros(5),
            "out": zeros(3, 5),
        },
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "wint4_linear_silu_and_mul": Op(
        ops.wint4_linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 4, dtype=np.uint8),
            "scale": zeros(10),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "wint4_quantize": Op(
        ops.wint4_quantize, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint4_quantize and pack": Op(
        ops.wint4_quantize_and_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}
    ),
    "wint4_pack": Op(
        ops.wint4_pack,
        lambda: {"weight": zeros(5, 4, dtype=np.uint8)},
        leading={"weight": (0, 1)},
    ),
}
