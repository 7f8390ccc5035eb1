"""A config.json, changed here and there, and what is said about one that cannot be used."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config import ModelConfig, load_config

ABSENT = object()  # in the place of a value: the key is not in the file


def load_changed(
    folder: Path,
    base: Mapping[str, Any],
    *,
    generation: Mapping[str, Any] | None = None,
    tower: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    **changes: Any,
) -> ModelConfig:
    """What ``base`` says with ``changes``, and those of its vision_config and its text_config."""
    values = copy.deepcopy(dict(base))
    for place, changed in (
        (values, changes),
        (values.get("vision_config"), tower),
        (values.get("text_config"), text),
    ):
        for key, value in (changed or {}).items():
            place.pop(key, None)
            if value is not ABSENT:
                place[key] = value
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return load_config(folder)


def refuse_changed(folder: Path, base: Mapping[str, Any], *words: str, **changes: Any) -> None:
    """The error names the file and holds all the words."""
    with pytest.raises(ConfigError) as caught:
        load_changed(folder, base, **changes)
    message = str(caught.value)
    for word in ("config.json", *words):
        assert word in message
    assert len(message.encode()) <= 512
    assert str(folder) not in message
