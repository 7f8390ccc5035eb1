"""A checkpoint's tensors in float64, read without the engine's loader.

Nothing is fused, packed or kept: a layer's tensors are read when they are asked for. Only the
reader of the file format itself, ``_core.SafetensorsFile``, is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import WeightError
from ernie_kernels.models.checkpoint_folder import StoredTensor, open_tensors
from ernie_kernels.verify.architecture import Architecture
from ernie_kernels.verify.formulas import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Paddle may store the words of bfloat16 as U16.
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": BFLOAT16, "U16": BFLOAT16}
CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer in float64."""

    weight: Array  # [out_features, in_features]
    bias: Array | None

    def rows(self, chosen: slice) -> Matrix:
        """The same of some outputs."""
        return Matrix(self.weight[chosen], None if self.bias is None else self.bias[chosen])


@dataclass(frozen=True, slots=True)
class MLPWeights:
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class RouterWeights:
    """Of one bank of experts; float32 in the engine, whatever it is stored as."""

    gate: Array  # [num_experts, hidden_size]
    bias: Array  # [num_experts]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer without its experts. ``mlp`` is the dense one, or the shared experts, or None."""

    input_norm: Array
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    post_norm: Array
    mlp: MLPWeights | None
    routers: tuple[RouterWeights, ...]  # of each bank of experts; none in a dense layer


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
        return self.has("lm_head.weight")

    def has(self, name: str) -> bool:
        return self._name_of(name) in self._tensors

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
            mlp=self._mlp(index, f"{name}.mlp"),
            routers=self._routers(f"{name}.mlp") if self.architecture.has_experts(index) else (),
        )

    def expert(self, layer: int, index: int) -> MLPWeights:
        """``index``: among the experts of all banks."""
        shape = self.architecture.experts
        width = shape.widths[index // shape.count]
        name = f"model.layers.{layer}.mlp.experts"
        stacked = f"{name}.gate_up_proj"
        if stacked in self._tensors:
            gate_up = self._matrix(self._stored(stacked, index))
            return MLPWeights(
                gate=Matrix(gate_up.weight[:width], None),
                up=Matrix(gate_up.weight[width:], None),
                down=self._matrix(self._stored(f"{name}.down_proj", index)),
            )
        return self._mlp_of(f"{name}.{index}", width)

    def _mlp(self, layer: int, name: str) -> MLPWeights | None:
        if not self.architecture.has_experts(layer):
            return self._mlp_of(name, self.architecture.intermediate_size)
        shape = self.architecture.experts
        if not shape.num_shared:
            return None
        return self._mlp_of(f"{name}.shared_experts", shape.shared_width)

    def _mlp_of(self, name: str, width: int) -> MLPWeights:
        """``width``: of gate and up, which Paddle lays side by side."""
        return MLPWeights(
            gate=self._linear(f"{name}.gate_proj", width),
            up=self._linear(f"{name}.up_proj", width),
            down=self._linear(f"{name}.down_proj"),
        )

    def _routers(self, name: str) -> tuple[RouterWeights, ...]:
        banks = range(len(self.architecture.experts.widths))
        bias = self._name_of(f"{name}.moe_statics.e_score_correction_bias")
        if bias not in self._tensors:
            bias = bias.replace(".moe_statics.", ".gate.moe_statics.")
        biases = self._stored(bias).astype(np.float64)
        gates = [self._gate(f"{name}.gate.weight{'_1' if bank else ''}") for bank in banks]
        return tuple(map(RouterWeights, gates, biases))

    def _gate(self, name: str) -> Array:
        a = self.architecture
        gate = self._stored(self._name_of(name))
        shape = a.experts.count, a.hidden_size
        # A square one lies as the layout says; in vision-language models as in Paddle's files.
        is_transposed = self._is_paddle or a.vision is not None
        if gate.shape != shape or (is_transposed and gate.shape == gate.shape[::-1]):
            gate = gate.T
        return gate.astype(np.float64)

    def _matrix(self, weight: np.ndarray) -> Matrix:
        return Matrix(_exact(weight, rounded=self._round_matrices), None)

    def _linear(self, name: str, width: int = 0) -> Matrix:
        bias = None
        if self.architecture.use_bias:
            bias = _exact(self._part(f"{name}.bias", width), rounded=self._round_matrices)
        weight = self._part(f"{name}.weight", width)
        return Matrix(_exact(weight, rounded=self._round_matrices), bias)

    def plain_linear(self, name: str, *, has_bias: bool = True) -> Matrix:
        """A linear layer outside the decoder, which no layout fuses."""
        weight = self._stored(self._name_of(f"{name}.weight"))
        bias = None
        if has_bias:
            stored = self._stored(self._name_of(f"{name}.bias"))
            bias = _exact(stored, rounded=self._round_matrices)
        turned = weight.T if self._is_paddle else weight
        return Matrix(_exact(turned, rounded=self._round_matrices), bias)

    def table_rows(self, name: str) -> Iterator[tuple[int, Array]]:
        """Embedding or head, some thousand rows at a time: (first row, rows)."""
        stored = self._stored(self._name_of(name))
        if self._is_paddle and name == "lm_head.weight":
            stored = stored.T
        for first in range(0, len(stored), CHUNK_ROWS):
            rows = stored[first : first + CHUNK_ROWS]
            yield first, _exact(rows, rounded=self._round_matrices)

    def _part(self, name: str, width: int) -> np.ndarray:
        """A linear layer's weight as ``[out, in]``, or its bias.

        Paddle stores ``[in, out]`` and lays query, key and value side by side, and gate and up,
        which have ``width`` rows each.
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
            "gate_proj": ("up_gate_proj", 0, width),
            "up_proj": ("up_gate_proj", width, width),
        }
        member = name.split(".")[-2]
        stored_as, begin, count = fused.get(member, (member, 0, None))
        stored = self._stored(name.replace(member, stored_as))
        return stored.T if count is None else stored.T[begin : begin + count]

    def _name_of(self, name: str) -> str:
        if self._is_paddle and name.startswith("model."):
            return f"ernie.{name.removeprefix('model.')}"
        return name

    def _stored(self, name: str, index: int | None = None) -> np.ndarray:
        """A tensor, or the matrix ``index`` of several in one."""
        tensor: StoredTensor | None = self._tensors.get(name)
        if tensor is None:
            raise WeightError(f"verify: tensor {quoted(name)} is missing in the reference")
        if tensor.dtype not in STORED:
            raise WeightError(f"{tensor}: dtype {tensor.dtype}, expected {' or '.join(STORED)}")
        count, shape = (1, tensor.shape) if index is None else (tensor.shape[0], tensor.shape[1:])
        data = np.empty(tensor.nbytes // count, np.uint8)
        tensor.file.read_into(name, data, (index or 0) * data.nbytes)
        return data.view(STORED[tensor.dtype]).reshape(shape)


def _exact(values: np.ndarray, *, rounded: bool) -> Array:
    if rounded and values.dtype != BFLOAT16:
        values = values.astype(np.float32).astype(BFLOAT16)
    return values.astype(np.float64)
