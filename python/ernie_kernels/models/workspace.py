"""Memory for the activations of a step, allocated once and used by every layer of every step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ernie_kernels._core import Tensor, empty
from ernie_kernels.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerBuffers:
    """The first ``num_tokens`` rows of a :class:`Workspace`, in the shapes that the ops want."""

    hidden_states: Tensor  # [num_tokens, hidden_size]
    residual: Tensor  # [num_tokens, hidden_size]
    qkv: Tensor  # [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]
    query: Tensor  # [num_tokens, num_heads, head_dim], inside qkv
    key: Tensor  # [num_tokens, num_kv_heads, head_dim], inside qkv
    value: Tensor  # [num_tokens, num_kv_heads, head_dim], inside qkv
    attention: Tensor  # [num_tokens, num_heads, head_dim]
    attention_rows: Tensor  # the same memory, [num_tokens, num_heads * head_dim]
    gate_up: Tensor | None  # [num_tokens, 2 * intermediate_size]; None on the CPU
    gated: Tensor  # [num_tokens, intermediate_size]
    rope_table: Tensor  # [num_tokens, head_dim], float32
    attention_workspace: Tensor | None = None  # bytes; None: attention takes its own at each call

    def first(self, num_rows: int) -> LayerBuffers:
        """The first rows of all of them."""
        buffers = {field.name: getattr(self, field.name) for field in fields(self)}
        return LayerBuffers(
            **{
                name: buffer
                if buffer is None or name == "attention_workspace"
                else buffer[:num_rows]
                for name, buffer in buffers.items()
            }
        )


class Workspace:
    """Activations of up to ``max_tokens`` rows.

    Buffers of several MiB come from and return to the system at each allocation; reusing them
    saves a page fault for every 4 KiB of every layer.
    """

    def __init__(self, config: ModelConfig, max_tokens: int, dtype: str, device: str) -> None:
        self.max_tokens = max_tokens
        self._num_heads = config.num_attention_heads
        self._num_kv_heads = config.num_key_value_heads
        self._head_dim = config.head_dim
        heads = self._num_heads + 2 * self._num_kv_heads
        width = max(plan.intermediate_size for plan in config.layers)

        def rows(width: int, dtype: str = dtype) -> Tensor:
            return empty([max_tokens, width], dtype, device)

        self._hidden_states = rows(config.hidden_size)
        self._residual = rows(config.hidden_size)
        self._qkv = rows(heads * self._head_dim)
        self._attention = rows(self._num_heads * self._head_dim)
        self._gate_up = None if device == "cpu" else rows(2 * width)
        self._gated = rows(width)
        self._rope_table = rows(self._head_dim, "float32")
        self._last = self._slice(max_tokens)

    def rows(self, num_tokens: int) -> LayerBuffers:
        """Buffers of ``num_tokens`` rows; what they held before is undefined."""
        if len(self._last.hidden_states) != num_tokens:
            self._last = self._slice(num_tokens)
        return self._last

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
            gate_up=None if self._gate_up is None else self._gate_up[:num_tokens],
            gated=self._gated[:num_tokens],
            rope_table=self._rope_table[:num_tokens],
        )
