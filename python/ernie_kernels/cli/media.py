"""Images and videos on the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import Error, InputError
from ernie_kernels.llm import LLM

KINDS = ("image", "video")
# What the engine calls a part of a message that cannot be shown, and what it says of it.
_PLACE = re.compile(r"message (\d+): content part (\d+): (.*)", re.DOTALL)


def add_media_options(parser: argparse.ArgumentParser, goes_with: str) -> None:
    group = parser.add_argument_group("images and videos (ERNIE-4.5-VL)")
    group.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help=f"a PNG, JPEG or WebP to show {goes_with}; may be given several times",
    )
    group.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="an MP4, WebM, Matroska or AVI, or a GIF, which is watched at two frames a second; may be "
        "given several times",
    )


def media_parts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """As parts of a message's content: images, then videos, each in the order of the command line."""
    return [{"type": kind, kind: file} for kind in KINDS for file in getattr(arguments, kind)]


def check_files(arguments: argparse.Namespace) -> None:
    """Raises InputError for an image or video that is not there: a model takes a while to load.

    Names that begin with ``~`` become paths: in ``--image=~/a.png`` a shell leaves it.
    """
    for kind in KINDS:
        names = getattr(arguments, kind)
        setattr(arguments, kind, [existing_file(f"--{kind}", name) for name in names])


def check_sees(llm: LLM, name: str) -> None:
    """Raises InputError for an image or video that the model could not see.

    Args:
        name: of the option or word that shows it.
    """
    if llm.config.vision is None:
        raise InputError(
            f"{name}: this model reads text alone; give the folder of an ERNIE-4.5-VL checkpoint with "
            "--model_path"
        )


def check_options_seen(llm: LLM, arguments: argparse.Namespace) -> None:
    """:func:`check_sees` of what the command line shows."""
    for kind in KINDS:
        if getattr(arguments, kind):
            check_sees(llm, f"--{kind}")


def typed_part(line: str) -> dict[str, Any] | None:
    """Of ``/image FILE`` or ``/video FILE`` in a conversation; None for any other line.

    Raises:
        InputError: no file is named, or there is no such file.
    """
    word, rest = [*line.split(maxsplit=1), "", ""][:2]
    kind = word.removeprefix("/")
    if kind not in KINDS or word == kind:
        return None
    name = rest.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":  # as a terminal pastes it
        name = name[1:-1]
    if not name:
        raise InputError(f"{word}: expected the name of a file, as in '{word} FILE'")
    return {"type": kind, kind: existing_file(word, name)}


def existing_file(word: str, name: str) -> str:
    """Its path, for a name that may begin with ``~``.

    Raises:
        InputError: there is no such file; ``word`` is what named it.
    """
    try:
        file = Path(name).expanduser()
        is_file = file.is_file()
    except (OSError, ValueError, RuntimeError):  # the last: of a user that there is not
        is_file = False
    if not is_file:
        raise InputError(f"{word}: {quoted(name)}: there is no such file")
    return str(file)


def user_message(text: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A message that shows something before it says something."""
    content = [*parts, {"type": "text", "text": text}] if parts else text
    return {"role": "user", "content": content}


@contextmanager
def naming_files(messages: Sequence[dict[str, Any]]) -> Iterator[None]:
    """Errors about a part of a message name its file."""
    try:
        yield
    except Error as error:
        found = _PLACE.fullmatch(str(error))
        if found is None:
            raise
        part = messages[int(found[1])]["content"][int(found[2])]
        name = quoted(Path(part[part["type"]]).name)
        reason = found[3].removeprefix(f"{name} ")
        raise type(error)(f"{part['type']} {name}: {reason}") from None
