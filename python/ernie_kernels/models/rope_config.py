"""The rotary positions of a configuration: their base, and what turns with which coordinate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config_reader import ConfigReader

ROPE_TYPES = ("default",)
_NESTED = ("rope_parameters", "rope_scaling")
_SECTION = "mrope_section"
# Pairs of the rotary embedding that turn with time in every released vision-language model.
DEFAULT_FREQ_ALLOCATION = 20


def rope_theta(
    reader: ConfigReader,
    *,
    default: float = 500000.0,
    rope_types: tuple[str, ...] = ROPE_TYPES,
    other_keys: Collection[str] = (),
) -> float:
    """The rotary base, from ``rope_theta`` or the nested spelling of transformers 5.

    Scaling of any kind is refused, in ``rope_parameters`` and in the older ``rope_scaling``.
    500000 is what every released ERNIE-4.5 uses and the documented default of transformers.

    Args:
        other_keys: of the nested objects, that somebody else reads.
    """
    nested_theta = None
    for inner in _nested(reader):
        for name in ("rope_type", "type"):
            inner.choice(name, rope_types, rope_types[0])
        for name, value in inner.values.items():
            if name == "rope_theta":
                nested_theta = inner.positive(name, 0.0)
            elif name == "partial_rotary_factor":
                if type(value) not in (int, float) or value != 1:
                    raise inner.fail(name, "1.0", value)
            elif name not in ("rope_type", "type", *other_keys):
                expected = f"no such key for rope_type {rope_types[0]}"
                raise inner.fail(quoted(name), expected, value)
    theta = reader.positive("rope_theta", default if nested_theta is None else nested_theta)
    if nested_theta is not None and theta != nested_theta:
        raise ConfigError(
            f"{reader.file}: rope_theta is {theta!r} but the nested rope_theta is "
            f"{nested_theta!r}; remove one of them"
        )
    return theta


def rope_theta_3d(reader: ConfigReader) -> float:
    """The base of a model whose positions are (time, row, column)."""
    if not reader.boolean("rope_3d", True):
        raise reader.fail("rope_3d", "true in a vision-language model", False)
    return rope_theta(reader, other_keys=(_SECTION,))


def freq_allocation(reader: ConfigReader, head_dim: int) -> int:
    """How many of the ``head_dim / 2`` pairs turn with time: those of the lowest frequencies.

    The others turn with row and column by turns, so that there are as many of each. From
    ``freq_allocation``, or from ``mrope_section``, which counts pairs of row, column and time.
    """
    pairs = head_dim // 2
    sections = [s for s in (_section(inner) for inner in _nested(reader)) if s is not None]
    for section in sections:
        row, column, _ = section
        if sum(section) != pairs or row != column:
            raise ConfigError(
                f"{reader.file}: {_SECTION} is {section}: expected as many pairs of row and of "
                f"column, and head_dim/2={pairs} with those of time"
            )
    given = reader.values.get("freq_allocation")
    counts = {section[2] for section in sections}
    if given is not None:
        counts.add(reader.size("freq_allocation"))
    if len(counts) > 1:
        raise ConfigError(
            f"{reader.file}: freq_allocation and {_SECTION} differ in the pairs of time: "
            f"{' and '.join(map(str, sorted(counts)))}; remove one of them"
        )
    count = next(iter(counts), DEFAULT_FREQ_ALLOCATION)
    if count > pairs or (pairs - count) % 2:
        raise ConfigError(
            f"{reader.file}: freq_allocation={count} with head_dim={head_dim}: expected at most "
            f"head_dim/2={pairs} pairs, and an even number of others for row and column"
        )
    return count


def _nested(reader: ConfigReader) -> list[ConfigReader]:
    found = []
    for key in _NESTED:
        nested: Mapping[str, Any] | None = reader.values.get(key)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise reader.fail(key, "an object or null", nested)
        found.append(ConfigReader(nested, f"{reader.file}: {key}"))
    return found


def _section(inner: ConfigReader) -> list[int] | None:
    section = inner.values.get(_SECTION)
    if section is None:
        return None
    is_list = isinstance(section, list) and len(section) == 3
    if not is_list or any(type(n) is not int or not 0 <= n <= 256 for n in section):
        raise inner.fail(_SECTION, "a list of three integers 0..256", section)
    return section
