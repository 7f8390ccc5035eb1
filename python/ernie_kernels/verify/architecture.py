"""The numbers of config.json that the float64 model needs, read without the engine's reader.

That reader has refused what is contradictory or not supported; here are values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_kernels.checkpoint_file import read_json
from ernie_kernels.models.config import CONFIG_FILE, load_config
from ernie_kernels.verify.vision_shape import MediaIds, VisionShape


class Values:
    """Of config.json, with those of its ``text_config`` in one; a null counts as absent."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        text = whole.get("text_config") or {}
        self._values = {**text, **{k: v for k, v in whole.items() if v is not None}}

    def get(self, *keys: str, default: Any = None) -> Any:
        """Of the first key that is there."""
        for key in keys:
            if self._values.get(key) is not None:
                return self._values[key]
        return default

    def all(self, *keys: str, default: Any = None) -> list[Any]:
        """The same as a list: of the values by modality, text and vision, or of one."""
        found = self.get(*keys, default=default)
        return found if isinstance(found, list) else [found]


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """Of the layers with experts. All zero in a dense model.

    ``widths`` are those of each bank, text and vision: every bank has ``count`` experts, those of the
    second behind those of the first.
    """

    count: int = 0
    top_k: int = 0
    widths: tuple[int, ...] = ()
    num_shared: int = 0
    norm_min: float = 1e-12
    layers: tuple[bool, ...] = ()  # whether each has experts

    @property
    def shared_width(self) -> int:
        """Of all shared experts together, which are as wide as those of text."""
        return self.num_shared * self.widths[0]

    @classmethod
    def of_config(cls, values: Values) -> ExpertShape:
        num_layers = values.get("num_hidden_layers")
        kinds = values.get("mlp_layer_types")
        if kinds is not None:
            layers = [kind == "sparse" for kind in kinds]
        else:
            first = min(values.all("moe_layer_start_index"))
            step = values.get("moe_layer_interval", default=1)
            lasts = values.all("moe_layer_end_index", default=-1)
            last = num_layers - 1 if -1 in lasts else max(lasts)
            layers = [first <= i <= last and (i + 1) % step == 0 for i in range(num_layers)]
        return cls(
            count=values.all("moe_num_experts", "num_experts")[0],
            top_k=values.all("moe_k", "num_experts_per_tok")[0],
            widths=tuple(values.all("moe_intermediate_size")),
            num_shared=values.all("moe_num_shared_experts", default=0)[0] or 0,
            norm_min=float(values.get("moe_norm_min", default=1e-12)),
            layers=tuple(layers),
        )


@dataclass(frozen=True, slots=True)
class Architecture:
    """Of a whole model. ``vision`` and ``media_ids`` are None in one of text alone."""

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
    experts: ExpertShape
    num_time_pairs: int = 0  # of the rotary embedding, the last ones
    vision: VisionShape | None = None
    media_ids: MediaIds | None = None

    def has_experts(self, layer: int) -> bool:
        return bool(self.experts.layers) and self.experts.layers[layer]

    @classmethod
    def of_folder(cls, folder: Path) -> Architecture:
        """Raises ConfigError as the engine does; the values are then read from the file anew."""
        config = load_config(folder)
        is_moe = any(plan.mlp == "moe" for plan in config.layers)
        whole = read_json(folder / CONFIG_FILE)
        values = Values(whole)
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        head_dim = values.get("head_dim", default=hidden // heads)
        nested = values.get("rope_parameters", "rope_scaling", default={})
        tower = whole.get("vision_config") if config.vision is not None else None
        times = (nested.get("mrope_section") or [None])[-1]
        return cls(
            vocab_size=values.get("vocab_size"),
            hidden_size=hidden,
            intermediate_size=values.get("intermediate_size"),
            num_layers=values.get("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads", default=heads),
            head_dim=head_dim,
            eps=float(values.get("rms_norm_eps", default=1e-5)),
            theta=float(values.get("rope_theta", default=nested.get("rope_theta", 500000.0))),
            use_bias=values.get("use_bias", default=False),
            experts=ExpertShape.of_config(values) if is_moe else ExpertShape(),
            num_time_pairs=values.get("freq_allocation", default=20 if times is None else times),
            vision=None if tower is None else VisionShape.of_config(tower),
            media_ids=None if tower is None else MediaIds.of_config(whole),
        )
