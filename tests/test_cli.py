"""The command line as a user has it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import run

import ernie_kernels as ek
from ernie_kernels import cli
from ernie_kernels.cli.timing import summary
from tiny_checkpoint import write_checkpoint_with_tokenizer

COMMAND = [sys.executable, "-m", "ernie_kernels"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_checkpoint_with_tokenizer(tmp_path_factory.mktemp("model")))


def expected_text(folder: str, prompt: str, **params) -> str:
    with ek.LLM.from_pretrained(folder) as llm:
        return llm.generate(prompt, ek.SamplingParams(**params))[0].outputs[0].text


def test_generate_prints_text_and_speed(capfd, folder):
    code, out, err = run(
        capfd, "generate", "--model_path", folder, "--prompt", "Hello", "--max_length", "12",
        "--temperature", "0.9", "--top_p", "0.95", "--seed", "3",
    )  # fmt: skip
    text = expected_text(folder, "Hello", max_tokens=12, temperature=0.9, top_p=0.95, seed=3)
    assert code == 0
    assert out == text + "\n"
    assert "prompt tokens" in err
    assert "12 generated" in err
    assert "tok/s" in err
    assert "first token after" in err


@pytest.mark.parametrize(
    "spelling", [["--max-tokens", "5"], ["--max_tokens=5"], ["--max-length=5"]]
)
def test_options_have_several_spellings(capfd, folder, spelling):
    code, out, _ = run(capfd, "generate", "--model", folder, "--prompt", "a_b", "--json", *spelling)
    assert code == 0
    report = json.loads(out)
    (request,) = report["requests"]
    assert request["prompt"] == "a_b"
    assert len(request["outputs"][0]["token_ids"]) <= 5
    assert report["timing"]["generated_tokens"] == len(request["outputs"][0]["token_ids"])


def test_several_prompts_come_in_order(capfd, folder):
    prompts = ["Hello there", "b", "return"]
    arguments = [word for prompt in prompts for word in ("--prompt", prompt)]
    code, out, _ = run(capfd, "generate", "--model", folder, "--max_tokens", "6", *arguments)
    texts = [expected_text(folder, prompt, max_tokens=6) for prompt in prompts]
    assert code == 0
    assert out == f"{texts[0]}\n--- 2 of 3\n{texts[1]}\n--- 3 of 3\n{texts[2]}\n"


def test_prompt_from_stdin(folder):
    done = subprocess.run(
        [*COMMAND, "generate", "--model", folder, "--prompt", "-", "--max_tokens", "4"],
        input="Hello\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == expected_text(folder, "Hello", max_tokens=4) + "\n"


def test_chat_without_a_terminal(folder):
    lines = "Hello\n\nmore\nclear\nHello\nquit\nnever\n"
    done = subprocess.run(
        [*COMMAND, "chat", "--model_path", folder, "--max_length", "5"],
        input=lines, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with ek.LLM.from_pretrained(folder) as llm:
        params = ek.SamplingParams(max_tokens=5)
        first = [{"role": "user", "content": "Hello"}]
        one = llm.chat(first, params).outputs[0].text
        history = [*first, {"role": "assistant", "content": one}]
        two = llm.chat([*history, {"role": "user", "content": "more"}], params).outputs[0].text
    assert done.stdout == f"{one}\n{two}\n{one}\n"
    assert done.stderr.count("tok/s") >= 3


def test_chat_goes_on_after_a_message_that_is_too_long(folder):
    done = subprocess.run(
        [*COMMAND, "chat", "--model", folder, "--max_tokens", "5", "--max_model_len", "40"],
        input=f"{'word ' * 100}\nHello\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "error: messages:" in done.stderr
    assert "more than the model length of 40" in done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["generate", "--prompt", "a", "--model", "no-such"], 2, "error: path: 'no-such' is not a"),
        (
            ["generate", "--prompt", "a", "--top_p", "2"],
            2,
            "error: top_p: expected a number in (0,",
        ),
        (["generate", "--prompt", "a", "--max_tokens", "x"], 2, "invalid int value: 'x'"),
        (["generate", "--prompt", "a", "--quantization", "int3"], 2, "invalid choice: 'int3'"),
        (
            ["generate", "--prompt", "a", "--quantization", '{"dense_quant_type": "wint4"'],
            2,
            "expected a JSON object",
        ),
        (
            ["generate", "--prompt", "a", "--quantization", '{"dense_quant_type": "wint3"}'],
            2,
            "error: quantization: dense_quant_type: expected one of wint8, w8a8, wint4, got 'wint3'",
        ),
        (["generate"], 2, "--prompt"),
        (["fly"], 2, "invalid choice: 'fly'"),
        ([], 2, "COMMAND"),
        (["generate", "--prompt", "a", "--device", "cuda:99"], 1, "error: device: cuda:99 needed"),
    ],
)
def test_errors_are_one_line(capfd, folder, arguments, code, message):
    if "--model" not in arguments and arguments[:1] == ["generate"] and len(arguments) > 1:
        arguments = [*arguments, "--model", folder]
    got, out, err = run(capfd, *arguments)
    assert got == code
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    if err.startswith("error:"):
        assert err.count("\n") == 1


def test_empty_prompt(capfd, tmp_path):
    write_checkpoint_with_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    code, _, err = run(capfd, "generate", "--model", str(tmp_path), "--prompt", "")
    assert (code, err) == (2, "error: prompts[0]: expected at least one token, got 0 tokens\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_teaches_by_example(capfd, command):
    code, out, _ = run(capfd, command, "--help")
    assert code == 0
    assert f"\n  ernie-kernels {command}" in out
    code, out, _ = run(capfd, "--help")
    assert code == 0
    assert f"  ernie-kernels {command}" in out


LOG_LINE = re.compile(
    r"^\d+ running, \d+ waiting, [\d.]+ prompt tok/s, [\d.]+ generated tok/s, KV cache [\d.]+ %$",
    re.MULTILINE,
)


@pytest.mark.parametrize(("option", "is_told"), [("-v", True), ("--verbose", True), ("", False)])
def test_verbose_tells_how_it_goes(folder, option, is_told):
    """The line of a busy engine, here after every step instead of every five seconds."""
    words = ["generate", "--model", folder, "--prompt", "Hello", "--max_tokens", "8", option]
    code = (
        "import ernie_kernels.runner.throughput_log as log; log.INTERVAL = 0.0\n"
        f"from ernie_kernels.cli import main; main({[word for word in words if word]})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert (len(LOG_LINE.findall(done.stderr)) >= 3) is is_told
    assert ("MB of weights" in done.stderr) is is_told
    assert LOG_LINE.search(done.stdout) is None


def test_version(capfd):
    assert run(capfd, "--version") == (0, f"ernie-kernels {ek.__version__}\n", "")


def test_closed_pipe_is_no_error(folder):
    process = subprocess.Popen(
        [*COMMAND, "generate", "--model", folder, "--prompt", "a", "--max_tokens", "500",
         "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 0
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_one_line(folder):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "generate", "--model", folder, "--prompt", "a", "--max_tokens", "3"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "error: output: No space left on device\n")


def test_characters_that_stdout_cannot_hold(folder):
    done = subprocess.run(
        [*COMMAND, "generate", "--model", folder, "--prompt", "Hello", "--max_tokens", "12"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True,
    )  # fmt: skip
    text = expected_text(folder, "Hello", max_tokens=12)
    assert not text.isascii()
    assert done.stdout == text.encode("ascii", "replace") + b"\n"


def test_interrupt_ends_cleanly(folder):
    process = subprocess.Popen(
        [*COMMAND, "generate", "--model", folder, "--prompt", "a", "--max_tokens", "1900",
         "--ignore-eos"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.read(1)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_option_names_only_are_rewritten():
    words = ["generate", "--top_p=0_5", "--max_length", "a_b", "--", "--c_d"]
    assert cli.with_dashes(words) == [
        "generate", "--top-p=0_5", "--max-length", "a_b", "--", "--c_d",
    ]  # fmt: skip


def test_summary_of_nothing():
    empty = dict.fromkeys(
        ("first_token_seconds", "prompt_tokens_per_second", "generated_tokens_per_second")
    )
    line = summary({"prompt_tokens": 0, "generated_tokens": 0, **empty})
    assert line == "[0 prompt tokens, -; 0 generated, -; first token after -]"
