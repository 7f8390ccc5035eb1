"""One small check per op: awkward shapes, against the formula in float64.

A check calls its op once through ``case.timed`` and returns pairs of a result and what is expected
of it. The bounds are those of ``ernie_kernels.verify.bounds``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ernie_kernels import _core
from ernie_kernels.doctor import (
    layer_checks,
    linear_checks,
    moe_checks,
    sampling_checks,
    vision_checks,
)
from ernie_kernels.doctor.case import Case, Pairs

BOTH = ("float32", "bfloat16")
CHECKS: dict[str, tuple[Callable[[Case], Pairs], tuple[str, ...]]] = {
    "rms_norm": (layer_checks.rms_norm, BOTH),
    "add_rms_norm": (layer_checks.add_rms_norm, BOTH),
    "layer_norm": (layer_checks.layer_norm, BOTH),
    "add_layer_norm": (layer_checks.add_layer_norm, BOTH),
    "linear": (linear_checks.linear, BOTH),
    "linear_pack": (linear_checks.linear_pack, BOTH),
    "linear_silu_and_mul": (linear_checks.linear_silu_and_mul, BOTH),
    "wint8_linear": (linear_checks.wint8_linear, BOTH),
    "wint8_linear_silu_and_mul": (linear_checks.wint8_linear_silu_and_mul, BOTH),
    "wint8_quantize": (linear_checks.wint8_quantize, BOTH),
    "wint8_quantize_and_pack": (linear_checks.wint8_quantize_and_pack, BOTH),
    "wint8_pack": (linear_checks.wint8_pack, ("float32",)),
    "wint4_linear": (linear_checks.wint4_linear, BOTH),
    "wint4_linear_silu_and_mul": (linear_checks.wint4_linear_silu_and_mul, BOTH),
    "wint4_quantize": (linear_checks.wint4_quantize, BOTH),
    "wint4_quantize_and_pack": (linear_checks.wint4_quantize_and_pack, BOTH),
    "wint4_pack": (linear_checks.wint4_pack, ("float32",)),
    "embedding": (layer_checks.embedding, BOTH),
    "silu_and_mul": (layer_checks.silu_and_mul, BOTH),
    "gelu": (layer_checks.gelu, BOTH),
    "quick_gelu": (layer_checks.quick_gelu, BOTH),
    "rope_table": (layer_checks.rope_table, ("float32",)),
    "mrope_table": (layer_checks.mrope_table, ("float32",)),
    "rope_2d_table": (layer_checks.rope_2d_table, ("float32",)),
    "rope": (layer_checks.rope, BOTH),
    "rope_2d": (layer_checks.rope_2d, BOTH),
    "kv_cache_write": (layer_checks.kv_cache_write, BOTH),
    "kv_cache_copy_blocks": (layer_checks.kv_cache_copy_blocks, BOTH),
    "attention": (layer_checks.attention, BOTH),
    "varlen_attention": (layer_checks.varlen_attention, BOTH),
    "moe_route": (moe_checks.moe_route, ("float32",)),
    "moe_sort": (moe_checks.moe_sort, ("float32",)),
    "moe_dispatch": (moe_checks.moe_dispatch, BOTH),
    "moe_combine": (moe_checks.moe_combine, BOTH),
    "grouped_linear": (moe_checks.grouped_linear, BOTH),
    "grouped_linear_silu_and_mul": (moe_checks.grouped_linear_silu_and_mul, BOTH),
    "fused_moe": (moe_checks.fused_moe, BOTH),
    "apply_penalties": (sampling_checks.apply_penalties, ("float32",)),
    "sample": (sampling_checks.sample, ("float32",)),
    "image_patches": (vision_checks.image_patches, BOTH),
    "patch_embed": (vision_checks.patch_embed, BOTH),
    "temporal_merge": (vision_checks.temporal_merge, BOTH),
    "scatter_rows": (vision_checks.scatter_rows, BOTH),
}
# CUDA reads weights as they are.
CPU_ONLY = {
    "linear_pack",
    "wint8_quantize_and_pack",
    "wint8_pack",
    "wint4_quantize_and_pack",
    "wint4_pack",
}


def cases() -> Iterator[tuple[str, Case]]:
    """Every op with every dtype on every device that there is."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(_core.device_count()))]
    for name, (_, dtypes) in CHECKS.items():
        for device in devices[:1] if name in CPU_ONLY else devices:
            for dtype in dtypes:
                yield name, Case(device, dtype)
