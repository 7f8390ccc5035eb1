"""What a model takes of a machine's memory, from its configuration alone.

Every size is that which the loader allocates: fused projections, the padding of packed panels, the
scales of rounded matrices. Tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.model_weights import Weight, mtp_weights_of, weights_of
from ernie_kernels.models.quantization import WINT4, WINT8, Quantization, stored_as
from ernie_kernels.models.vision_memory import most_patches, visual_nbytes
from ernie_kernels.models.workspace import moe_workspace_nbytes
from ernie_kernels.vision.settings import VisionSettings

ITEMSIZES = {"bfloat16": 2, "float32": 4}  # bytes
# Of one element, and how many of a row the CPU's panels keep together: csrc/ops/gemm.h, wint8.h,
# wint4.h.
_BITS = {"float32": 32, "bfloat16": 16, WINT8: 8, WINT4: 4}
_PACKED_TOGETHER = {"float32": 1, "bfloat16": 2, WINT8: 4, WINT4: 8}
_PANEL_ROWS = 16
_SCALE_BYTES = 4

# What a load may take beside the weights and the one matrix it is at: a promise, held by a test.
LOADING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a model takes when it is loaded in one way.

    Attributes:
        quantization: the name of what is rounded, or None.
        weight_dtype: of matrices that are not rounded, ``"bfloat16"`` or ``"float32"``.
        dtype: of activations and cache.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        with_mtp: whether the multi-token prediction module is loaded too: it counts in all that
            follows but ``read_bytes_per_token``.
        weight_bytes: of all weights, on the device.
        read_bytes_per_token: of the weights that a single token needs, without drafts. The KV cache
            of its context comes on top; the row of an untied embedding is left out.
        mtp_weight_bytes: of the multi-token prediction module, loaded or not; 0 where there is none.
        workspace_bytes: of the activations of a step of ``max_tokens_per_step`` rows.
        visual_bytes: of images and videos: activations of the vision tower, at most, and features that
            are kept; 0 for a model of text alone. Not allocated before there are any.
        host_peak_bytes: of host memory while loading, over what the process had before.
        kv_bytes_per_token: of cache, for each token of context.
    """

    quantization: str | None
    weight_dtype: str
    dtype: str
    device: str
    with_mtp: bool
    weight_bytes: int
    read_bytes_per_token: int
    mtp_weight_bytes: int
    workspace_bytes: int
    visual_bytes: int
    host_peak_bytes: int
    kv_bytes_per_token: int


def plan_memory(
    config: ModelConfig,
    *,
    quantization: Quantization | Mapping[str, Any] | str | None = None,
    weight_dtype: str = "bfloat16",
    dtype: str = "bfloat16",
    device: str = "cpu",
    max_tokens_per_step: int = 512,
    with_mtp: bool = False,
    settings: VisionSettings | None = None,
) -> MemoryPlan:
    """See :class:`MemoryPlan`, which has these arguments as attributes.

    ``quantization`` is as :meth:`.Quantization.of` takes it; ``settings`` say how large images are, None:
    as for the released models.
    """
    rounding = Quantization.of(quantization)

    def nbytes(weight: Weight) -> int:
        return weight_nbytes(weight, rounding, weight_dtype, dtype, device)

    weights = list(weights_of(config))
    has_module = with_mtp or config.num_nextn_predict_layers > 0
    mtp_weights = list(mtp_weights_of(config)) if has_module else []
    total = largest = 0
    for weight in (*weights, *mtp_weights) if with_mtp else weights:
        one = nbytes(weight)
        total += weight.count * one
        # A matrix is read whole, then rounded, packed or sent to its device.
        stay = weight.size * ITEMSIZES[weight_dtype]
        if device != "cpu" and rounding.name is not None:
            stay += one
        largest = max(largest, stay)
    return MemoryPlan(
        quantization=rounding.name,
        weight_dtype=weight_dtype,
        dtype=dtype,
        device=device,
        with_mtp=with_mtp,
        weight_bytes=total,
        read_bytes_per_token=sum(
            weight.active * nbytes(weight) for weight in weights if weight.kind != "embedding"
        ),
        mtp_weight_bytes=sum(weight.count * nbytes(weight) for weight in mtp_weights),
        workspace_bytes=workspace_nbytes(
            config,
            max_tokens_per_step,
            dtype,
            device,
            expert_dtype=rounding.expert_dtype(weight_dtype),
            with_mtp=with_mtp,
        ),
        visual_bytes=planned_visual_nbytes(config, settings or VisionSettings(), dtype, device),
        host_peak_bytes=(total if device == "cpu" else 0) + largest + LOADING_BYTES,
        kv_bytes_per_token=kv_bytes_per_token(config, dtype, with_mtp=with_mtp),
    )


