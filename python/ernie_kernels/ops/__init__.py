"""The ops. One module per family; each name is also importable from here."""

from ernie_kernels.ops.attention import attention
from ernie_kernels.ops.gemm import PackedWeight, linear, linear_pack
from ernie_kernels.ops.norm import add_rms_norm, rms_norm

__all__ = ["PackedWeight", "add_rms_norm", "attention", "linear", "linear_pack", "rms_norm"]
