"""One good call of every op, for tests that make it wrong. A new op needs one row in its family."""

from op_calls import attention, experts, linear, rows, vision
from op_calls.one_op import Op, zeros

__all__ = ["NO_OPS", "OPS", "Op", "zeros"]

# They serve ops and have no kernel: room for weights, how much of it, or a view.
NO_OPS = frozenset(
    {"expert_weights", "expert_weights_set", "fused_moe_workspace_size", "spatial_merge"}
)
OPS = {**rows.OPS, **linear.OPS, **experts.OPS, **attention.OPS, **vision.OPS}
