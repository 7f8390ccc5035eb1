"""From a checkpoint's tensors to a model's layers."""

from __future__ import annotations

import numpy as np

from ernie_kernels import ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.layers import Linear, RMSNorm
from ernie_kernels.models.loader import Checkpoint
from ernie_kernels.ops import PackedWeight


class WeightReader:
    """Reads weights by their checkpoint names, one at a time, to where the ops want them.

    A matrix is packed for the CPU's kernels as soon as it is read, and the unpacked copy released:
    loading never holds more than one matrix beside the model.

    Args:
        checkpoint: its ``require`` has accepted the names.
        device: ``"cpu"`` or ``"cuda:N"``.
        dtype: of the activations. Norm weights get it.
        weight_dtype: of matrices and biases; ``"bfloat16"`` also goes with float32 activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        device: str,
        dtype: str,
        weight_dtype: str,
    ) -> None:
        self.checkpoint = checkpoint
        self.nbytes = 0  # of all weights delivered so far
        self._config = config
        self._device = device
        self._dtype = dtype
        self._weight_dtype = weight_dtype

    def linear(self, prefix: str, *projections: str) -> Linear:
        """The projections ``prefix.<projection>`` as one layer, their outputs side by side."""
        names = [f"{prefix}.{projection}" for projection in projections]
        bias = None
        if self._config.use_bias:
            bias = self._vector(self._weight_dtype, *(f"{name}.bias" for name in names))
        return Linear(self.pack(self.matrix(*(f"{name}.weight" for name in names))), bias)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._vector(self._dtype, f"{name}.weight"), self._config.rms_norm_eps)

    def matrix(self, *names: str) -> np.ndarray:
        """Matrices of equal width one below the other, unpacked."""
        return self.checkpoint.tensor(*names, dtype=self._weight_dtype)

    def pack(self, matrix: np.ndarray) -> PackedWeight | Tensor:
        """A matrix in its final place. The caller lets go of the argument."""
        weight = (
            ops.linear_pack(matrix) if self._device == "cpu" else from_numpy(matrix, self._device)
        )
        self.nbytes += weight.nbytes
        return weight

    def _vector(self, dtype: str, *names: str) -> Tensor:
        vector = from_numpy(self.checkpoint.tensor(*names, dtype=dtype), self._device)
        self.nbytes += vector.nbytes
        return vector
