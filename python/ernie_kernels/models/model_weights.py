"""The weights of a model as they lie in memory, from its configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ernie_kernels.models.config import LayerPlan, ModelConfig
from ernie_kernels.models.vision_config import TEMPORAL_MERGE_SIZE, VisionConfig


@dataclass(frozen=True, slots=True)
class Weight:
    """``count`` equal matrices, or vectors where ``in_features`` is 0, of which a token of text needs
    ``active``. ``"vision"``: a matrix of the tower or the resampler."""

    kind: Literal["embedding", "projection", "expert", "router", "norm", "bias", "vision"]
    out_features: int
    in_features: int = 0
    count: int = 1
    active: int = 1

    @property
    def size(self) -> int:
        """Parameters of one of them."""
        return self.out_features * max(1, self.in_features)


def weights_of(config: ModelConfig) -> Iterator[Weight]:
    """All weights of a model as they lie in memory.

    The head counts as a projection; where it is tied it serves as the embedding too, and there is
    none of that kind. A multi-token prediction module is not among them.
    """
    hidden = config.hidden_size
    if not config.tie_word_embeddings:
        yield Weight("embedding", config.vocab_size, hidden)
    yield Weight("projection", config.vocab_size, hidden)
    for plan, times in Counter(config.layers).items():
        for weight in _weights_of_layer(config, plan):
            yield replace(weight, count=times * weight.count, active=times * weight.active)
    yield Weight("norm", hidden)
    if config.vision is not None:
        yield from vision_weights_of(config.vision, hidden)


def _weights_of_layer(config: ModelConfig, plan: LayerPlan) -> Iterator[Weight]:
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    yield Weight("norm", hidden, count=2, active=2)
    projections = [(query + 2 * key, hidden), (hidden, query)]
    width = plan.intermediate_size if plan.mlp == "dense" else plan.shared_intermediate_size
    if width:
        projections += [(2 * width, hidden), (hidden, width)]
    for out_features, in_features in projections:
        yield Weight("projection", out_features, in_features)
        if config.use_bias:
            yield Weight("bias", out_features)
    if plan.mlp == "moe":
        for bank, width in enumerate(plan.bank_widths):
            is_text = bank == 0
            experts = {"count": plan.num_experts, "active": plan.top_k * is_text}
            yield Weight("expert", 2 * width, hidden, **experts)
            yield Weight("expert", hidden, width, **experts)
            yield Weight("router", plan.num_experts, hidden, active=int(is_text))
            yield Weight("router", plan.num_experts, active=int(is_text))  # its correction bias


def vision_weights_of(vision: VisionConfig, hidden: int) -> Iterator[Weight]:
    """Those of a vision tower and its resampler; ``hidden``: hidden_size of the text model."""
    size, width, block = vision.hidden_size, vision.intermediate_size, vision.merged_size

    def weight(
        kind: Literal["vision", "bias", "norm"],
        out_features: int,
        in_features: int = 0,
        count: int = 1,
    ) -> Weight:
        return Weight(kind, out_features, in_features, count=count, active=0)

    yield weight("vision", size, vision.patch_values)
    of_block = [(3 * size, size), (size, size), (width, size), (size, width)]
    of_resampler = [(block, block), (block, block), (block, TEMPORAL_MERGE_SIZE * block)]
    of_resampler += [(block, block), (hidden, block)]
    for matrices, count in ((of_block, vision.depth), (of_resampler, 1)):
        for out_features, in_features in matrices:
            yield weight("vision", out_features, in_features, count=count)
            yield weight("bias", out_features, count=count)
    # A weight and a bias each, but for the last, which is the text model's kind of norm.
    yield weight("norm", size, count=2 * (2 * vision.depth + 1))
    yield weight("norm", block, count=2 * 2)
    yield weight("norm", hidden)


def mtp_weights_of(config: ModelConfig) -> Iterator[Weight]:
    """The weights of a multi-token prediction module: a dense layer behind a projection."""
    hidden = config.hidden_size
    yield Weight("norm", hidden, count=2, active=2)
    yield Weight("projection", hidden, 2 * hidden)
    yield from _weights_of_layer(config, LayerPlan("dense", config.intermediate_size))


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Of a model: all of them; those that one token of text goes through, embedding included; and
    those of the vision tower and its resampler."""

    total: int
    active: int
    vision: int = 0


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Weights of the model, those of a multi-token prediction module left out."""
    weights = list(weights_of(config))
    vision = [] if config.vision is None else vision_weights_of(config.vision, config.hidden_size)
    return ParameterCount(
        total=sum(weight.count * weight.size for weight in weights),
        active=sum(weight.active * weight.size for weight in weights),
        vision=sum(weight.count * weight.size for weight in vision),
    )
