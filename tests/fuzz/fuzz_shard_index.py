"""model.safetensors.index.json beside its shards: a checkpoint, or a FormatError or WeightError.

What is opened holds what the index says and lies in the folder; a valid file beside the folder waits
for an index that reaches it.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mutation import json_text_changed

from ernie_kernels import _core
from ernie_kernels.errors import FormatError, WeightError
from ernie_kernels.models import checkpoint_folder
from ernie_kernels.models.checkpoint_folder import INDEX_FILE
from ernie_kernels.models.loader import WeightSpec, open_checkpoint
from safetensors_bytes import save

ALLOWED = (FormatError, WeightError)
ROOT = tempfile.TemporaryDirectory()
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
NAMES = [f"model.layers.{i}.input_layernorm.weight" for i in range(5)]
TENSORS = {name: np.full(4, i, np.float32) for i, name in enumerate(NAMES)}
PLACES = {name: SHARDS[i % 3] for i, name in enumerate(NAMES)}
OUTSIDE = "../outside.safetensors"
WORDS = [
    *SHARDS, *NAMES, OUTSIDE, "weight_map", "metadata", "total_size", "model.safetensors",
    "./" + SHARDS[0], "a/../" + SHARDS[0], SHARDS[0] + "\0", SHARDS[0].upper(), ".safetensors",
    "twice.safetensors", "empty.safetensors", "missing.safetensors", "..", "x" * 250 + ".safetensors",
]  # fmt: skip


def seeds() -> list[Any]:
    sole = dict.fromkeys(NAMES, "model.safetensors")
    return [
        {"folder": "plain", "index": index_of(PLACES)},
        {"folder": "plain", "index": json.dumps({"weight_map": PLACES})},
        {"folder": "single", "index": index_of(sole)},
    ]


def index_of(weight_map: dict[str, str]) -> str:
    return json.dumps({"metadata": {"total_size": 80}, "weight_map": weight_map})


def make_folders(root: Path) -> None:
    """plain: three shards. twice: one tensor more, in two files. single: all in one file. short:
    the last shard is missing."""
    for kind in ("plain", "twice", "single", "short"):
        folder = root / kind
        folder.mkdir()
        if kind == "single":
            save(folder / "model.safetensors", TENSORS)
            continue
        for shard in SHARDS[: 2 if kind == "short" else 3]:
            save(folder / shard, {n: t for n, t in TENSORS.items() if PLACES[n] == shard})
        if kind == "twice":
            save(folder / "twice.safetensors", {NAMES[0]: TENSORS[NAMES[0]]})
            save(folder / "empty.safetensors", {})
    save(root / "outside.safetensors", {NAMES[0]: TENSORS[NAMES[0]]})


make_folders(Path(ROOT.name))


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    if draw.random() < 0.1:
        case["folder"] = draw.choice(("plain", "twice", "single", "short"))
    else:
        case["index"] = json_text_changed(case["index"], other["index"], draw, WORDS)
    return case


class Watched:
    """Stands before the reader of files: nothing outside the folder may be opened, read or not."""

    folder = Path()

    @classmethod
    def SafetensorsFile(cls, path: bytes) -> Any:
        assert Path(os.fsdecode(path)).parent == cls.folder, path
        assert b".." not in path, path
        return _core.SafetensorsFile(path)


checkpoint_folder._core = Watched


def run(case: Any) -> None:
    Watched.folder = folder = Path(ROOT.name) / case["folder"]
    (folder / INDEX_FILE).write_text(case["index"], encoding="utf-8", errors="replace")
    with open_checkpoint(folder, progress=False) as checkpoint:
        places = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        assert checkpoint.num_tensors == len(places)
        checkpoint.require({name: WeightSpec((4,)) for name in places})
        for name in places:
            assert np.array_equal(checkpoint.tensor(name, dtype="float32"), TENSORS[name])
