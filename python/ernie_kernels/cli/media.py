"""Images and videos on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from ernie_kernels.errors import InputError
from ernie_kernels.llm import LLM


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
    return [
        {"type": kind, kind: file}
        for kind in ("image", "video")
        for file in getattr(arguments, kind)
    ]


def check_sees(llm: LLM, arguments: argparse.Namespace) -> None:
    """Raises InputError for images and videos that the model could not see."""
    if llm.config.vision is None and media_parts(arguments):
        name = "--image" if arguments.image else "--video"
        raise InputError(
            f"{name}: this model reads text alone; give the folder of an ERNIE-4.5-VL checkpoint with "
            "--model_path"
        )


def user_message(text: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A message that shows what the command line names before it says something."""
    parts = media_parts(arguments)
    content = [*parts, {"type": "text", "text": text}] if parts else text
    return {"role": "user", "content": content}
