"""The ops. One module per family; each name is also importable from here."""

from ernie_kernels.ops.norm import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
