"""Random changes that know what they change: bytes, JSON values, protobuf messages."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = [
    0, 1, -1, 2, 3, 7, 8, 16, 31, 32, 63, 64, 65, 127, 128, 255, 256, 1000, 65536,
    2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**40,
    0.0, -0.0, 0.5, 1.0, -1.5, 1e-5, 1e-46, 1e39, 1e308, math.nan, math.inf, -math.inf,
]  # fmt: skip
STRINGS = [
    "", " ", "a", "é", "\u2581", "\0", "\n", "\ud800", "\ufdd0", "\U0010ffff", "None", "null",
    "true", "../a", "/a", "x" * 129, "x" * 600, "{{ 1 }}", "%s", "<s>", "</s>", "<unk>", "<0x41>",
]  # fmt: skip
LIKELY_BYTES = b"{}[]\",:\\0123456789-.eEu \n\t_'"
MAX_LENGTH = 1 << 16  # of what a mutation makes longer


def bytes_changed(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """One edit: a byte set, a bit flipped, a stretch inserted, removed, repeated or taken over."""
    result = bytearray(data or b"\0")
    at = draw.randrange(len(result))
    kind = draw.randrange(6)
    byte = draw.choice(LIKELY_BYTES) if draw.random() < 0.7 else draw.randrange(256)
    if kind == 0:
        result[at] = byte
    elif kind == 1:
        result[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        result.insert(at, byte)
    elif kind == 3:
        del result[at : at + draw.randint(1, 16)]
    elif kind == 4:
        result[at:at] = result[at : at + draw.randint(1, 64)]
    else:
        begin = draw.randrange(len(other) + 1)
        result[at:] = other[begin : begin + MAX_LENGTH]
    return bytes(result[:MAX_LENGTH])


def text_changed(text: str, words: Sequence[str], draw: random.Random) -> str:
    """A word inserted, or one of the text's own stretches removed, repeated or moved."""
    begin = draw.randrange(len(text) + 1)
    end = min(len(text), begin + draw.choice((1, 2, 5, 20, 100)))
    kind = draw.randrange(4)
    if kind == 0:
        return text[:begin] + draw.choice(words) + text[begin:]
    if kind == 1:
        return text[:begin] + text[end:]
    at = draw.randrange(len(text) + 1)
    if kind == 2:
        return (text[:at] + text[begin:end] * draw.choice((1, 1, 2, 9)) + text[at:])[:MAX_LENGTH]
    return text[:begin] + draw.choice(words) + text[end:]


def json_changed(value: Any, other: Any, draw: random.Random, words: Sequence[str] = ()) -> Any:
    """One edit somewhere in a JSON value, which is changed in place where it can be.

    ``other`` lends whole parts; ``words`` are strings that mean something where the value is read.
    """
    if not isinstance(value, (dict, list)) or not value:
        return leaf(value, other, draw, words)
    container = value
    while True:
        key = (
            draw.choice(list(container))
            if isinstance(container, dict)
            else draw.randrange(len(container))
        )
        child = container[key]
        if not isinstance(child, (dict, list)) or not child or draw.random() < 0.25:
            break
        container = child
    if isinstance(container, dict):
        edit_object(container, key, other, draw, words)
    else:
        edit_list(container, key, other, draw, words)
    return value


def edit_object(
    container: dict[str, Any], key: str, other: Any, draw: random.Random, words: Sequence[str]
) -> None:
    kind = draw.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[draw.choice([*words, *STRINGS, *container])] = container.pop(key)
    elif kind == 2:
        container[draw.choice([*words, *STRINGS])] = part_of(other, draw)
    else:
        container[key] = leaf(container[key], other, draw, words)


def edit_list(
    container: list[Any], at: int, other: Any, draw: random.Random, words: Sequence[str]
) -> None:
    kind = draw.randrange(8)
    if kind == 0:
        del container[at]
    elif kind == 1:
        container.insert(draw.randrange(len(container) + 1), container[at])
    elif kind == 2:
        swap = draw.randrange(len(container))
        container[at], container[swap] = container[swap], container[at]
    elif kind == 3:
        container.insert(at, part_of(other, draw))
    else:
        container[at] = leaf(container[at], other, draw, words)


def leaf(value: Any, other: Any, draw: random.Random, words: Sequence[str]) -> Any:
    """Something else in the place of ``value``; often of its type."""
    kind = draw.randrange(10)
    if isinstance(value, bool) and kind < 5:
        return not value
    if isinstance(value, (int, float)) and kind < 6:
        return draw.choice((value + 1, value - 1, -value, value * 2, draw.choice(NUMBERS)))
    if isinstance(value, str) and kind < 6:
        return (
            text_changed(value, [*words, *STRINGS], draw)
            if kind < 3
            else draw.choice([*words, *STRINGS])
        )
    if kind == 6:
        return part_of(other, draw)
    if kind == 7:
        return nested(value, draw)
    return draw.choice(
        (None, True, False, [], {}, draw.choice(NUMBERS), draw.choice([*words, *STRINGS]))
    )


def part_of(value: Any, draw: random.Random) -> Any:
    """A copy of any node of a JSON value."""
    while isinstance(value, (dict, list)) and value and draw.random() < 0.7:
        value = draw.choice(list(value.values()) if isinstance(value, dict) else value)
    return json.loads(json.dumps(value))


def nested(value: Any, draw: random.Random) -> Any:
    for _ in range(draw.choice((1, 2, 63, 64, 65, 100))):
        value = [value] if draw.random() < 0.5 else {"x": value}
    return value


def json_text_changed(text: str, other: str, draw: random.Random, words: Sequence[str] = ()) -> str:
    """The text of a JSON file with one edit: in its value mostly, else in its characters."""
    try:
        value = json.loads(text) if draw.random() < 0.85 else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        data = bytes_changed(
            text.encode("utf-8", "replace"), other.encode("utf-8", "replace"), draw
        )
        return data.decode("utf-8", "replace")
    return json.dumps(json_changed(value, json.loads(other), draw, words))


# ------------------------------------------------------------------------------- protobuf messages


def message(fields: Any) -> bytes:
    """The protobuf message that a list of ``[number, value]`` spells.

    An integer is a varint, a float 32 bits, a list a message inside, a string its UTF-8; a string in
    place of an entry stands for its bytes (Latin-1). Total: mutations of such a
    list can be anything.
    """
    return b"".join(field(entry) for entry in fields) if isinstance(fields, list) else b""


def field(entry: Any) -> bytes:
    if isinstance(entry, str):
        return entry.encode("latin-1", "replace")
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], int):
        return b"\xff"
    number, value = entry[0] & 0x1FFFFFFF, entry[1]
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (2**64 - 1))
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value if abs(value) < 1e38 else math.inf)
    data = value.encode("utf-8", "replace") if isinstance(value, str) else message(value)
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
