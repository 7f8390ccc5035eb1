"""A model against itself: the same bits however its files lie and however the work is cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels.runner.batch import TokenSpan
from tiny_checkpoint import in_shards, random_ids, to_paddle

Prompts = list[list[int]]
Weights = dict[str, np.ndarray]


def forward(folder: Path, prompts: Prompts, **options: Any) -> list[np.ndarray]:
    with ek.LLM.from_pretrained(folder, **{"device": "cpu", **options}) as llm:
        return llm.forward(prompts)


def check_every_layout(
    tmp_path: Path, weights: Weights, prompts: Prompts, stacked: Weights | None = None, **options
) -> None:
    """In several files, with Paddle's names and transposes, and ``stacked``: experts in one tensor.

    The checkpoint itself is in ``tmp_path / "one"``. ``options`` are those of loading.
    """
    expected = forward(tmp_path / "one", prompts, **options)
    paddle = to_paddle(weights)
    assert weights.keys() != paddle.keys()
    layouts = {"shards": weights, "paddle": paddle, "paddle shards": paddle}
    if stacked is not None:
        layouts["stacked"] = stacked
    for name, stored in layouts.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
        if "shards" in name:
            safetensors_bytes.save_sharded(folder, in_shards(stored))
        else:
            safetensors_bytes.save(folder / "model.safetensors", stored)
        for actual, logits in zip(forward(folder, prompts, **options), expected, strict=True):
            assert np.array_equal(actual, logits), name


def logits_in_spans(llm: ek.LLM, ids: list[int], cuts: Sequence[int]) -> np.ndarray:
    """The logits of one sequence, run in steps that end at ``cuts``."""
    runner = llm._engine._runner
    blocks = np.arange(-(-len(ids) // runner.block_size), dtype=np.int32)[::-1].copy()
    tokens, parts = np.array(ids, np.int64), []
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        hidden = runner.run([TokenSpan(tokens[start:stop], start, blocks, stop - start)])
        part = np.empty((stop - start, llm.config.vocab_size), np.float32)
        runner.write_logits(hidden, part)
        parts.append(part)
    return np.concatenate(parts)


def check_wanted_rows(llm: ek.LLM, rng: np.random.Generator) -> None:
    """Rows whose final hidden states nobody asks for are left out of the last layer."""
    runner = llm._engine._runner
    lengths, wanted = [20, 1, 33, 7, 9], [1, 1, 0, 7, 3]
    prompts = random_ids(rng, *lengths)
    per_prompt = -(-max(lengths) // runner.block_size)

    def spans(outputs):
        return [
            TokenSpan(np.array(ids), 0, np.arange(per_prompt, dtype=np.int32) + i * per_prompt, n)
            for i, (ids, n) in enumerate(zip(prompts, outputs, strict=True))
        ]

    everything = np.split(runner.run(spans(lengths)).numpy().copy(), np.cumsum(lengths)[:-1])
    hidden = runner.run(spans(wanted))
    expected = [rows[len(rows) - n :] for rows, n in zip(everything, wanted, strict=True)]
    assert np.array_equal(hidden.numpy(), np.concatenate(expected))
    assert runner.run(spans([0] * 5)).shape == (0, hidden.shape[1])
    # Keys and values are complete all the same.
    table = np.arange(per_prompt, dtype=np.int32) + 2 * per_prompt
    after = runner.run([TokenSpan(np.array([5]), 33, table, 1)]).numpy().copy()
    alone = [*prompts[2], 5]
    whole = runner.run([TokenSpan(np.array(alone), 0, table, 1)]).numpy()
    assert np.array_equal(after, whole)


def check_mixed_batch(llm: ek.LLM, prompts: Prompts) -> None:
    for ids, logits in zip(prompts, llm.forward(prompts), strict=True):
        assert np.array_equal(llm.forward([ids])[0], logits)


def check_numbers_of_threads(llm: ek.LLM, prompts: Prompts) -> None:
    threads = ek.num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            ek.set_num_threads(count)
            results.append(llm.forward(prompts))
    finally:
        ek.set_num_threads(threads)
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
