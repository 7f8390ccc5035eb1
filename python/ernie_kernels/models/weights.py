"""From a checkpoint's tensors to a model's layers."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    RMSNorm,
    Wint4Linear,
    Wint8Linear,
)
from ernie_kernels.models.loader import NUMPY_DTYPES, Checkpoint
from ernie_kernels.models.quantization import W8A8, WINT4, Quantization, stored_as
from ernie_kernels.ops import ExpertWeights, PackedWeight

# A layer of one matrix, by how it is kept.
AnyLinear = Linear | Wint8Linear | Wint4Linear


class WeightReader:
    """Reads weights by their checkpoint names, one at a time, to where the ops want them.

    A matrix is quantised, if it is to be, and packed for the CPU's kernels as soon as it is read,
    and the unpacked copy released: loading never holds more than one matrix beside the model.

    Args:
        checkpoint: its ``require`` has accepted the names.
        device: ``"cpu"`` or ``"cuda:N"``.
        dtype: of the activations. Norm weights get it.
        weight_dtype: of matrices and biases; ``"bfloat16"`` also goes with float32 activations.
        quantization: of dense matrices and experts; 4-bit dense ones are for the CPU.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        device: str,
        dtype: str,
        weight_dtype: str,
        quantization: Quantization,
    ) -> None:
        self.checkpoint = checkpoint
        self.nbytes = 0  # of all weights delivered so far
        self._config = config
        self._device = device
        self._dtype = dtype
        self._weight_dtype = weight_dtype
        self.quantization = quantization

    def linear(self, prefix: str, *projections: str) -> AnyLinear:
        """The projections ``prefix.<projection>`` as one layer, their outputs side by side."""
        names = [f"{prefix}.{projection}" for projection in projections]
        bias = None
        if self._config.use_bias:
            bias = self._vector(self._weight_dtype, *(f"{name}.bias" for name in names))
        return self._linear(self.matrix(*(f"{name}.weight" for name in names)), bias)

    def experts(self, prefix: str, numbers: range, *projections: str) -> ExpertWeights:
        """The projections of the experts ``prefix.experts.<number>``, read one expert at a time."""
        names = [
            [f"{prefix}.experts.{number}.{projection}.weight" for projection in projections]
            for number in numbers
        ]
        out_features, in_features = self.checkpoint.shape_of(*names[0])
        matrix = np.empty((out_features, in_features), NUMPY_DTYPES[self._weight_dtype])
        experts = ops.expert_weights(
            len(numbers),
            out_features,
            in_features,
            dtype=self._weight_dtype,
            quantization=stored_as(self.quantization.experts),
            device=self._device,
        )
        for index, of_expert in enumerate(names):
            self.checkpoint.read_into(matrix, *of_expert)
            ops.expert_weights_set(experts, index, matrix)
        self.nbytes += experts.nbytes
        return experts

    def router(self, name: str) -> Linear:
        """A layer that is float32 whatever the other weights are."""
        return Linear(self._placed(self.checkpoint.tensor(name, dtype="float32")))

    def correction_bias(self, name: str) -> Tensor:
        """A row of float32, one for each expert of all banks."""
        return self._vector("float32", name).reshape(-1)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._vector(self._dtype, f"{name}.weight"), self._config.rms_norm_eps)

    def layer_norm(self, name: str, eps: float) -> LayerNorm:
        weight, bias = (self._vector(self._dtype, f"{name}.{part}") for part in ("weight", "bias"))
        return LayerNorm(weight, bias, eps)

    def vision_linear(self, name: str, activation: str | None = None) -> Linear:
        """A layer with a bias that is kept as it is stored, whatever is quantised."""
        weight = self.vision_matrix(f"{name}.weight")
        return Linear(weight, self._vector(self._weight_dtype, f"{name}.bias"), activation)

    def vision_matrix(self, name: str) -> PackedWeight | Tensor:
        return self._placed(self.matrix(name))

    def matrix(self, *names: str) -> np.ndarray:
        """Matrices of equal width one below the other, unpacked."""
        return self.checkpoint.tensor(*names, dtype=self._weight_dtype)

    def head(self, matrix: np.ndarray) -> AnyLinear:
        """A layer of a matrix at hand. The caller lets go of the argument."""
        return self._linear(matrix, None)

    def embedding(self, table: np.ndarray) -> Embedding:
        """A lookup in a table at hand, as it is. The caller lets go of the argument."""
        return Embedding(self._placed(table), self._config.vocab_size)

    def embedding_of(self, head: AnyLinear) -> Embedding:
        """A lookup in the weight of a head, without a copy."""
        if isinstance(head, Linear):
            return Embedding(head.weight, self._config.vocab_size)
        return Embedding(head.weight, self._config.vocab_size, head.scale)

    def _linear(self, matrix: np.ndarray, bias: Tensor | None) -> AnyLinear:
        kind = self.quantization.dense
        if kind is None:
            return Linear(self._placed(matrix), bias)
        if self._device == "cpu":
            packs = ops.wint4_quantize_and_pack if kind == WINT4 else ops.wint8_quantize_and_pack
            weight, scale = packs(matrix)
        else:
            rounds = ops.wint4_quantize if kind == WINT4 else ops.wint8_quantize
            weight, scale = (t.to(self._device) for t in rounds(matrix))
        self.nbytes += weight.nbytes + scale.nbytes
        if kind == WINT4:
            return Wint4Linear(weight, scale, bias)
        return Wint8Linear(weight, scale, bias, int8_activations=kind == W8A8)

    def _placed(self, matrix: np.ndarray) -> PackedWeight | Tensor:
        """A matrix in its final place."""
        weight = (
            ops.linear_pack(matrix) if self._device == "cpu" else from_numpy(matrix, self._device)
        )
        self.nbytes += weight.nbytes
        return weight

    def _vector(self, dtype: str, *names: str) -> Tensor:
        vector = from_numpy(self.checkpoint.tensor(*names, dtype=dtype), self._device)
        self.nbytes += vector.nbytes
        return vector
