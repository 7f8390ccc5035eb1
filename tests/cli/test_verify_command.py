"""``ernie-kernels verify``: what it prints and how it exits. What it finds: tests/verify."""

from __future__ import annotations

import json

import pytest
from commands import run

import safetensors_bytes
from tiny_checkpoint import write_checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint, and a copy with one wrong weight."""
    right, wrong = tmp_path_factory.mktemp("right"), tmp_path_factory.mktemp("wrong")
    write_checkpoint(right)
    _, weights = write_checkpoint(wrong)
    weights["model.layers.1.self_attn.o_proj.weight"][3, 5] += 1
    safetensors_bytes.save(wrong / "model.safetensors", weights)
    return str(right), str(wrong)


def test_passes(capfd, folders):
    code, out, err = run(capfd, "verify", folders[0])
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "float32 on " in lines[0]
    assert [line.split("  ")[0] for line in lines[3:8]] == [
        "embedding", "layer 0", "layer 1", "layer 2", "head",
    ]  # fmt: skip
    assert all(line.endswith("pass") for line in lines[3:8])
    assert "mean KL" in out
    assert "top-1 agreement 100.0%" in out
    assert lines[-1].startswith("PASSED: all ")


def test_fails_and_says_where(capfd, folders):
    code, out, _ = run(capfd, "verify", "--model", folders[1], "--reference", folders[0])
    assert code == 1
    assert "FAIL: layer 1: o_proj weights: error 1, bound" in out
    assert out.splitlines()[-1].startswith("FAILED: 2 of ")
    assert "layer 0" in out
    assert out.count("FAIL: layer 0") == 0


def test_json(capfd, folders):
    code, out, _ = run(capfd, "verify", folders[1], "--reference", folders[0], "--json",
                       "--tokens", "5", "--max_mean_kl", "0.5")  # fmt: skip
    report = json.loads(out)
    assert code == 1
    assert report["passed"] is False
    assert report["failures"]
    assert report["prompt_lengths"] == [1, 5, 5, 5]
    assert report["limits"]["mean_kl"] == 0.5
    stage = report["stages"][2]
    assert (stage["name"], stage["passed"]) == ("layer 1", False)
    part = next(part for part in stage["parts"] if part["name"] == "o_proj weights")
    assert part["error"] > part["bound"]
    assert report["stages"][1]["passed"] is True


def test_a_limit_on_the_logits_fails_alone(capfd, folders):
    code, out, _ = run(capfd, "verify", folders[0], "--dtype", "bfloat16", "--max-mean-kl", "0")
    assert code == 1
    assert "every part is within its bound, the logits are not" in out
    assert "FAIL: mean KL" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-folder"], "error: path: 'no-such-folder' is not a folder"),
        (["--reference", "no-such-folder"], "error: path: 'no-such-folder' is not a folder"),
        (["--tokens", "0"], "error: tokens: expected 1..1024, got 0"),
        (["--min_top1", "99.5"], "error: verify: top1: expected 0 to 1, got 99.5"),
        (["--device", "cuda:99"], "error: device: cuda:99 needed"),
        (["--tokens", "many"], "invalid int value"),
    ],
)
def test_what_cannot_run_exits_with_two(capfd, options, message):
    code, out, err = run(capfd, "verify", *options)
    assert (code, out) == (2, "")
    assert message in err
