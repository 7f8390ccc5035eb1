"""What config.json says of images and videos, read without the engine's reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH = 14  # pixels each way


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The vision tower: ``vision_config``."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    activation: str
    eps: float  # of the resampler's LayerNorms too
    theta: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def merged_size(self) -> int:
        """Of four patches side by side."""
        return 4 * self.hidden_size

    @classmethod
    def of_config(cls, tower: Mapping[str, Any]) -> VisionShape:
        def value(*keys: str, default: Any = None) -> Any:
            return next((tower[key] for key in keys if tower.get(key) is not None), default)

        hidden = value("hidden_size", "embed_dim")
        nested = value("rope_parameters", "rope_scaling", default={})
        width = value("intermediate_size", default=int(hidden * value("mlp_ratio", default=4)))
        return cls(
            depth=value("depth", "num_hidden_layers"),
            hidden_size=hidden,
            num_heads=value("num_heads", "num_attention_heads"),
            intermediate_size=width,
            activation=value("hidden_act", default="quick_gelu"),
            eps=float(value("rms_norm_eps", "layer_norm_eps", default=1e-6)),
            theta=float(value("rope_theta", default=nested.get("rope_theta", 10000.0))),
        )


@dataclass(frozen=True, slots=True)
class MediaIds:
    """Tokens in the place of images and videos, and of those before and behind them."""

    image: int
    video: int
    image_start: int
    image_end: int
    video_start: int
    video_end: int

    @property
    def all(self) -> frozenset[int]:
        return frozenset(getattr(self, name) for name in self.__dataclass_fields__)

    def around(self, kind: str) -> tuple[int, int, int]:
        """What stands before, for and behind one of this kind."""
        if kind == "image":
            return self.image_start, self.image, self.image_end
        return self.video_start, self.video, self.video_end

    @classmethod
    def of_config(cls, values: Mapping[str, Any]) -> MediaIds:
        def value(key: str, default: int) -> int:
            return default if values.get(key) is None else values[key]

        image = value("image_token_id", value("im_patch_id", 100295))
        return cls(
            image=image,
            video=value("video_token_id", image),
            image_start=value("image_start_token_id", 101304),
            image_end=value("image_end_token_id", 101305),
            video_start=value("video_start_token_id", 101306),
            video_end=value("video_end_token_id", 101307),
        )
