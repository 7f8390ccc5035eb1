"""``ernie-kernels generate``: continue texts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

from ernie_kernels.cli.command import add_command, add_json
from ernie_kernels.cli.media import (
    add_media_options,
    check_files,
    check_options_seen,
    media_parts,
    naming_files,
    user_message,
)
from ernie_kernels.cli.options import (
    add_model_options,
    add_sampling_options,
    load_model,
    sampling_params,
)
from ernie_kernels.cli.timing import Stopwatch, draft_report, summary
from ernie_kernels.llm import LLM
from ernie_kernels.outputs import GenerationChunk, RequestOutput
from ernie_kernels.runner.sampling import SamplingParams

DESCRIPTION = """\
Continue one or several texts. The text goes to stdout as it is generated, tokens per second to
stderr at the end.

  ernie-kernels generate --prompt "Return a list of"
      with the demo model
  ernie-kernels generate --model_path ./ERNIE-4.5-0.3B-PT --prompt "The moon is" \\
      --max_length 100 --temperature 0.8 --top_p 0.9 --seed 1
      sampled, and the same again with the same seed
  ernie-kernels generate --prompt "def main" --prompt "class Test" --json
      several prompts in one batch, as JSON
  echo "Once upon a time" | ernie-kernels generate --prompt -
      a prompt from stdin
  ernie-kernels generate --model_path ./ERNIE-4.5-VL-28B-A3B-PT --image photo.jpg \\
      --prompt "What is in this picture?"
      with images or videos, each prompt is a message to the model, and not a text to continue
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands, "generate", run, summary="continue texts", description=DESCRIPTION
    )
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="the text to continue, - for stdin; may be given several times",
    )
    add_media_options(parser, "before the text")
    add_sampling_options(parser, max_tokens="64")
    parser.add_argument(
        "--ignore-eos", action="store_true", help="go on after the model's own end token"
    )
    add_json(parser, " at the end")
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    params = sampling_params(arguments, ignore_eos=arguments.ignore_eos)
    check_files(arguments)
    prompts = [read_stdin() if prompt == "-" else prompt for prompt in arguments.prompt]
    with load_model(arguments) as llm:
        watch = Stopwatch()
        outputs: dict[int, RequestOutput] = {}
        printer = None if arguments.json else InOrderPrinter(len(prompts))
        for chunk in chunks(llm, prompts, params, arguments):
            watch.count(len(chunk.token_ids))
            if chunk.output is not None:
                outputs[chunk.request_index] = chunk.output
            if printer is not None:
                printer.add(chunk)
        drafts = draft_report(llm.stats())
    timing = watch.report(sum(len(output.prompt_token_ids) for output in outputs.values())) | drafts
    if arguments.json:
        requests = [request_json(outputs[index]) for index in sorted(outputs)]
        print(json.dumps({"requests": requests, "timing": timing}, indent=2))
    else:
        print(summary(timing), file=sys.stderr)
    return 0


def chunks(
    llm: LLM, prompts: list[str], params: SamplingParams, arguments: argparse.Namespace
) -> Iterator[GenerationChunk]:
    """All prompts together; those that show something one after the other, as messages of a user."""
    parts = media_parts(arguments)
    if not parts:
        yield from llm.generate(prompts, params, stream=True)
        return
    check_options_seen(llm, arguments)
    for index, prompt in enumerate(prompts):
        messages = [user_message(prompt, parts)]
        with naming_files(messages):
            answer = llm.chat(messages, params, stream=True)
        for chunk in answer:
            yield dataclasses.replace(chunk, request_index=index)


def read_stdin() -> str:
    return sys.stdin.read().removesuffix("\n")


def request_json(output: RequestOutput) -> dict[str, Any]:
    return {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "seed": output.seed,
        "outputs": [dataclasses.asdict(answer) for answer in output.outputs],
    }


class InOrderPrinter:
    """Streams the first unfinished request and holds the others back until it is their turn."""

    def __init__(self, num_requests: int) -> None:
        self._texts = [""] * num_requests
        self._is_finished = [False] * num_requests
        self._current = 0

    def add(self, chunk: GenerationChunk) -> None:
        self._texts[chunk.request_index] += chunk.delta or ""
        self._is_finished[chunk.request_index] = chunk.finish_reason is not None
        while self._current < len(self._texts):
            print(self._texts[self._current], end="", flush=True)
            self._texts[self._current] = ""
            if not self._is_finished[self._current]:
                return
            self._current += 1
            print()
            if self._current < len(self._texts):
                print(f"--- {self._current + 1} of {len(self._texts)}")
