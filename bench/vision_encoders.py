"""The vision half of VL-28B in its real size, ours and transformers', behind one shape.

Weights are random, made in memory and the same for all: 775 million values.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import ernie_kernels as ek
from ernie_kernels.models.config import ModelConfig, load_config_file
from ernie_kernels.models.ernie_vl import VisualEncoder
from ernie_kernels.models.loader import NUMPY_DTYPES
from ernie_kernels.models.quantization import Quantization
from ernie_kernels.models.slices import products_per_slice
from ernie_kernels.models.vision_tower import FrameBatch, TowerBuffers
from ernie_kernels.models.vision_weight_specs import RESAMPLER, TOWER, vision_specs
from ernie_kernels.models.weights import WeightReader
from ernie_kernels.vision import VisionSettings, VisualItem
from random_checkpoint import CONFIG_21B
from synthetic_model import SyntheticCheckpoint

from harness import torch_tensor

Grid = tuple[int, int, int]
DTYPES = ("bfloat16", "float32")
PATCH_SIZE, PATCH_VALUES = 14, 588

# As transformers saves it; of the text model only the width and the last norm take part.
CONFIG_VL_28B: dict[str, Any] = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_vl_moe",
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
    "text_config": {
        key: CONFIG_21B[key]
        for key in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "moe_num_experts",
            "num_attention_heads", "num_key_value_heads", "moe_k", "rms_norm_eps", "hidden_act",
            "max_position_embeddings", "moe_num_shared_experts", "use_bias",
        )
    }
    | {
        "mlp_layer_types": ["dense"] + ["sparse"] * 27,
        "moe_intermediate_size": [1536, 512],
        "rope_parameters": {
            "mrope_section": [22, 22, 20], "rope_theta": 500000.0, "rope_type": "default",
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 5120,
        "hidden_act": "quick_gelu",
        "in_channels": 3,
        "patch_size": PATCH_SIZE,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
        "spatial_merge_size": 2,
        "temporal_merge_size": 2,
    },
}  # fmt: skip


def checked_config(config: Mapping[str, Any]) -> ModelConfig:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        return load_config_file(path)


def random_weights(config: ModelConfig) -> SyntheticCheckpoint:
    assert config.vision is not None
    specs = vision_specs(config.vision, (config.hidden_size, ()))
    return SyntheticCheckpoint({name: spec.shape for name, spec in specs.items()})


class Picture:
    """Random pixels, and as transformers' processor hands them over.

    Attributes:
        pixels: uint8 ``[t, rows * 14, columns * 14, 3]``.
        patches: float32 ``[t * rows * columns, 588]``.
        hidden_states: float32 ``[t * rows * columns, hidden_size]``, in the place of the tower's rows.
    """

    def __init__(self, grid: Grid, hidden_size: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        frames, rows, columns = self.grid = grid
        shape = frames, rows * PATCH_SIZE, columns * PATCH_SIZE, 3
        self.pixels = rng.integers(0, 256, shape).astype(np.uint8)
        self.patches = ek.ops.image_patches(
            self.pixels.reshape(-1), np.array([grid], np.int64), VisionSettings().levels()
        ).numpy()
        self.hidden_states = rng.standard_normal((len(self.patches), hidden_size), np.float32)


class Encoder(Protocol):
    """Both calls do all that is done for a picture, positions and the like included."""

    name: str

    def show(self, picture: Picture) -> None:
        """What the calls below are about."""

    def tower(self) -> object:
        """Rows behind the last norm, ``[patches, hidden_size]``."""

    def resampler(self) -> object:
        """Of ``picture.hidden_states``: ``[tokens, hidden_size of the text model]``."""

    def values(self, rows: Any) -> np.ndarray:
        """What one of them returned, as float32."""


class OurEncoder:
    """From pixels, where transformers is given patches."""

    def __init__(
        self, config: ModelConfig, checkpoint: SyntheticCheckpoint, dtype: str, device: str = "cpu"
    ) -> None:
        assert config.vision is not None
        self.name = f"ours {dtype}"
        self.dtype, self._device = dtype, device
        self._vision, self._hidden_size = config.vision, config.hidden_size
        weights = WeightReader(
            config,
            checkpoint,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
            weight_dtype="bfloat16",
            quantization=Quantization(),
        )
        levels = VisionSettings().levels()
        self.encoder = VisualEncoder(
            config, config.vision, weights, levels, device=device, dtype=dtype
        )

    def show(self, picture: Picture) -> None:
        self._picture = picture
        rows = picture.hidden_states.astype(NUMPY_DTYPES[self.dtype])
        self._hidden_states = ek.from_numpy(rows, self._device)

    def tower(self) -> ek.Tensor:
        buffers, tower, grid = self._buffers(), self.encoder.tower, self._picture.grid
        frames, height, width = grid
        item = VisualItem("video", grid, self._picture.pixels, None, b"")
        for frame in range(frames):
            rows = slice(frame * height * width, (frame + 1) * height * width)
            tower.embed(item, frame, slice(0, height), buffers.residual[rows])
        batch = FrameBatch.of([grid], self._vision, self._device)
        for _ in tower.slices(batch, buffers, products_per_slice(self._device)):
            pass
        return buffers.hidden_states

    def resampler(self) -> ek.Tensor:
        frames, rows, columns = self._picture.grid
        tokens = (frames + 1) // 2 * rows * columns // 4
        out = ek.empty([tokens, self._hidden_size], self.dtype, self._device)
        buffers = replace(self._buffers(), hidden_states=self._hidden_states)
        products = products_per_slice(self._device)
        for _ in self.encoder.resampler.slices([self._picture.grid], buffers, products, out=out):
            pass
        return out

    def _buffers(self) -> TowerBuffers:
        count = len(self._picture.patches)
        return TowerBuffers.make(self._vision, count, self.dtype, self._device)

    def values(self, rows: ek.Tensor) -> np.ndarray:
        return rows.numpy().astype(np.float32)


class TransformersEncoder:
    """transformers' modules with torch's scaled_dot_product_attention."""

    def __init__(
        self, config: Mapping[str, Any], checkpoint: SyntheticCheckpoint, dtype: str
    ) -> None:
        import torch
        from transformers import Ernie4_5_VLMoeConfig
        from transformers.models.ernie4_5_vl_moe import modeling_ernie4_5_vl_moe as modeling

        self.name, self._torch = f"transformers {dtype}", torch
        self._dtype = getattr(torch, dtype)
        whole = Ernie4_5_VLMoeConfig.from_dict(dict(config))
        whole.vision_config._attn_implementation = "sdpa"
        with torch.device("meta"):
            tower = modeling.Ernie4_5_VLMoeVisionTransformerPretrainedModel(whole.vision_config)
            resampler = modeling.Ernie4_5_VLMoeVariableResolutionResamplerModel(whole)
        tower.rotary_pos_emb = modeling.Ernie4_5_VLMoeVisionRotaryEmbedding(whole.vision_config)
        self._tower = self._filled(tower, checkpoint, f"{TOWER}.")
        self._resampler = self._filled(resampler, checkpoint, f"{RESAMPLER}.")

    def _filled(self, module, checkpoint: SyntheticCheckpoint, prefix: str):
        """``module``, which has no storage yet, with the tensors of ``checkpoint``."""
        in_memory = {"fc1": "0", "fc2": "2", "ln": "3"}  # transformers' names of the resampler's
        state = {}
        for name, tensor in module.state_dict().items():
            parts = name.split(".")
            if prefix.startswith(RESAMPLER):
                parts = [in_memory.get(part, part) for part in parts]
            stored = checkpoint.tensor(prefix + ".".join(parts), dtype="bfloat16")
            assert stored.shape == tuple(tensor.shape)
            state[name] = torch_tensor(stored, "cpu").to(self._dtype)
        module.load_state_dict(state, assign=True)
        return module.eval()

    def show(self, picture: Picture) -> None:
        self._patches = self._torch.from_numpy(picture.patches)
        self._hidden_states = self._torch.from_numpy(picture.hidden_states).to(self._dtype)
        self._grid = self._torch.tensor([picture.grid])

    def tower(self):
        with self._torch.inference_mode():
            return self._tower(self._patches, self._grid).last_hidden_state

    def resampler(self):
        with self._torch.inference_mode():
            return self._resampler(self._hidden_states, self._grid)

    def values(self, rows) -> np.ndarray:
        return rows.float().numpy()
