"""``ernie-kernels bench``: figures that fit each other, and errors that say what to do."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from commands import run

import ernie_kernels as ek
from ernie_kernels.cli.throughput import ThroughputBench, cache_bytes
from ernie_kernels.models.memory_plan import plan_memory
from mtp_checkpoint import MTP, write_mtp_checkpoint
from tiny_checkpoint import MOE_SHAPES, write_checkpoint
from vl_checkpoint import write_vl_checkpoint

QUICK = ["--repeats", "1", "--prompt_tokens", "16", "--new_tokens", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, max_position_embeddings=64)
    return str(folder)


def test_a_table_of_batch_sizes(capfd):
    code, out, err = run(capfd, "bench", *QUICK, "--batch_sizes", "1", "3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("'demo': 3.5 MB of weights, bfloat16 on cpu (")
    header = next(index for index, line in enumerate(lines) if line.lstrip().startswith("batch"))
    rows = [line.split() for line in lines[header + 1 : header + 3]]
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(float(cell) > 0 for row in rows for cell in row)
    assert "this machine" in out


def test_json_holds_what_was_asked_and_measured(capfd, folder):
    code, out, _ = run(capfd, "bench", folder, *QUICK, "--batch-sizes", "2", "5", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["prompt_tokens"], report["new_tokens"], report["repeats"]) == (16, 4, 1)
    assert report["dtype"] == "float32"
    assert report["memory_read_bytes_per_second"] > 1e8
    assert [batch["batch_size"] for batch in report["batches"]] == [2, 5]
    for batch in report["batches"]:
        assert 0 < batch["token_seconds_p50"] <= batch["token_seconds_p95"]
        steps = batch["generated_tokens_per_second"] / batch["batch_size"]
        assert batch["read_bytes_per_second"] == pytest.approx(steps * batch["bytes_per_step"])
        assert batch["bytes_per_step"] > report["weight_bytes"]


def test_one_new_token_has_no_decode(capfd, folder):
    code, out, _ = run(capfd, "bench", folder, "--new-tokens", "1", "--repeats", "1",
                       "--prompt-tokens", "8", "--batch-sizes", "2", "--json")  # fmt: skip
    (batch,) = json.loads(out)["batches"]
    assert code == 0
    assert batch["generated_tokens_per_second"] is None
    assert batch["prompt_tokens_per_second"] > 0


def test_each_draft_reads_the_module_and_the_head(tmp_path):
    write_mtp_checkpoint(tmp_path, max_position_embeddings=64)
    reads = []
    for count in (1, 2, 5):
        options = {**MTP, "num_speculative_tokens": count}
        with ek.LLM.from_pretrained(tmp_path, speculative_config=options) as llm:
            bench = ThroughputBench(llm, prompt_tokens=10, new_tokens=20, seed=0)
            reads.append(bench.bytes_per_step(2))
            each = llm.model.lm_head.weight.nbytes + llm.stats()["weight_bytes"]
    with ek.LLM.from_pretrained(tmp_path) as llm:
        each -= llm.stats()["weight_bytes"]
    assert np.diff(reads).tolist() == [each, 3 * each]


def test_drafts_save_steps(capfd, tmp_path):
    write_mtp_checkpoint(tmp_path, noise=0.001, max_position_embeddings=64)
    code, out, _ = run(capfd, "bench", str(tmp_path), "--repeats", "2", "--prompt_tokens", "8",
                       "--new_tokens", "20", "--batch_sizes", "2", "--json",
                       "--speculative_config", json.dumps(MTP))  # fmt: skip
    report = json.loads(out)
    (batch,) = report["batches"]
    assert code == 0
    assert report["speculative_config"] == MTP
    assert 20 < batch["accepted_tokens"] <= batch["drafted_tokens"]
    # Two runs of two requests of 20 tokens, the first of which no step of their own has brought.
    steps = batch["generated_tokens_per_second"] / 2 * (1 - batch["accepted_tokens"] / 76)
    assert batch["read_bytes_per_second"] == pytest.approx(steps * batch["bytes_per_step"])
    with ek.LLM.from_pretrained(tmp_path, speculative_config=MTP) as llm:
        stats, head = llm.stats(), llm.model.lm_head.weight.nbytes
        table = llm.model.model.embed_tokens.weight.nbytes
        weights = stats["weight_bytes"] + head - table + 2 * table // llm.config.vocab_size
        cache = 2 * 18 * stats["kv_cache_bytes"] // stats["num_blocks"] // stats["block_size"]
        assert batch["bytes_per_step"] == pytest.approx(weights + cache, abs=32)
    code, out, _ = run(capfd, "bench", str(tmp_path), "--repeats", "1", "--prompt_tokens", "8",
                       "--new_tokens", "20", "--batch_sizes", "1",
                       "--speculative_config", json.dumps(MTP))  # fmt: skip
    assert re.search(r"^batch 1: \d+ of \d+ drafts accepted \(\d+\.\d%\)$", out, re.MULTILINE)


def test_figures_follow_from_the_times(folder, monkeypatch):
    """Two requests; one token each 0.1 s from 1 s and 2 s on."""
    with ek.LLM.from_pretrained(folder) as llm:
        bench = ThroughputBench(llm, prompt_tokens=10, new_tokens=21, seed=0)
        times = np.array([[1.0], [2.0]]) + 0.1 * np.arange(21)
        monkeypatch.setattr(bench, "_run", lambda batch_size: times)
        speed = bench.measure(2, 3, lambda: None)
        read = bench.bytes_per_step(2)
    assert speed.prompt_tokens_per_second == pytest.approx(10)  # 20 of them until 2 s
    assert speed.first_token_seconds == pytest.approx(1.5)
    # From 2 s to 3 s both generate, ten tokens each.
    assert speed.generated_tokens_per_second == pytest.approx(20)
    assert speed.token_seconds_p50 == pytest.approx(0.1)
    assert speed.read_bytes_per_second == pytest.approx(10 * read)


def test_a_step_reads_one_row_of_an_untied_table(tmp_path):
    sizes = {}
    for tied in (True, False):
        config, _ = write_checkpoint(tmp_path, tie_word_embeddings=tied)
        with ek.LLM.from_pretrained(tmp_path) as llm:
            bench = ThroughputBench(llm, prompt_tokens=8, new_tokens=2, seed=0)
            sizes[tied] = bench.bytes_per_step(3)
    # The table is kept in panels of 16 rows.
    row = config["hidden_size"] * 4
    assert 3 * row <= sizes[False] - sizes[True] <= 4 * row


@pytest.mark.parametrize("quantization", [None, "wint4"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_the_experts_that_are_chosen(tmp_path, tied, quantization):
    """3 of 8 for one request, nearly all for many."""
    shape = {**MOE_SHAPES["21b"], "tie_word_embeddings": tied}
    config, _ = write_checkpoint(tmp_path, dtype="bfloat16", **shape)
    with ek.LLM.from_pretrained(tmp_path, quantization=quantization) as llm:
        bench = ThroughputBench(llm, prompt_tokens=8, new_tokens=2, seed=0)
        plan = plan_memory(llm.config, quantization=quantization, device=llm.device)
        one, many = bench.bytes_per_step(1), bench.bytes_per_step(100)
        cache = 9 * plan.kv_bytes_per_token
    row = 0 if tied else config["hidden_size"] * 2
    assert plan.read_bytes_per_token <= one - cache <= plan.read_bytes_per_token + 2 * row
    everything = plan.weight_bytes - (0 if tied else config["vocab_size"] * row)
    assert many - 100 * cache <= plan.weight_bytes
    assert many - 100 * cache >= everything - (16 * row)


MEDIA_IDS = (
    "im_patch_id", "video_token_id", "image_start_token_id", "image_end_token_id",
    "video_start_token_id", "video_end_token_id",
)  # fmt: skip


def test_a_vision_language_model_is_measured_on_text(tmp_path):
    """No prompt has a token that stands for an image; of the weights, text reads its own."""
    ids = dict(zip(MEDIA_IDS, range(0, 12, 2), strict=True))
    write_vl_checkpoint(tmp_path, dtype="bfloat16", vocab_size=14, **ids)
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        bench = ThroughputBench(llm, prompt_tokens=64, new_tokens=2, seed=0)
        speed = bench.measure(2, 1, lambda: None)
        plan = plan_memory(llm.config, device="cpu")
        read = bench.bytes_per_step(1) - 65 * plan.kv_bytes_per_token
    assert speed.prompt_tokens_per_second > 0
    assert read == plan.read_bytes_per_token


def test_cache_bytes_are_whole_blocks(folder):
    with ek.LLM.from_pretrained(folder) as llm:
        one = cache_bytes(llm.config, "float32", 1, 1)
        assert cache_bytes(llm.config, "float32", 3, 33) == 6 * one


@pytest.mark.parametrize(
    ("options", "code", "messages"),
    [
        (["--prompt_tokens", "60"], 2, ["92 tokens", "64 positions", "lower them"]),
        (["--max_model_len", "50", "--prompt_tokens", "20"], 2,
         ["52 tokens", "--max-model-len is 50", "raise it or lower them"]),
        (["--batch_sizes", "0"], 2, ["batch_sizes: expected 1..512, got 0"]),
        (["--new_tokens", "0"], 2, ["new_tokens: expected 1.."]),
        (["--repeats", "0"], 2, ["repeats: expected 1..1000"]),
        (["--device", "cuda:99"], 1, ["cuda:99 needed"]),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(capfd, folder, options, code, messages):
    if "--prompt_tokens" not in options:
        options = [*options, "--prompt_tokens", "16"]
    got, out, err = run(capfd, "bench", folder, *options)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    for message in messages:
        assert message in err
    assert got == code


def test_no_room_for_the_cache(capfd, folder, monkeypatch):
    monkeypatch.setattr("ernie_kernels.cli.bench.available_host_memory", lambda: 1000)
    code, _, err = run(capfd, "bench", folder, "--prompt_tokens", "8")
    assert code == 1
    assert "lower --batch-sizes, --prompt-tokens or --new-tokens" in err
