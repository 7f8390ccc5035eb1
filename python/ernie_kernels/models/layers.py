"""The parts of a decoder layer. Each holds weights and calls ops; none does arithmetic itself.

Everything a layer writes goes to ``buffers`` (:mod:`.workspace`), which all layers share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ernie_kernels import ops
from ernie_kernels._core import Tensor

if TYPE_CHECKING:
    from ernie_kernels.models.config import ModelConfig
    from ernie_kernels.models.experts import MoE
    from ernie_kernels.models.weights import WeightReader
    from ernie_kernels.models.workspace import LayerBuffers, MLPBuffers
    from ernie_kernels.ops import PackedWeight, PackedWint4, PackedWint8
    from ernie_kernels.runner.batch import ForwardBatch, QueryRows


@dataclass(frozen=True, slots=True)
class LayerKVCache:
    """One layer's paged cache: ``[num_blocks, num_kv_heads, block_size, head_dim]`` each."""

    k_cache: Tensor
    v_cache: Tensor


def take(rows: Tensor, x: Tensor) -> Tensor:
    """A copy of chosen rows of a matrix."""
    return ops.embedding(rows, x, dtype=x.dtype_name)  # a lookup in a table gathers rows


class Embedding:
    """``out[t] = weight[input_ids[t]]``; the weight may be a head's: packed, or rounded, with a scale."""

    def __init__(
        self,
        weight: PackedWeight | PackedWint8 | PackedWint4 | Tensor,
        vocab_size: int,
        scale: Tensor | None = None,
    ) -> None:
        self.weight = weight
        self.vocab_size = vocab_size
        self.scale = scale

    def __call__(self, input_ids: Tensor, *, out: Tensor) -> Tensor:
        return ops.embedding(
            input_ids, self.weight, scale=self.scale, vocab_size=self.vocab_size, out=out
        )


class Linear:
    """``out = activation(x @ weight.T + bias)``; the weight is packed on the CPU, plain on CUDA."""

    def __init__(
        self,
        weight: PackedWeight | Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.activation = activation

    def __call__(self, x: Tensor, *, out: Tensor | None = None, dtype: str | None = None) -> Tensor:
        return ops.linear(
            x, self.weight, self.bias, activation=self.activation, out=out, dtype=dtype
        )

    def silu_and_mul(self, x: Tensor, *, out: Tensor, gate_up: Tensor | None) -> Tensor:
        """``silu(gate) * up`` of its outputs' first and second half."""
        return ops.linear_silu_and_mul(x, self.weight, self.bias, out=out, gate_up=gate_up)


class Wint8Linear:
    """A :class:`Linear` whose weight is int8, one scale per output channel."""

    def __init__(
        self,
        weight: PackedWint8 | Tensor,
        scale: Tensor,
        bias: Tensor | None = None,
        *,
        int8_activations: bool,
    ) -> None:
        self.weight = weight
        self.scale = scale
        self.bias = bias
        self.int8_activations = int8_activations

    def __call__(self, x: Tensor, *, out: Tensor | None = None, dtype: str | None = None) -> Tensor:
        return ops.wint8_linear(
            x,
            self.weight,
            self.scale,
            self.bias,
            int8_activations=self.int8_activations,
            out=out,
            dtype=dtype,
        )

    def silu_and_mul(self, x: Tensor, *, out: Tensor, gate_up: Tensor | None) -> Tensor:
        return ops.wint8_linear_silu_and_mul(
            x,
            self.weight,
            self.scale,
            self.bias,
            int8_activations=self.int8_activations,
            out=out,
            gate_up=gate_up,
        )


class Wint4Linear:
    """A :class:`Linear` whose weight has 4 bits, one scale per output channel."""

    def __init__(
        self, weight: PackedWint4 | Tensor, scale: Tensor, bias: Tensor | None = None
    ) -> None:
        self.weight = weight
        self.scale = scale
        self.bias = bias

    def __call__(self, x: Tensor, *, out: Tensor | None = None, dtype: str | None = None) -> Tensor:
        return ops.wint4_linear(x, self.weight, self.scale, self.bias, out=out, dtype=dtype)

    def silu_and_mul(self, x: Tensor, *, out: Tensor, gate_up: Tensor | None) -> Tensor:
        return ops.wint4_linear_silu_and_mul(
            x, self.weight, self.scale, self.bias, out=out, gate_up=gate_up
        )


class RMSNorm:
    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor, *, out: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps, out=out)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``residual += x`` and ``x = norm(residual)``, both in place."""
        return ops.add_rms_norm(x, residual, self.weight, eps=self.eps, out=x)


class LayerNorm:
    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    def __call__(self, x: Tensor, *, out: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps, out=out)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``residual += x`` and ``x = norm(residual)``, both in place."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, eps=self.eps, out=x)


class Attention:
    """Self-attention with grouped query heads, rotary positions and a paged cache."""

    def __init__(self, config: ModelConfig, weights: WeightReader, name: str) -> None:
        self.qkv_proj = weights.linear(name, "q_proj", "k_proj", "v_proj")
        self.o_proj = weights.linear(name, "o_proj")
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.rope_theta = config.rope_theta

    def project(
        self,
        hidden_states: Tensor,
        batch: ForwardBatch,
        kv_cache: LayerKVCache,
        buffers: LayerBuffers,
    ) -> None:
        """Rotated queries, keys and values of all rows to ``buffers``, the latter two to the cache."""
        self.qkv_proj(hidden_states, out=buffers.qkv)
        query, key = buffers.query, buffers.key
        ops.rope(query, key, batch.positions, theta=self.rope_theta, table=buffers.rope_table)
        ops.kv_cache_write(
            key, buffers.value, kv_cache.k_cache, kv_cache.v_cache, batch.slot_mapping
        )

    def query_of(self, rows: Tensor, buffers: LayerBuffers) -> Tensor:
        """A copy of the queries of chosen rows, ``[len(rows), num_heads, head_dim]``."""
        qkv = take(rows, buffers.qkv)
        return qkv.reshape(len(rows), qkv.shape[1] // self.head_dim, self.head_dim)[
            :, : self.num_heads
        ]

    def attend(
        self,
        query: Tensor,
        queries: QueryRows,
        batch: ForwardBatch,
        kv_cache: LayerKVCache,
        buffers: LayerBuffers,
    ) -> Tensor:
        """Attention of the given rows over the cache, and the output projection."""
        ops.attention(
            query,
            kv_cache.k_cache,
            kv_cache.v_cache,
            cu_seqlens_q=queries.cu_seqlens_q,
            seq_lens=batch.seq_lens,
            block_table=batch.block_table,
            max_seqlen_q=queries.max_seqlen_q,
            max_seq_len=batch.max_seq_len,
            out=buffers.attention,
            workspace=buffers.attention_workspace,
        )
        return self.o_proj(buffers.attention_rows, out=buffers.hidden_states)


class MLP:
    """SwiGLU: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, weights: WeightReader, name: str) -> None:
        self.gate_up_proj = weights.linear(name, "gate_proj", "up_proj")
        self.down_proj = weights.linear(name, "down_proj")

    def __call__(self, hidden_states: Tensor, buffers: MLPBuffers, *, out: Tensor) -> Tensor:
        """``out`` may be ``hidden_states``."""
        self.gate_up_proj.silu_and_mul(hidden_states, out=buffers.gated, gate_up=buffers.gate_up)
        return self.down_proj(buffers.gated, out=out)


