"""Runs a command in this process."""

from __future__ import annotations

from ernie_kernels import cli


def run(capfd, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:  # argparse
        code = exit_.code
    out, err = capfd.readouterr()
    return code, out, err
