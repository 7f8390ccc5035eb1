"""Typed, range-checked access to the keys of one configuration file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError

# Inclusive limits of every size. They bound what a hostile file can make later code allocate; the
# largest released model (hidden_size 8192, 54 layers, 131072 positions) is far inside.
SIZE_RANGES = {
    "vocab_size": (1, 1 << 20),
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 512),
    "max_position_embeddings": (1, 1 << 21),
}
# Of the keys that only models with experts have, and of multi-token prediction.
EXPERT_RANGES = {
    "moe_num_experts": (1, 4096),
    "moe_k": (1, 4096),
    "moe_intermediate_size": (1, 1 << 18),
    "moe_num_shared_experts": (0, 4096),
    "moe_layer_start_index": (0, 1024),
    "moe_layer_end_index": (-1, 1024),
    "moe_layer_interval": (1, 1024),
    "num_nextn_predict_layers": (0, 16),
    "multi_token_pred_depth": (0, 16),
}
# Of the keys that only models with a vision tower have.
VISION_RANGES = {
    "depth": (1, 1024),
    "num_heads": (1, 1024),
    "freq_allocation": (1, 256),
}
_RANGES = SIZE_RANGES | EXPERT_RANGES | VISION_RANGES


class ConfigReader:
    """Typed access to one JSON object; every error names the file and the key."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values = values
        self.file = file

    def fail(self, key: str, expected: str, got: object) -> ConfigError:
        return ConfigError(f"{self.file}: {key}: expected {expected}, got {quoted(got)}")

    def under_one_name(self, other_names: Mapping[str, str]) -> ConfigReader:
        """The same object, with what is there under another name under its own.

        Raises:
            ConfigError: both names are there, with values that differ.
        """
        values = dict(self.values)
        for other, name in other_names.items():
            value = values.pop(other, None)
            if value is None:
                continue
            if values.get(name) not in (None, value):
                raise ConfigError(f"{self.file}: {other} and {name} differ; remove one of them")
            values[name] = value
        return ConfigReader(values, self.file)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)  # null is how writers spell "the default"
        return default if value is None else value

    def size(self, key: str, default: int | None = None) -> int:
        """An integer inside its range above; ``default`` stands for an absent or null key."""
        value = self.values.get(key)
        low, high = _RANGES[key]
        if value is None and default is not None:
            value = default
        elif key not in self.values:
            raise ConfigError(f"{self.file}: {key}: missing; expected an integer {low}..{high}")
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"an integer {low}..{high}", value)
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not _is_positive_float32(value):
            raise self.fail(key, "a finite number > 0 in the range of float32", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false", value)
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.fail(key, "one of " + ", ".join(choices), value)
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One id, a list of ids, or none."""
        value = self.values.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for item in ids:
            if type(item) is not int or not 0 <= item < vocab_size:
                raise self.fail(key, f"token ids >= 0 and below vocab_size={vocab_size}", item)
        return tuple(dict.fromkeys(ids))

    def token_id(self, key: str, vocab_size: int) -> int | None:
        if isinstance(self.values.get(key), list):
            raise self.fail(key, "one token id or null", self.values[key])
        return next(iter(self.token_ids(key, vocab_size)), None)


def _is_positive_float32(value: float) -> bool:
    # Kernels take these as float32: a value that becomes 0 or infinite there is refused here.
    return value > 0 and math.isfinite(value) and 2.0**-126 <= value < 2.0**128
