"""Randomly damaged headers: refused as FormatError, or read just as the safetensors package does."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from ernie_kernels import _core
from ernie_kernels.errors import FormatError
from safetensors_bytes import entry, with_length

VALID = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": entry("BF16", [4, 2], 0, 16),
    "model.norm.weight": entry("F32", [2], 16, 24),
    "scalar": entry("I64", [], 24, 32),
    "empty": entry("U8", [0, 7], 32, 32),
}


def mutated(text: bytes, draw: random.Random) -> bytes:
    """``text`` with one to three random edits that like the bytes JSON is made of."""
    result = bytearray(text)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(result))
        byte = (
            draw.choice(b'{}[]",:\\0123456789-.eun ')
            if draw.random() < 0.8
            else draw.randrange(256)
        )
        kind = draw.randrange(4)
        if kind == 0:
            result[at] = byte
        elif kind == 1:
            result.insert(at, byte)
        elif kind == 2:
            del result[at : at + draw.randint(1, 8)]
        else:
            result[at:at] = result[at : at + draw.randint(1, 40)]
        if not result:
            break
    return bytes(result)


def test_random_mutations_of_a_header_give_only_format_errors(tmp_path):
    draw = random.Random(20260101)
    text = json.dumps(VALID).encode()
    path = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(3000):
        changed = mutated(text, draw)
        try:
            path.write_bytes(with_length(changed, bytes(32)))
            file = _core.SafetensorsFile(os.fsencode(path))
        except FormatError:
            refused += 1
        else:
            assert sum(file.info(name)[2] for name in file.names) == 32
    assert 2200 < refused < 3000  # a mutation inside a name or the metadata is still a valid file


def reference_accepts(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    safetensors = pytest.importorskip("safetensors")
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return None
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in tensors}


def is_stricter(text: bytes) -> bool:
    """Whether we may refuse what the reference reads: where we are stricter on purpose."""

    class Stricter(Exception):
        pass

    def check(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise Stricter
        if "dtype" in keys and not set(keys) <= {"dtype", "shape", "data_offsets"}:
            raise Stricter  # unknown field
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=check, strict=False)
    except Stricter:
        return True
    if any(len(v.get("shape", ())) > 8 for v in header.values() if v is not None):
        return True
    if header.get("__metadata__", {}) is None:
        return True
    return any(".." in n or not n.isprintable() for n in header)


@pytest.mark.oracle
def test_agrees_with_the_safetensors_package(tmp_path):
    pytest.importorskip("safetensors")
    draw = random.Random(7)
    text = json.dumps(VALID).encode()
    path = tmp_path / "model.safetensors"
    accepted = 0
    for i in range(2000):
        changed = mutated(text, draw) if i else text
        path.write_bytes(with_length(changed, bytes(32)))
        expected = reference_accepts(path)
        try:
            file = _core.SafetensorsFile(os.fsencode(path))
        except FormatError:
            if expected is not None and not is_stricter(changed):
                pytest.fail(f"refused without a reason that we know: {changed!r}")
            continue
        assert expected is not None, changed  # we never accept what the reference refuses
        assert set(file.names) == expected.keys()
        for name, (dtype, shape, data) in expected.items():
            assert file.info(name) == (dtype, shape, len(data))
        accepted += 1
    assert accepted > 100