def loaded_weight_nbytes(
    config: ModelConfig,
    *,
    quantization: Quantization,
    weight_dtype: str,
    dtype: str,
    device: str,
    has_head: bool,
    with_mtp: bool,
) -> int:
    """Bytes that the weights of a checkpoint take: at most, where it stores a head that may be a
    copy of the embedding it is tied to."""
    is_tied = config.tie_word_embeddings and not has_head
    plan = plan_memory(
        replace(config, tie_word_embeddings=is_tied),
        quantization=quantization,
        weight_dtype=weight_dtype,
        dtype=dtype,
        device=device,
        with_mtp=with_mtp,
    )
    return plan.weight_bytes


def planned_visual_nbytes(
    config: ModelConfig, settings: VisionSettings, dtype: str, device: str
) -> int:
    """See :attr:`MemoryPlan.visual_bytes`."""
    if config.vision is None:
        return 0
    patches = most_patches(settings)
    return visual_nbytes(config.vision, config.hidden_size, ITEMSIZES[dtype], device, patches)


def kv_bytes_per_token(config: ModelConfig, dtype: str, *, with_mtp: bool = False) -> int:
    """Keys and values of one token in all layers, in a cache of ``"bfloat16"`` or ``"float32"``.

    The layer of a multi-token prediction module keeps its own.
    """
    values = (
        2 * (config.num_hidden_layers + with_mtp) * config.num_key_value_heads * config.head_dim
    )
    return values * ITEMSIZES[dtype]


def workspace_nbytes(
    config: ModelConfig,
    max_tokens: int,
    dtype: str,
    device: str,
    *,
    expert_dtype: str,
    with_mtp: bool = False,
) -> int:
    """Bytes of a :class:`~.workspace.Workspace` of ``max_tokens`` rows, which has these arguments,
    and of what a multi-token prediction module joins."""
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    row = 2 * config.hidden_size + (query + 2 * key) + query  # of the activations' dtype
    row += _mlp_values(config.intermediate_size, device)
    row += 2 * config.hidden_size * with_mtp
    row_float32 = config.head_dim  # the rope table
    nbytes = 0
    plan = next((plan for plan in config.layers if plan.mlp == "moe"), None)
    if plan is not None:
        row += config.hidden_size + _mlp_values(plan.shared_intermediate_size, device)
        # What the router reads, its logits, and of each choice a weight and an id of 4 bytes.
        row_float32 += 0 if dtype == "float32" else config.hidden_size
        row_float32 += plan.num_experts * len(plan.bank_widths) + 2 * plan.top_k
        row_numbers = 8 * max_tokens
        nbytes = row_numbers + moe_workspace_nbytes(
            config, plan, max_tokens, dtype, expert_dtype, device
        )
    return nbytes + max_tokens * (row * ITEMSIZES[dtype] + row_float32 * ITEMSIZES["float32"])


def _mlp_values(width: int, device: str) -> int:
    """Between the projections of an MLP; on the CPU gate and up never leave the cache."""
    return width if device == "cpu" else 3 * width


def weight_nbytes(
    weight: Weight, quantization: Quantization, weight_dtype: str, dtype: str, device: str
) -> int:
    """Bytes of one of the matrices or vectors ``weight`` where and as the loader puts it."""
    storage = _storage(weight, quantization, weight_dtype, dtype)
    if weight.in_features == 0:
        return weight.out_features * ITEMSIZES[storage]
    rows, columns = weight.out_features, weight.in_features
    scales = _SCALE_BYTES * rows if storage not in ITEMSIZES else 0
    if device == "cpu":
        rows, columns = _up(rows, _PANEL_ROWS), _up(columns, _PACKED_TOGETHER[storage])
    elif storage == WINT4:
        columns = _up(columns, 2)
    return rows * columns * _BITS[storage] // 8 + scales


def _storage(weight: Weight, quantization: Quantization, weight_dtype: str, dtype: str) -> str:
    if weight.kind == "router":
        return "float32"
    if weight.kind == "norm":
        return dtype
    if weight.kind in ("embedding", "bias", "vision"):
        return weight_dtype
    kind = quantization.experts if weight.kind == "expert" else quantization.dense
    return stored_as(kind) or weight_dtype


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
