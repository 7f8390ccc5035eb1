"""What all commands are made of. Imports nothing of the package: ``doctor`` starts in any case."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    """A parser whose ``description`` is printed as it stands; ``run`` returns the exit code."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser, when: str = "") -> None:
    parser.add_argument("--json", action="store_true", help=f"print one JSON object{when}")
