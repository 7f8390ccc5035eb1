"""``ernie-kernels chat``: talk to a model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ernie_kernels.cli.command import add_command
from ernie_kernels.cli.media import (
    add_media_options,
    check_files,
    check_options_seen,
    check_sees,
    media_parts,
    naming_files,
    typed_part,
    user_message,
)
from ernie_kernels.cli.options import (
    add_model_options,
    add_sampling_options,
    load_model,
    sampling_params,
)
from ernie_kernels.cli.timing import Stopwatch, draft_report, summary
from ernie_kernels.errors import InputError, UnsupportedError
from ernie_kernels.llm import LLM
from ernie_kernels.runner.sampling import SamplingParams

Message = dict[str, Any]

DESCRIPTION = """\
Talk to a model. Type a message and press Enter; the answer comes as it is generated and the
conversation is remembered.

  /image FILE    show an image with the next message; /video FILE a video (ERNIE-4.5-VL)
  clear          forget the conversation
  quit, exit     leave (so does Ctrl-D)
  Ctrl-C         stop an answer; leave when there is none

What --image and --video name is shown with the first message, and again with the first one after
"clear".

  ernie-kernels chat --model_path ./ERNIE-4.5-0.3B-PT --temperature 0.7 --top_p 0.9
  ernie-kernels chat --model_path ./ERNIE-4.5-VL-28B-A3B-PT --image photo.jpg --enable-thinking
  printf 'Hello!\\nWhat is 2+2?\\n' | ernie-kernels chat --model_path ./ERNIE-4.5-0.3B-PT
      without a terminal: one message a line
"""


def add_parser(commands: Any) -> None:
    parser = add_command(commands, "chat", run, summary="talk to a model", description=DESCRIPTION)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "--enable-thinking", action="store_true", help="let the model think before it answers"
    )
    parser.add_argument(
        "--reasoning-max-tokens",
        type=int,
        metavar="N",
        help="with --enable-thinking, end the thoughts after so many tokens (default: never)",
    )
    add_media_options(parser, "with your first message")
    add_sampling_options(parser, max_tokens="512, or half of the model length")
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    changes = {"reasoning_max_tokens": arguments.reasoning_max_tokens}
    params = sampling_params(arguments, **changes)
    check_files(arguments)
    opening = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    with load_model(arguments) as llm:
        if arguments.max_tokens is None:
            changes["max_tokens"] = max(1, min(512, llm.max_model_len // 2))
            params = sampling_params(arguments, **changes)
        check_options_seen(llm, arguments)
        talk(llm, opening, media_parts(arguments), params, arguments.enable_thinking)
    return 0


def talk(
    llm: LLM,
    opening: list[Message],
    first_parts: list[Message],
    params: SamplingParams,
    enable_thinking: bool,
) -> None:
    """Until the user leaves.

    Args:
        opening: what every conversation begins with.
        first_parts: what the first message of every conversation shows.
    """
    messages, parts = list(opening), list(first_parts)
    while (line := read_line()) not in (None, "quit", "exit"):
        if line == "clear":
            messages, parts = list(opening), list(first_parts)
        elif line:
            try:
                part = shown_part(llm, line)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                continue
            if part is not None:
                parts.append(part)
                print(f"(the {part['type']} goes with your next message)", file=sys.stderr)
                continue
            asked = [*messages, user_message(line, parts)]
            messages = answer(llm, asked, params, enable_thinking=enable_thinking)
            # A refused message is forgotten with what it shows, but for what the command line names.
            parts = list(first_parts) if messages == opening else []


def shown_part(llm: LLM, line: str) -> Message | None:
    """What a line shows with the next message; None: it is a message."""
    part = typed_part(line)
    if part is not None:
        check_sees(llm, f"/{part['type']}")
    return part


def read_line() -> str | None:
    """The user's next line, without surrounding blanks; None at the end."""
    try:
        if not sys.stdin.isatty():
            line = sys.stdin.readline()
            return line.strip() if line else None
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def answer(
    llm: LLM, asked: list[Message], params: SamplingParams, *, enable_thinking: bool
) -> list[Message]:
    """Print the answer to the last message; returns the conversation with it.

    A message that is refused is taken out of the conversation.
    """
    watch = Stopwatch()
    text, num_prompt_tokens = "", 0
    try:
        with naming_files(asked):
            chunks = llm.chat(asked, params, stream=True, enable_thinking=enable_thinking)
        for chunk in chunks:
            watch.count(len(chunk.token_ids))
            text += chunk.delta or ""
            print(chunk.reasoning_delta + (chunk.delta or ""), end="", flush=True)
            if chunk.output is not None:
                num_prompt_tokens = len(chunk.output.prompt_token_ids)
    except (InputError, UnsupportedError) as error:
        print(f"error: {error} ('clear' forgets the conversation)", file=sys.stderr)
        return asked[:-1]
    except KeyboardInterrupt:
        print(" [stopped]")
        return [*asked, {"role": "assistant", "content": text}]
    print()
    print(summary(watch.report(num_prompt_tokens) | draft_report(llm.stats())), file=sys.stderr)
    return [*asked, {"role": "assistant", "content": text}]
