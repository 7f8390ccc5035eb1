"""The command line: ``ernie-kernels ...`` or ``python -m ernie_kernels ...``."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from ernie_kernels import __version__
from ernie_kernels.errors import Error

COMMANDS = ("generate", "chat", "bench", "verify", "fit", "doctor")
EXIT_FAILURE = 1  # the machine or the device: out of memory, no GPU, cache full
EXIT_BAD_INPUT = 2  # an argument, prompt or file; also what argparse uses
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

DESCRIPTION = """\
Run ERNIE-4.5 models: no PaddlePaddle, no PyTorch.

  ernie-kernels generate --prompt "Return a list of"
      continue a text with the small demo model that comes with the package
  ernie-kernels generate --model_path ./ERNIE-4.5-0.3B-PT --prompt "The moon is" --max_length 100
      continue a text with a checkpoint: a folder with config.json and model.safetensors
  ernie-kernels chat --model_path ./ERNIE-4.5-0.3B-PT
      talk to it
  ernie-kernels bench ./ERNIE-4.5-0.3B-PT
      tokens per second
  ernie-kernels verify ./ERNIE-4.5-0.3B-PT
      is what runs here what the checkpoint says? Layer by layer against float64
  ernie-kernels fit config.json
      does it fit this machine, and rounded how? Before the weights are fetched
  ernie-kernels doctor
      what this machine has, and whether everything computes right on it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ernie-kernels",
        description=DESCRIPTION,
        epilog="'ernie-kernels COMMAND --help' explains a command. In names of options - and _ "
        "are the same.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ernie-kernels {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    # Only the command that is meant: doctor must run where another cannot be imported.
    for name in [words[0]] if words and words[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"ernie_kernels.cli.{name}").add_parser(commands)
    arguments = parser.parse_args(words)
    logging.basicConfig(
        stream=sys.stderr,
        format="%(message)s",
        level=logging.INFO if arguments.verbose else logging.WARNING,
    )
    # A terminal or file that cannot hold a character of the answer gets a question mark.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, ValueError) else EXIT_FAILURE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who reads our output has had enough.
        discard_output()
        return 0
    except OSError as error:  # files are read elsewhere, under errors of ours
        discard_output()
        print(f"error: output: {error.strerror}", file=sys.stderr)
        return EXIT_FAILURE
    return code


def discard_output() -> None:
    """Python flushes stdout once more on exit; what is left goes nowhere then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def with_dashes(argv: Sequence[str]) -> list[str]:
    """``--max_length=5`` as ``--max-length=5``: option names only, nothing behind ``--``."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    for index, word in enumerate(words[:end]):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words[index] = name.replace("_", "-") + equals + value
    return words