class DecoderLayer:
    """Attention, and a dense MLP or experts, each behind a norm and added to what came in."""

    def __init__(
        self, config: ModelConfig, weights: WeightReader, name: str, mlp: MLP | MoE
    ) -> None:
        self.input_layernorm = weights.norm(f"{name}.input_layernorm")
        self.self_attn = Attention(config, weights, f"{name}.self_attn")
        self.post_attention_layernorm = weights.norm(f"{name}.post_attention_layernorm")
        self.mlp = mlp

    def __call__(
        self,
        hidden_states: Tensor | None,  # [num_tokens, hidden_size]; None before the first layer
        residual: Tensor,  # [num_tokens, hidden_size]
        batch: ForwardBatch,
        kv_cache: LayerKVCache,
        buffers: LayerBuffers,
        queries: QueryRows,
    ) -> tuple[Tensor, Tensor]:
        """Returns the layer's hidden states and residual of the rows in ``queries``.

        Of the batch's other rows only the keys and values are computed. Flags are set where
        ``queries`` is the batch's own: elsewhere what is not finite shows in these rows' logits.
        """
        if hidden_states is None:
            hidden_states = self.input_layernorm(residual, out=buffers.hidden_states)
        else:
            hidden_states, residual = self.input_layernorm.add(hidden_states, residual)
        self.self_attn.project(hidden_states, batch, kv_cache, buffers)
        query = buffers.query
        flags = batch.flags if queries is batch.queries else None
        if queries.rows is not None:
            query = self.self_attn.query_of(queries.rows, buffers)
            residual = take(queries.rows, residual)
            buffers = buffers.first(len(queries.rows))
        hidden_states = self.self_attn.attend(query, queries, batch, kv_cache, buffers)
        hidden_states, residual = self.post_attention_layernorm.add(hidden_states, residual)
        return self.feed_forward(hidden_states, buffers, flags, queries.banks), residual

    def feed_forward(
        self,
        hidden_states: Tensor,
        buffers: LayerBuffers,
        flags: Tensor | None,
        banks: Tensor | None = None,
    ) -> Tensor:
        """The MLP or the experts, which set ``flags`` of tokens that they cannot choose for to 1."""
        if isinstance(self.mlp, MLP):
            return self.mlp(hidden_states, buffers.mlp, out=hidden_states)
        return self.mlp(hidden_states, buffers.of_experts, flags, banks)
