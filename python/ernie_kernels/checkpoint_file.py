"""Reading the small files of a checkpoint folder: bounded, strict JSON, and names fit for messages.

The files are untrusted. Everything wrong with one becomes a ``ConfigError`` that names it, before
any of its content is used.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ernie_kernels.errors import ConfigError

MAX_JSON_BYTES = 32 << 20
MAX_JSON_DEPTH = 64
MAX_NAME_CHARACTERS = 128


def quoted(value: object) -> str:
    """``value`` as it may stand in a message: escaped to printable ASCII, cut at 128 characters.

    Strings come in single quotes; numbers, booleans and None as JSON spells them; of a container
    only its kind is told.
    """
    if isinstance(value, str):
        text = ascii(value[: MAX_NAME_CHARACTERS + 1])[1:-1]
        cut = len(text) > MAX_NAME_CHARACTERS
        return f"'{text[: MAX_NAME_CHARACTERS - 3]}...'" if cut else f"'{text}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        # Python refuses to print integers of more than 4300 digits.
        return (
            str(value) if value.bit_length() < 400 else f"an integer of {value.bit_length()} bits"
        )
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The whole content of a regular file of at most ``max_bytes``.

    Raises:
        ConfigError: the file is missing, not a regular file, unreadable or larger.
    """
    try:
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "is missing"
            raise ConfigError(f"{quoted(path.name)}: {kind}; a checkpoint folder needs it")
        with path.open("rb") as file:
            # One byte more than allowed: the file may grow between a size check and the read.
            data = file.read(max_bytes + 1)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "unknown error")
        raise ConfigError(f"{quoted(path.name)}: cannot be read ({reason})") from None
    if len(data) > max_bytes:
        raise ConfigError(f"{quoted(path.name)}: expected at most {max_bytes} bytes, got more")
    return data


def read_text(path: Path, max_bytes: int) -> str:
    """The content of a UTF-8 file; see :func:`read_bytes`."""
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{quoted(path.name)}: expected UTF-8, got an ill-formed byte at offset {error.start}"
        ) from None


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in ``path``.

    NaN and the infinities, which Python's own writer produces, are parsed; who reads a number
    checks that it is finite and can name its key.

    Raises:
        ConfigError: missing, larger than ``max_bytes``, not UTF-8, not JSON, not an object at the
            top, nested deeper than 64, or with a key that occurs twice in one object.
    """
    name = quoted(path.name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ConfigError(f"{name}: key {quoted(key)} occurs twice; remove one of them")
        return result

    try:
        value = json.loads(read_text(path, max_bytes), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name}: not valid JSON at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ConfigError(
            f"{name}: expected nesting of at most {MAX_JSON_DEPTH}, got more"
        ) from None
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{name}: not valid JSON: an integer has thousands of digits") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a JSON object at the top, got {quoted(value)}")
    if nesting(value) > MAX_JSON_DEPTH:
        raise ConfigError(f"{name}: expected nesting of at most {MAX_JSON_DEPTH}, got more")
    return value


def nesting(value: object) -> int:
    """How deep objects and lists nest in ``value``, at most ``MAX_JSON_DEPTH + 1``."""
    depth = 0
    level: list[Any] = [value]
    while depth <= MAX_JSON_DEPTH:
        level = [item for item in level if isinstance(item, (dict, list, tuple))]
        if not level:
            return depth
        depth += 1
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
        ]
    return depth
