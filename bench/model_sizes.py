"""Counts that follow from a configuration: what a token reads, and what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from random_checkpoint import is_sparse

if TYPE_CHECKING:
    from model_timing import ModelCase


def sparse_layers(config: Mapping[str, Any]) -> int:
    return sum(is_sparse(config, layer) for layer in range(config["num_hidden_layers"]))


def expert_parameters(config: Mapping[str, Any]) -> int:
    """Of one expert."""
    return 3 * config["hidden_size"] * config["moe_intermediate_size"]


def read_per_token(nbytes: float, bits: float, config: Mapping[str, Any]) -> int:
    """Bytes of weights that one token reads: all but the experts that it does not go to.

    Args:
        nbytes: of all weights.
        bits: of one weight of an expert, scales included.
    """
    if not sparse_layers(config):
        return int(nbytes)
    idle = config["moe_num_experts"] - config["moe_k"]
    return int(nbytes - sparse_layers(config) * idle * expert_parameters(config) * bits / 8)


def flops_of(case: ModelCase, config: Mapping[str, Any]) -> int:
    """Multiplications and additions of one time: the head runs for one token only."""
    hidden, head_dim = config["hidden_size"], config["head_dim"]
    query = config["num_attention_heads"] * head_dim
    key = config["num_key_value_heads"] * head_dim
    layers, sparse = config["num_hidden_layers"], sparse_layers(config)
    weights = layers * hidden * (2 * query + 2 * key)
    weights += (layers - sparse) * hidden * 3 * config["intermediate_size"]
    if sparse:
        chosen = config["moe_k"] + (config.get("moe_num_shared_experts") or 0)
        weights += sparse * (
            chosen * expert_parameters(config) + config["moe_num_experts"] * hidden
        )
    length = case.prompt_tokens
    pairs = length + case.decoded_tokens // 2 if case.decoded_tokens else length * (length + 1) // 2
    head = config["vocab_size"] * hidden
    return 2 * (weights * case.tokens + layers * 2 * query * pairs + head)
