"""Memory for the activations of a step, allocated once and used by every layer of every step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.errors import InternalError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layer_plan import LayerPlan

# What is not a row for each token.
_WHOLE = ("attention_workspace", "workspace")


class _Rows:
    """Buffers that have a row for each token."""

    __slots__ = ()

    def first(self, num_rows: int) -> Self:
        """The first rows of all of them."""

        def cut(name: str, buffer: Any) -> Any:
            if buffer is None or name in _WHOLE:
                return buffer
            return buffer.first(num_rows) if isinstance(buffer, _Rows) else buffer[:num_rows]

        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: cut(name, getattr(self, name)) for name in names})


@dataclass(frozen=True, slots=True)
class MLPBuffers(_Rows):
    """Between the projections of an MLP."""

    gate_up: Tensor | None  # [num_tokens, 2 * intermediate_size]; None on the CPU
    gated: Tensor  # [num_tokens, intermediate_size]


@dataclass(frozen=True, slots=True)
class ExpertBuffers(_Rows):
    """Of a layer with experts."""

    row_numbers: Tensor  # [num_tokens] int64: 0, 1, 2, ...
    router_input: Tensor | None  # [num_tokens, hidden_size] float32; None if activations are
    router_logits: Tensor  # [num_tokens, num_experts of all banks] float32
    topk_weights: Tensor  # [num_tokens, top_k] float32
    topk_ids: Tensor  # [num_tokens, top_k] int32
    shared: MLPBuffers  # of the shared experts; of no width where there are none
    out: Tensor  # [num_tokens, hidden_size]
    workspace: Tensor  # bytes, enough for all rows


@dataclass(frozen=True, slots=True)
class LayerBuffers(_Rows):
    """The first ``num_tokens`` rows of a :class:`Workspace`, in the shapes that the ops want."""

    hidden_states: Tensor  # [num_tokens, hidden_size]
    residual: Tensor  # [num_tokens, hidden_size]
    qkv: Tensor  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    query: Tensor  # [num_tokens, num_heads, head_dim], inside qkv
    key: Tensor  # [num_tokens, num_kv_heads, head_dim], inside qkv
    value: Tensor  # [num_tokens, num_kv_heads, head_dim], inside qkv
    attention: Tensor  # [num_tokens, num_heads, head_dim]
    attention_rows: Tensor  # the same memory, [num_tokens, num_heads * head_dim]
    mlp: MLPBuffers  # of dense layers
    experts: ExpertBuffers | None  # None where no layer has any
    rope_table: Tensor  # [num_tokens, head_dim], float32
    attention_workspace: Tensor | None = None  # bytes; None: attention takes its own at each call

    @property
    def of_experts(self) -> ExpertBuffers:
        if self.experts is None:
            raise InternalError("workspace: made for a model without experts")
        return self.experts


def moe_workspace_nbytes(
    config: ModelConfig,
    plan: LayerPlan,
    max_tokens: int,
    dtype: str,
    expert_dtype: str,
    device: str,
) -> int:
    """Bytes that the experts of a layer, kept as ``expert_dtype``, need for up to so many tokens."""
    widths = plan.bank_widths
    return ops.fused_moe_workspace_size(
        max_tokens,
        plan.top_k,
        [plan.num_experts] * len(widths),
        config.hidden_size,
        widths,
        dtype=dtype,
        weight_dtype=expert_dtype,
        device=device,
    )


class Workspace:
    """Activations of up to ``max_tokens`` rows.

    ``expert_dtype`` is that in which experts lie in memory, as of :meth:`.Quantization.expert_dtype`:
    kernels of bfloat16 experts may want more room than those of rounded ones.

    Buffers of several MiB come from and return to the system at each allocation; reusing them
    saves a page fault for every 4 KiB of every layer.
    """

    def __init__(
        self, config: ModelConfig, max_tokens: int, dtype: str, device: str, *, expert_dtype: str
    ) -> None:
        self.max_tokens = max_tokens
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._head_dim = config.head_dim
        self._dtype = dtype
        self._device = device
        heads = self._num_heads + 2 * self._num_kv_heads
        self._hidden_states = self._rows(config.hidden_size)
        self._residual = self._rows(config.hidden_size)
        self._qkv = self._rows(heads * self._head_dim)
        self._attention = self._rows(self._num_heads * self._head_dim)
        self._mlp = self._mlp_rows(config.intermediate_size)
        plan = next((plan for plan in config.layers if plan.mlp == "moe"), None)
        self._experts = None if plan is None else self._expert_rows(config, plan, expert_dtype)
        self._rope_table = self._rows(self._head_dim, "float32")
        self._last = self._slice(max_tokens)

    def rows(self, num_tokens: int) -> LayerBuffers:
        """Buffers of ``num_tokens`` rows; what they held before is undefined."""
        if len(self._last.hidden_states) != num_tokens:
            self._last = self._slice(num_tokens)
        return self._last

    def _rows(self, width: int, dtype: str | None = None) -> Tensor:
        return empty([self.max_tokens, width], dtype or self._dtype, self._device)

    def _mlp_rows(self, width: int) -> MLPBuffers:
        gate_up = None if self._device == "cpu" else self._rows(2 * width)
        return MLPBuffers(gate_up=gate_up, gated=self._rows(width))

    def _expert_rows(
        self, config: ModelConfig, plan: LayerPlan, expert_dtype: str
    ) -> ExpertBuffers:
        top_k = plan.top_k
        nbytes = moe_workspace_nbytes(
            config, plan, self.max_tokens, self._dtype, expert_dtype, self._device
        )
        is_float32 = self._dtype == "float32"
        return ExpertBuffers(
            row_numbers=from_numpy(np.arange(self.max_tokens), self._device),
            router_input=None if is_float32 else self._rows(config.hidden_size, "float32"),
            router_logits=self._rows(plan.num_experts * len(plan.bank_widths), "float32"),
            topk_weights=self._rows(top_k, "float32"),
            topk_ids=self._rows(top_k, "int32"),
            shared=self._mlp_rows(plan.shared_intermediate_size),
            out=self._rows(config.hidden_size),
            workspace=empty([nbytes], "uint8", self._device),
        )

    def _slice(self, num_tokens: int) -> LayerBuffers:
        heads, kv_heads, head_dim = self._num_heads, self._num_kv_heads, self._head_dim
        qkv = self._qkv[:num_tokens]
        by_head = qkv.reshape(num_tokens, heads + 2 * kv_heads, head_dim)
        attention = self._attention[:num_tokens]
        return LayerBuffers(
            hidden_states=self._hidden_states[:num_tokens],
            residual=self._residual[:num_tokens],
            qkv=qkv,
            query=by_head[:, :heads],
            key=by_head[:, heads : heads + kv_heads],
            value=by_head[:, heads + kv_heads :],
            attention=attention.reshape(num_tokens, heads, head_dim),
            attention_rows=attention,
            mlp=self._mlp.first(num_tokens),
            experts=None if self._experts is None else self._experts.first(num_tokens),
            rope_table=self._rope_table[:num_tokens],
        )
