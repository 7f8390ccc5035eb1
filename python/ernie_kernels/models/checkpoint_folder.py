"""The safetensors files of a checkpoint folder, and which of them holds which tensor.

Symbolic links: the folder and the files in it may be links (a model hub's cache keeps each weight
file as a link to ``../../blobs/<digest>``), because what the user's own folder points to is the
user's choice. What a *file* claims is not trusted: the shard names inside an index must be plain
base names, so no index reaches a path outside the folder.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _core
from ..checkpoint_file import quoted, read_json
from ..errors import ConfigError, FormatError, WeightError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARDS = 1024
PICKLE_SUFFIXES = (".bin", ".pdparams", ".pt", ".pth", ".ckpt", ".pkl")
NUMBERED_SHARD = re.compile(r"-\d+-of-0*(\d+)\.safetensors$")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file: its name, dtype and shape there, and the open file."""

    name: str
    dtype: str  # as in the file: "BF16"
    shape: tuple[int, ...]
    nbytes: int
    file: Any  # _core.SafetensorsFile
    file_name: str

    def __str__(self) -> str:
        return f"tensor {quoted(self.name)} in {quoted(self.file_name)}"


def clipped(message: str) -> str:
    """``message`` within the 512 bytes that an error may have."""
    return message if len(message) <= 512 else message[:509] + "..."


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by its stored name; all headers are read and checked.

    Raises:
        FormatError: no folder, no safetensors in it, a broken file or index.
        WeightError: the index and the files contradict each other.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError) as error:
        reason = errno.errorcode.get(getattr(error, "errno", None) or 0, "not a path")
        raise FormatError(
            f"{quoted(folder.name)}: no folder that can be listed ({reason}); give the folder of a "
            f"checkpoint"
        ) from None
    present = [name for name in names if name.endswith(".safetensors")]
    if INDEX_FILE not in names:
        return _tensors_of(folder, _sole_file(folder, names, present))
    weight_map = _read_index(folder / INDEX_FILE)
    if SINGLE_FILE in present and SINGLE_FILE not in weight_map.values():
        raise FormatError(
            f"{quoted(folder.name)}: holds both {SINGLE_FILE} and {INDEX_FILE}, which does not "
            f"list it; remove the one that is out of date"
        )
    return _open_indexed(folder, weight_map, present)


def _sole_file(folder: Path, names: list[str], present: list[str]) -> str:
    if SINGLE_FILE in present:
        return SINGLE_FILE
    if not present:
        raise FormatError(clipped(f"{quoted(folder.name)}: {_what_there_is_instead(names)}"))
    numbered = NUMBERED_SHARD.search(present[0])
    if len(present) > 1 or (numbered and int(numbered[1]) > 1):
        raise FormatError(
            f"{quoted(folder.name)}: {len(present)} .safetensors files, the first is "
            f"{quoted(present[0])}, but no {INDEX_FILE} that says what belongs together; fetch it too"
        )
    return present[0]


def _what_there_is_instead(names: list[str]) -> str:
    pickles = [name for name in names if name.lower().endswith(PICKLE_SUFFIXES)]
    if not pickles:
        return f"no .safetensors file; expected {SINGLE_FILE} or {INDEX_FILE}"
    return (
        f"no .safetensors file, only {quoted(pickles[0])}; files of this kind are pickles, which "
        f"can run code, and are never read. Load it once in the framework that wrote it and save "
        f"it with save_pretrained(folder, safe_serialization=True)"
    )


def _tensors_of(folder: Path, file_name: str) -> dict[str, StoredTensor]:
    file = _core.SafetensorsFile(os.fsencode(folder / file_name))
    tensors = {}
    for name in file.names:
        dtype, shape, nbytes = file.info(name)
        tensors[name] = StoredTensor(name, dtype, shape, nbytes, file, file_name)
    return tensors


# --------------------------------------------------------------------------------------- the index


def _read_index(path: Path) -> dict[str, str]:
    """The ``weight_map`` of an index: tensor name -> shard name, a plain base name."""
    try:
        index = read_json(path)
    except ConfigError as error:
        raise FormatError(str(error)) from None
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{INDEX_FILE}: weight_map: expected an object of tensor names and files, got "
            f"{'an empty one' if weight_map == {} else quoted(weight_map)}"
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_shard_name(shard):
            raise FormatError(
                f"{INDEX_FILE}: weight_map: {quoted(tensor)}: expected the base name of a "
                f".safetensors file in this folder, got {quoted(shard)}"
            )
    shards = len(set(weight_map.values()))
    if shards > MAX_SHARDS:
        raise FormatError(f"{INDEX_FILE}: {shards} shards, the limit is {MAX_SHARDS}")
    return weight_map


def is_plain_shard_name(name: str) -> bool:
    """Whether ``name`` can only mean a file directly inside the folder."""
    return (
        name.endswith(".safetensors")
        and len(name.encode("utf-8", "surrogatepass")) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not any(c in name for c in "/\\:")
    )


def _open_indexed(
    folder: Path, weight_map: dict[str, str], present: list[str]
) -> dict[str, StoredTensor]:
    tensors_per_shard = Counter(weight_map.values())
    for shard, count in sorted(tensors_per_shard.items()):
        if shard not in present:
            raise WeightError(
                f"{INDEX_FILE}: shard {quoted(shard)} with {count} tensors is missing; the folder "
                f"holds {len(present)} of the {len(tensors_per_shard)} .safetensors files; fetch it"
            )
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(tensors_per_shard):
        for name, tensor in _tensors_of(folder, shard).items():
            if name in tensors:
                raise WeightError(f"{tensors[name]} is in {quoted(shard)} too; keep one of them")
            listed = weight_map.get(name)
            if listed != shard:
                said = f"in {quoted(listed)}" if listed else "nowhere"
                raise WeightError(f"{tensor}, but {INDEX_FILE} places it {said}")
            tensors[name] = tensor
    _check_all_found(weight_map, tensors)
    return tensors


def _check_all_found(weight_map: dict[str, str], tensors: Iterable[str]) -> None:
    absent = sorted(weight_map.keys() - set(tensors))
    if absent:
        raise WeightError(
            f"{INDEX_FILE}: tensor {quoted(absent[0])} is not in {quoted(weight_map[absent[0]])}, "
            f"where the index places it ({len(absent)} such tensors)"
        )
