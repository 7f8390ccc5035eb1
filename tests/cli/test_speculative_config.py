"""``--speculative-config``: the same text, and how many guesses were right."""

from __future__ import annotations

import json
import re

import pytest
from commands import run

import tokenizer_files
from mtp_checkpoint import MTP, write_mtp_checkpoint
from tiny_checkpoint import write_checkpoint

OPTION = ["--speculative_config", json.dumps(MTP)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_mtp_checkpoint(folder, noise=0.001, vocab_size=tokenizer_files.VOCAB_SIZE)
    tokenizer_files.write_tokenizer(folder)
    return str(folder)


def test_generate_says_how_many_were_right(capfd, folder):
    command = ["generate", "--model", folder, "--prompt", "the", "--max_tokens", "20"]
    _, expected, plain = run(capfd, *command)
    code, out, err = run(capfd, *command, *OPTION)
    assert (code, out) == (0, expected)
    assert "drafts" not in plain
    assert re.search(r"first token after \d+ ms; \d+ of \d+ drafts accepted \(\d+\.\d%\)]$", err)


def test_json_holds_the_figures(capfd, folder):
    command = ["generate", "--model", folder, "--prompt", "the", "--max_tokens", "20", "--json"]
    timing = json.loads(run(capfd, *command, *OPTION)[1])["timing"]
    assert 5 < timing["accepted_tokens"] <= timing["drafted_tokens"]
    rate = timing["accepted_tokens"] / timing["drafted_tokens"]
    assert timing["acceptance_rate"] == pytest.approx(rate)
    assert "drafted_tokens" not in json.loads(run(capfd, *command)[1])["timing"]


@pytest.mark.parametrize("text", ["mtp", "[1]", '{"method": ', "3"])
def test_something_else_than_an_object(capfd, folder, text):
    code, _, err = run(capfd, "generate", "--prompt", "a", "--speculative-config", text)
    assert code == 2
    assert f"--speculative-config: expected a JSON object, got '{text}'" in err


def test_errors_are_one_line(capfd, tmp_path, folder):
    config = json.dumps({**MTP, "method": "eagle"})
    code, _, err = run(
        capfd, "generate", "--model", folder, "--prompt", "a", "--speculative-config", config
    )
    assert (code, err) == (
        2,
        "error: speculative_config: method: expected one of mtp, got 'eagle'\n",
    )
    write_checkpoint(tmp_path, vocab_size=tokenizer_files.VOCAB_SIZE)
    tokenizer_files.write_tokenizer(tmp_path)
    code, _, err = run(capfd, "generate", "--model", str(tmp_path), "--prompt", "a", *OPTION)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: speculative_config: method mtp needs the multi-token prediction")
