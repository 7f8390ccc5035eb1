"""A checkpoint's tensors in float64, read without the engine's loader.

Nothing is fused, packed or kept: a layer's tensors are read when they are asked for. Only the
reader of the file format itself, ``_core.SafetensorsFile``, is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import UnsupportedError, WeightError
from ernie_kernels.models.checkpoint_folder import StoredTensor, open_tensors
from ernie_kernels.models.config import CONFIG_FILE, load_config
from ernie_kernels.verify.formulas import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Paddle may store the words of bfloat16 as U16.
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "U16": BFLOAT16}
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Architecture:
    """The numbers of config.json that the formulas need."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    theta: float
    use_bias: bool

    @classmethod
    def of_folder(cls, folder: Path) -> Architecture:
        """Raises ConfigError as the engine does; the values are then read from the file anew."""
        checked = load_config(folder)
        if any(plan.mlp != "dense" for plan in checked.layers):
            raise UnsupportedError(f"verify: {checked.architecture} is not dense; no reference yet")
        values = read_json(folder / CONFIG_FILE)

        def value(key: str, default: Any) -> Any:
            return default if values.get(key) is None else values[key]

        heads, hidden = values["num_attention_heads"], values["hidden_size"]
        nested = value("rope_parameters", value("rope_scaling", {}))
        return cls(
            vocab_size=values["vocab_size"],
            hidden_size=hidden,
            intermediate_size=values["intermediate_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=value("num_key_value_heads", heads),
            head_dim=value("head_dim", hidden // heads),
            eps=float(value("rms_norm_eps", 1e-5)),
            theta=float(value("rope_theta", nested.get("rope_theta", 500000.0))),
            use_bias=value("use_bias", False),
        )


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer in float64."""

    weight: Array  # [out_features, in_features]
    bias: Array | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    input_norm: Array
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    post_norm: Array
    gate: Matrix
    up: Matrix
    down: Matrix


class StoredWeights:
    """The tensors of a folder by their Hugging Face names, in either layout.

    Args:
        folder: of the checkpoint.
        round_matrices, round_vectors: to bfloat16 first, because the engine holds them so.
    """

    def __init__(self, folder: Path, *, round_matrices: bool, round_vectors: bool) -> None:
        self.architecture = Architecture.of_folder(folder)
        self._tensors = open_tensors(folder)
        self._is_paddle = any(name.startswith("ernie.") for name in self._tensors)
        self._round_matrices = round_matrices
        self._round_vectors = round_vectors

    @property
    def has_head(self) -> bool:
        return "lm_head.weight" in self._tensors

    def vector(self, name: str) -> Array:
        values = self._stored(self._name_of(name))
        return _exact(values, rounded=self._round_vectors)

    def layer(self, index: int) -> LayerWeights:
        name = f"model.layers.{index}"
        return LayerWeights(
            input_norm=self.vector(f"{name}.input_layernorm.weight"),
            q=self._linear(f"{name}.self_attn.q_proj"),
            k=self._linear(f"{name}.self_attn.k_proj"),
            v=self._linear(f"{name}.self_attn.v_proj"),
            o=self._linear(f"{name}.self_attn.o_proj"),
            post_norm=self.vector(f"{name}.post_attention_layernorm.weight"),
            gate=self._linear(f"{name}.mlp.gate_proj"),
            up=self._linear(f"{name}.mlp.up_proj"),
            down=self._linear(f"{name}.mlp.down_proj"),
        )

    def _linear(self, name: str) -> Matrix:
        bias = None
        if self.architecture.use_bias:
            bias = _exact(self._part(f"{name}.bias"), rounded=self._round_matrices)
        return Matrix(_exact(self._part(f"{name}.weight"), rounded=self._round_matrices), bias)

    def table_rows(self, name: str) -> Iterator[tuple[int, Array]]:
        """Embedding or head, some thousand rows at a time: (first row, rows)."""
        stored = self._stored(self._name_of(name))
        if self._is_paddle and name == "lm_head.weight":
            stored = stored.T
        for first in range(0, len(stored), CHUNK_ROWS):
            rows = stored[first : first + CHUNK_ROWS]
            yield first, _exact(rows, rounded=self._round_matrices)

    def _part(self, name: str) -> np.ndarray:
        """A linear layer's weight as ``[out, in]``, or its bias.

        Paddle stores ``[in, out]`` and lays query, key and value side by side, and gate and up.
        """
        if not self._is_paddle:
            return self._stored(name)
        name = self._name_of(name)
        a = self.architecture
        query, key = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
        fused = {
            "q_proj": ("qkv_proj", 0, query),
            "k_proj": ("qkv_proj", query, key),
            "v_proj": ("qkv_proj", query + key, key),
            "gate_proj": ("up_gate_proj", 0, a.intermediate_size),
            "up_proj": ("up_gate_proj", a.intermediate_size, a.intermediate_size),
        }
        member = name.split(".")[-2]
        stored_as, begin, count = fused.get(member, (member, 0, None))
        stored = self._stored(name.replace(member, stored_as))
        return stored.T if count is None else stored.T[begin : begin + count]

    def _name_of(self, name: str) -> str:
        return name.replace("model.", "ernie.", 1) if self._is_paddle else name

    def _stored(self, name: str) -> np.ndarray:
        tensor: StoredTensor | None = self._tensors.get(name)
        if tensor is None:
            raise WeightError(f"verify: tensor {quoted(name)} is missing in the reference")
        if tensor.dtype not in STORED:
            raise WeightError(f"{tensor}: dtype {tensor.dtype}, expected {' or '.join(STORED)}")
        data = np.empty(tensor.nbytes, np.uint8)
        tensor.file.read_into(name, data)
        return data.view(STORED[tensor.dtype]).reshape(tensor.shape)


def _exact(values: np.ndarray, *, rounded: bool) -> Array:
    if rounded and values.dtype != BFLOAT16:
        values = values.astype(np.float32).astype(BFLOAT16)
    return values.astype(np.float64)
