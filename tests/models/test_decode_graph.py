"""Decoding in padded steps and CUDA graphs gives the same bits as kernel by kernel."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import _core
from ernie_kernels.models.config import load_config
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.loader import open_checkpoint
from ernie_kernels.runner import decode_graph
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.transfers import Transfers
from tiny_checkpoint import MOE_SHAPES, write_checkpoint

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
BLOCK_SIZE = 16
NUM_BLOCKS = 40


EXPERTS = {
    **MOE_SHAPES["21b"],
    **SHAPE,
    "num_hidden_layers": 3,
    "moe_num_experts": 5,
    "moe_k": 2,
    "moe_intermediate_size": 16,
}
MODELS = {
    "float32": ("float32", SHAPE),
    "bfloat16": ("bfloat16", SHAPE),
    "experts": ("bfloat16", EXPERTS),
}


@pytest.fixture(scope="module", params=MODELS)
def folder(tmp_path_factory, request):
    path = tmp_path_factory.mktemp(request.param)
    dtype, shape = MODELS[request.param]
    write_checkpoint(path, dtype=dtype, **shape)
    return path


@pytest.fixture(params=[False, True], ids=["", "batch_invariant"])
def batch_invariant(request):
    _core.set_batch_invariant(request.param)
    yield request.param
    _core.set_batch_invariant(False)


@pytest.fixture
def launches(monkeypatch) -> list[decode_graph.Graph]:
    """The graph of each launch."""
    seen: list[decode_graph.Graph] = []

    class Watched(_core.Graph):
        def launch(self) -> None:
            super().launch()
            seen.append(self)

    monkeypatch.setattr(decode_graph, "Graph", Watched)
    return seen


def load_runner(folder, *, max_num_seqs: int = 8, max_model_len: int = 1000) -> ModelRunner:
    config = load_config(folder)
    with open_checkpoint(folder) as checkpoint:
        dtype = checkpoint.dtype
        model = ErnieForCausalLM(
            config, checkpoint, device="cuda:0", dtype=dtype, weight_dtype=dtype
        )
    return ModelRunner(
        model,
        config,
        transfers=Transfers("cuda:0"),
        dtype=dtype,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        max_tokens_per_step=512,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
    )


class Sequences:
    """Sequences over one runner that join, grow by tokens of no meaning, and leave."""

    def __init__(self, runner: ModelRunner, *, padded: bool = True) -> None:
        self.runner = runner
        self.padded = padded
        self.rng = np.random.default_rng(1)
        self.free = self.rng.permutation(NUM_BLOCKS).tolist()
        self.running: list[tuple[list[int], list[int]]] = []  # tokens and blocks

    def span(self, tokens: list[int], blocks: list[int], start: int) -> TokenSpan:
        while len(blocks) * BLOCK_SIZE < len(tokens):
            blocks.append(self.free.pop())
        ids = np.array(tokens[start:], np.int64)
        return TokenSpan(ids, start, np.array(blocks, np.int32), num_outputs=1)

    def join(self, length: int) -> None:
        tokens = self.rng.integers(3, SHAPE["vocab_size"], length).tolist()
        self.running.append((tokens, []))
        self.runner.run([self.span(*self.running[-1], 0)])

    def leave(self, index: int) -> None:
        _, blocks = self.running.pop(index)
        self.free += blocks

    def step(self) -> bytes:
        spans = []
        for tokens, blocks in self.running:
            tokens.append(int(self.rng.integers(3, SHAPE["vocab_size"])))
            spans.append(self.span(tokens, blocks, len(tokens) - 1))
        if self.padded:
            logits = self.runner.decode(spans)
        else:
            logits = self.runner.logits(self.runner.run(spans))
        assert logits.shape == (len(spans), SHAPE["vocab_size"])
        return logits.numpy().tobytes()


def come_and_go(sequences: Sequences) -> list[bytes]:
    """Steps of 1, 3, 8, 4 and 1 sequences, over borders of blocks."""
    logits = []

    def steps(count: int) -> None:
        logits.extend(sequences.step() for _ in range(count))

    sequences.join(14)
    steps(4)
    for length in (3, 30):
        sequences.join(length)
    steps(4)
    for length in (1, 16, 47, 5, 2):
        sequences.join(length)
    steps(4)
    for index in (6, 4, 1, 0):
        sequences.leave(index)
    steps(2)
    for index in (2, 0, 0):
        sequences.leave(index)
    steps(2)
    return logits


def grow_long(sequences: Sequences) -> list[bytes]:
    """Past the keys that attention takes in one piece."""
    sequences.join(decode_graph.SHORTEST_LENGTH - 4)
    return [sequences.step() for _ in range(8)]


SCENARIOS = {"come_and_go": (come_and_go, 13), "grow_long": (grow_long, 6)}


@pytest.mark.cuda
@pytest.mark.parametrize("name", SCENARIOS)
def test_graphs_give_the_bits_of_kernels(folder, name, batch_invariant, launches, monkeypatch):
    scenario, num_launches = SCENARIOS[name]
    replayed = scenario(Sequences(load_runner(folder)))
    assert len(launches) == num_launches
    monkeypatch.setenv("ERNIE_CUDA_GRAPHS", "0")
    assert scenario(Sequences(load_runner(folder))) == replayed
    assert len(launches) == num_launches
    # With other kernels for other numbers of rows, padding changes the order of summation.
    if batch_invariant:
        assert scenario(Sequences(load_runner(folder), padded=False)) == replayed


@pytest.mark.cuda
def test_padding_writes_nothing(folder):
    runner = load_runner(folder)
    sequences = Sequences(runner)
    for length in (3, 20, 7):
        sequences.join(length)

    def caches() -> list[np.ndarray]:
        return [
            each.numpy().view(np.uint8)
            for kv in runner._kv_caches
            for each in (kv.k_cache, kv.v_cache)
        ]

    for _ in range(3):
        before = caches()
        sequences.step()
        last = [(blocks, len(tokens) - 1) for tokens, blocks in sequences.running]
        written = sorted([blocks[at // BLOCK_SIZE], at % BLOCK_SIZE] for blocks, at in last)
        for old, new in zip(before, caches(), strict=True):
            assert np.argwhere((old != new).any(axis=(1, 3))).tolist() == written


@pytest.mark.cuda
def test_a_switch_of_kernels_makes_a_graph_anew(folder, launches):
    sequences = Sequences(load_runner(folder))
    sequences.join(5)
    for _ in range(3):
        sequences.step()
    try:
        _core.set_batch_invariant(True)
        for _ in range(3):
            sequences.step()
    finally:
        _core.set_batch_invariant(False)
    sequences.step()
    first, second = launches[0], launches[2]
    assert launches == [first, first, second, second, first]
    assert first is not second


@pytest.mark.cuda
def test_no_more_rows_than_sequences_may_run(folder, launches):
    sequences = Sequences(load_runner(folder, max_num_seqs=3, max_model_len=20))
    for length in (17, 1, 4):
        sequences.join(length)
    logits = [sequences.step() for _ in range(3)]
    assert len(launches) == 2
    alone = Sequences(load_runner(folder, max_num_seqs=3, max_model_len=20), padded=False)
    for length in (17, 1, 4):
        alone.join(length)
    assert [alone.step() for _ in range(3)] == logits


@pytest.mark.cuda
def test_steps_that_are_no_decoding_run_as_ever(folder, launches):
    runner = load_runner(folder)
    sequences = Sequences(runner)
    sequences.join(3)
    tokens, blocks = sequences.running[0]
    tokens += [4, 5]
    assert runner.decode([sequences.span(tokens, blocks, 3)]) is None
    one = sequences.span(tokens, blocks, 4)
    assert runner.decode([one, TokenSpan(one.token_ids, 0, one.blocks, num_outputs=0)]) is None
    assert launches == []


@pytest.mark.cuda
def test_without_capture_kernels_run_one_by_one(folder, monkeypatch, caplog):
    def refuse(device, record):
        raise ek.UnsupportedError("graph: refused")

    expected = come_and_go(Sequences(load_runner(folder)))
    monkeypatch.setattr(decode_graph, "Graph", refuse)
    with caplog.at_level(logging.WARNING, "ernie_kernels"):
        assert come_and_go(Sequences(load_runner(folder))) == expected
    assert [record.getMessage() for record in caplog.records] == [
        "decoding without CUDA graphs: graph: refused"
    ]


@pytest.mark.cuda
@pytest.mark.parametrize("quantization", [None, "wint8"])
def test_answers_do_not_depend_on_graphs(folder, quantization, launches, monkeypatch):
    """Penalties, log-probabilities and different lengths, through the whole engine."""
    check_answers(folder, quantization, launches, monkeypatch)


@pytest.mark.cuda
def test_four_bits_decode_from_graphs_too(tmp_path, launches, monkeypatch):
    write_checkpoint(tmp_path, dtype="bfloat16", **EXPERTS)
    check_answers(tmp_path, "wint4", launches, monkeypatch)


def check_answers(folder, quantization, launches, monkeypatch) -> None:
    params = [
        ek.SamplingParams(max_tokens=6, ignore_eos=True),
        ek.SamplingParams(max_tokens=9, ignore_eos=True, temperature=0.9, seed=3, logprobs=2),
        ek.SamplingParams(max_tokens=4, ignore_eos=True, repetition_penalty=1.3, top_k=5, seed=4),
    ]
    prompts = [[5, 6, 7], [9], [11, 12]]

    def answers() -> list:
        with ek.LLM.from_pretrained(
            folder,
            device="cuda",
            quantization=quantization,
            kv_cache_memory=1 << 18,
            max_num_seqs=4,
        ) as llm:
            outputs = llm.generate(prompt_token_ids=prompts, params=params)
        return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in outputs]

    monkeypatch.setenv("ERNIE_CUDA_GRAPHS", "0")
    first = answers()
    assert launches == []
    monkeypatch.delenv("ERNIE_CUDA_GRAPHS")
    assert answers() == first
    assert launches != []
    assert answers() == first


@pytest.mark.cuda
def test_a_graph_flags_tokens_without_experts_anew_in_each_step(tmp_path, launches):
    """A token whose router logits are infinite: in its own step, and in no later one."""
    _, weights = write_checkpoint(tmp_path, **EXPERTS)
    table = weights["model.embed_tokens.weight"]
    table[:, -1] = 0
    table[7, -1] = 100
    weights["model.layers.1.mlp.gate.weight"][:, -1] = 3e38
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[-1] = 0
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    runner = load_runner(tmp_path)

    def flagged(*tokens: int) -> list[tuple[int, int]]:
        spans = [
            TokenSpan(np.array([token]), 0, np.array([row], np.int32), num_outputs=1)
            for row, token in enumerate(tokens)
        ]
        runner.decode(spans)
        return runner.flagged(spans)

    for _ in range(2):  # kernel by kernel, then from the graph
        assert flagged(5, 7, 9) == [(1, 0)]
        assert flagged(5, 8, 9) == []
    assert len(launches) == 3


def test_sizes():
    assert [decode_graph.rows_for(n, 24) for n in (1, 2, 3, 4, 5, 16, 17, 24)] == [
        1, 2, 4, 4, 8, 16, 24, 24
    ]  # fmt: skip
    assert [decode_graph.length_for(n, 5000) for n in (1, 256, 257, 1024, 1025, 4097)] == [
        256, 256, 1024, 1024, 4096, 5000
    ]  # fmt: skip
    assert decode_graph.length_for(3, 32) == 32
