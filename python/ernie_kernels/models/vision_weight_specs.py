"""What tensors a vision tower and its resampler have, by their names in Baidu's PT files.

transformers saves the tower's names with ``model.`` before them.
"""

from __future__ import annotations

from ernie_kernels.models.vision_config import TEMPORAL_MERGE_SIZE, VisionConfig
from ernie_kernels.models.weight_spec import Extent, WeightSpec

TOWER = "vision_model"
PATCH_EMBED = f"{TOWER}.patch_embed.proj.weight"
BLOCKS = f"{TOWER}.blocks"
TOWER_NORM = f"{TOWER}.ln"

RESAMPLER = "model.resampler_model"
SPATIAL = f"{RESAMPLER}.spatial_linear"
TEMPORAL = f"{RESAMPLER}.temporal_linear"
PROJECTION = f"{RESAMPLER}.mlp"
AFTER_NORM = f"{RESAMPLER}.after_norm"


def vision_specs(vision: VisionConfig, hidden: Extent) -> dict[str, WeightSpec]:
    """Every tensor of tower and resampler; ``hidden``: of the text model."""
    size: Extent = (vision.hidden_size, ("vision_config.hidden_size",))
    patch: Extent = (vision.patch_values, ("vision_config.patch_size",))
    specs = {PATCH_EMBED: WeightSpec.of(size, patch)}
    for index in range(vision.depth):
        specs |= _block(vision, f"{BLOCKS}.{index}", size)
    return specs | _vectors(TOWER_NORM, size) | _resampler(vision, size, hidden)


def _block(vision: VisionConfig, name: str, size: Extent) -> dict[str, WeightSpec]:
    qkv: Extent = (3 * size[0], size[1])
    width: Extent = (vision.intermediate_size, ("vision_config.intermediate_size",))
    return {
        **_vectors(f"{name}.norm1", size),
        **_vectors(f"{name}.norm2", size),
        **_linear(f"{name}.attn.qkv", qkv, size),
        **_linear(f"{name}.attn.proj", size, size),
        **_linear(f"{name}.mlp.fc1", width, size),
        **_linear(f"{name}.mlp.fc2", size, width),
    }


def _resampler(vision: VisionConfig, size: Extent, hidden: Extent) -> dict[str, WeightSpec]:
    block: Extent = (vision.merged_size, (*size[1], "vision_config.spatial_merge_size"))
    keys = (*block[1], "vision_config.temporal_merge_size")
    frames: Extent = (TEMPORAL_MERGE_SIZE * vision.merged_size, keys)
    specs: dict[str, WeightSpec] = {}
    for name, width in ((SPATIAL, block), (TEMPORAL, frames)):
        specs |= _linear(f"{name}.0", block, width)
        specs |= _linear(f"{name}.2", block, block)
        specs |= _vectors(f"{name}.3", block)
    specs |= _linear(PROJECTION, hidden, block)
    return specs | {f"{AFTER_NORM}.weight": WeightSpec.of(hidden)}


def _linear(name: str, out_features: Extent, in_features: Extent) -> dict[str, WeightSpec]:
    return {
        f"{name}.weight": WeightSpec.of(out_features, in_features),
        f"{name}.bias": WeightSpec.of(out_features),
    }


def _vectors(name: str, size: Extent) -> dict[str, WeightSpec]:
    return {f"{name}.weight": WeightSpec.of(size), f"{name}.bias": WeightSpec.of(size)}
