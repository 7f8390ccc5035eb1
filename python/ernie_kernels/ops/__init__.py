"""The ops. One module per family; each name is also importable from here."""

from ernie_kernels.ops.activation import gelu, quick_gelu, silu_and_mul
from ernie_kernels.ops.attention import attention, varlen_attention
from ernie_kernels.ops.embedding import embedding
from ernie_kernels.ops.fused_moe import fused_moe, fused_moe_workspace_size
from ernie_kernels.ops.gemm import PackedWeight, linear, linear_pack, linear_silu_and_mul
from ernie_kernels.ops.grouped_gemm import (
    ExpertWeights,
    expert_weights,
    expert_weights_set,
    grouped_linear,
    grouped_linear_silu_and_mul,
)
from ernie_kernels.ops.kv_cache import kv_cache_copy_blocks, kv_cache_write
from ernie_kernels.ops.moe import moe_combine, moe_dispatch, moe_route, moe_sort
from ernie_kernels.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from ernie_kernels.ops.rope import mrope_table, rope, rope_2d, rope_2d_table, rope_table
from ernie_kernels.ops.sampling import apply_penalties, sample
from ernie_kernels.ops.vision import (
    image_patches,
    patch_embed,
    scatter_rows,
    spatial_merge,
    temporal_merge,
)
from ernie_kernels.ops.wint4 import (
    PackedWint4,
    wint4_linear,
    wint4_linear_silu_and_mul,
    wint4_pack,
    wint4_quantize,
    wint4_quantize_and_pack,
)
from ernie_kernels.ops.wint8 import (
    PackedWint8,
    wint8_linear,
    wint8_linear_silu_and_mul,
    wint8_pack,
    wint8_quantize,
    wint8_quantize_and_pack,
)

__all__ = [
    "ExpertWeights",
    "PackedWeight",
    "PackedWint4",
    "PackedWint8",
    "add_layer_norm",
    "add_rms_norm",
    "apply_penalties",
    "attention",
    "embedding",
    "expert_weights",
    "expert_weights_set",
    "fused_moe",
    "fused_moe_workspace_size",
    "gelu",
    "grouped_linear",
    "grouped_linear_silu_and_mul",
    "image_patches",
    "kv_cache_copy_blocks",
    "kv_cache_write",
    "layer_norm",
    "linear",
    "linear_pack",
    "linear_silu_and_mul",
    "moe_combine",
    "moe_dispatch",
    "moe_route",
    "moe_sort",
    "mrope_table",
    "patch_embed",
    "quick_gelu",
    "rms_norm",
    "rope",
    "rope_2d",
    "rope_2d_table",
    "rope_table",
    "sample",
    "scatter_rows",
    "silu_and_mul",
    "spatial_merge",
    "temporal_merge",
    "varlen_attention",
    "wint4_linear",
    "wint4_linear_silu_and_mul",
    "wint4_pack",
    "wint4_quantize",
    "wint4_quantize_and_pack",
    "wint8_linear",
    "wint8_linear_silu_and_mul",
    "wint8_pack",
    "wint8_quantize",
    "wint8_quantize_and_pack",
]
