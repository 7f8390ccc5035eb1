"""Drafts: who gets room for them, what they save, and that nothing else shows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fake_model import expected_tokens, fake_engine, fake_request

import ernie_kernels as ek
import tokenizer_files
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.requests import make_prompt_sequence, make_sequences
from ernie_kernels.runner.scheduler import Scheduler
from ernie_kernels.runner.sequence import Progress
from ernie_kernels.runner.speculation import LOOKAHEAD, DraftCounts, followed_span
from mtp_checkpoint import MTP, write_mtp_checkpoint
from tiny_checkpoint import random_ids

# ---------------------------------------------------------------------------------------- scheduler


class Rig:
    """A scheduler with running sequences of 4 tokens a block, each with a draft when it is wanted."""

    def __init__(
        self, num_blocks: int, *lengths: int, budget: int = 64, max_tokens: int = 8
    ) -> None:
        self.manager = BlockManager(num_blocks, 4)
        self.scheduler = Scheduler(
            self.manager, max_num_seqs=8, max_tokens_per_step=budget, lookahead=LOOKAHEAD
        )
        self.scheduler._watermark = 0
        self.sequences = []
        for index, length in enumerate(lengths):
            request = fake_request(np.arange(length) + 100 * index, max_tokens=max_tokens)
            (sequence,) = make_sequences(request, None)
            self.scheduler.prepare(sequence)
            self.scheduler.add(sequence)
            self.sequences.append(sequence)

    def step(self, *, draft: bool = True, accept: bool = False) -> list[TokenSpan]:
        scheduled = self.scheduler.schedule()
        self.scheduler.check()
        # As they are now: what is chosen takes the place of the draft.
        spans = [replace(span, token_ids=span.token_ids.copy()) for _, span in scheduled]
        for sequence, span in scheduled:
            num_drafts = span.num_outputs - 1
            sequence.num_drafted = 0
            for _ in range(1 + (num_drafts if accept else 0) if span.num_outputs else 0):
                sequence.token_ids[sequence.num_tokens] = 9
                sequence.progress.append(Progress(9, None))
            self.scheduler.advance(sequence, min(span.stop, sequence.num_tokens - 1))
            sequence.num_drafted = int(draft)
            sequence.token_ids[sequence.num_tokens] = 7
        self.scheduler.check()
        return spans


def test_a_draft_runs_behind_the_last_token():
    rig = Rig(10, 5)
    rig.step()
    (span,) = rig.step()
    assert (span.start, span.token_ids.tolist(), span.num_outputs) == (5, [9, 7], 2)
    (sequence,) = rig.sequences
    assert (sequence.num_tokens, sequence.num_computed) == (7, 6)
    # It was wrong: its place is computed once more.
    (span,) = rig.step(accept=True)
    assert (span.start, span.token_ids.tolist()) == (6, [9, 7])
    assert (sequence.num_tokens, sequence.num_computed) == (9, 8)


def test_nobody_loses_a_block_for_a_draft():
    rig = Rig(4, 7, 7)  # two blocks each, one place left in them
    rig.step()
    spans = rig.step()
    assert [len(span.token_ids) for span in spans] == [1, 1]
    assert rig.scheduler.num_preemptions == 0
    assert [s.num_blocks for s in rig.sequences] == [2, 2]


def test_the_first_gets_the_block_that_is_left():
    rig = Rig(5, 7, 7)
    rig.step()
    assert [len(span.token_ids) for span in rig.step()] == [2, 1]
    assert [s.num_blocks for s in rig.sequences] == [3, 2]
    assert rig.scheduler.num_preemptions == 0


def test_drafts_have_their_place_in_the_step_beside_a_long_prompt():
    rig = Rig(40, 5, 5, budget=12)
    rig.step()
    (prompt,) = make_sequences(fake_request(np.arange(50) + 500), None)
    rig.scheduler.prepare(prompt)
    rig.scheduler.add(prompt)
    assert [len(span.token_ids) for span in rig.step()] == [2, 2, 8]


def test_who_loses_its_blocks_loses_its_draft():
    rig = Rig(4, 7, 7)
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    assert rig.sequences[1].num_blocks == 0
    assert rig.sequences[1].num_drafted == 0


def test_mending_drops_drafts():
    rig = Rig(10, 5)
    rig.step()
    rig.scheduler.restore(rig.sequences)
    assert [len(span.token_ids) for span in rig.step()] == [1]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_block_is_shared_by_those_who_go_on_alike(lookahead):
    """What the module keeps of a block's last token is made of the token behind it too."""
    start = list(range(1, 9))
    first, same, other = (
        make_sequences(fake_request([*start, token, 3], seed=1), None)[0] for token in (5, 5, 6)
    )
    names = first.hashes(2, 4, lookahead)
    assert same.hashes(2, 4, lookahead) == names
    shared = sum(a == b for a, b in zip(names, other.hashes(2, 4, lookahead), strict=True))
    assert shared == 2 - lookahead


# ------------------------------------------------------------------------------- what the module runs


@pytest.mark.parametrize(
    ("start", "stop", "output", "expected", "draft"),
    [
        (0, 4, 0, [1, 2, 3, 4], 0),  # a piece of a prompt
        (4, 9, 0, [5, 6, 7, 8], 1),  # all of it and nothing chosen: but the last
        (4, 9, 1, [5, 6, 7, 8, 50], 1),
        (9, 11, 2, [51], 1),  # the draft at 10 was wrong
        (9, 11, 3, [51, 52], 1),  # and right
        (9, 11, 6, [51, 52], 0),  # of seven tokens one may still come: nothing could follow a draft
    ],
)
def test_positions_whose_next_token_is_known(start, stop, output, expected, draft):
    (sequence,) = make_sequences(fake_request(np.arange(9), max_tokens=7), None)
    sequence.token_ids[9:] = np.arange(50, 57)
    sequence.progress = [Progress(50 + index, None) for index in range(output)]
    span = TokenSpan(sequence.token_ids[start:stop], start, np.arange(4, dtype=np.int32), 1)
    if output == 6:  # a step that ends where the tokens do
        span = TokenSpan(sequence.token_ids[12:14], 12, span.blocks, 1)
        expected = [54, 55]
    follow = followed_span(sequence, span)
    assert follow.token_ids.tolist() == expected
    assert (follow.start, follow.num_outputs) == (span.start, draft)


def test_nothing_follows_what_has_ended():
    (sequence,) = make_sequences(fake_request(np.arange(9), max_tokens=7), None)
    sequence.progress = [Progress(3, None, finish_reason="stop")]
    span = TokenSpan(sequence.token_ids[:9], 0, np.arange(4, dtype=np.int32), 1)
    follow = followed_span(sequence, span)
    # The prompt's blocks are of use to others.
    assert (len(follow.token_ids), follow.num_outputs) == (9, 0)
    logits = make_prompt_sequence(0, np.arange(9), np.empty((9, 3), np.float32))
    follow = followed_span(logits, span)
    assert (len(follow.token_ids), follow.num_outputs) == (8, 0)


def test_the_rate():
    assert DraftCounts().rate is None
    assert DraftCounts(drafted=8, accepted=2).rate == 0.25


# -------------------------------------------------------------------------------------- whole engines


@pytest.mark.parametrize("num_drafts", [1, 2, 8])
def test_an_engine_counts(num_drafts):
    engine = fake_engine(num_drafts=num_drafts, num_blocks=40)
    assert engine.stats()["acceptance_rate"] is None
    requests = [fake_request([1, 2, i], seed=i, max_tokens=20) for i in range(4)]
    tickets = [engine.add_request(request) for request in requests]
    while engine.has_unfinished:
        engine.step()
    stats = engine.stats()
    assert 20 < stats["drafted_tokens"] <= num_drafts * stats["generated_tokens"]
    assert stats["accepted_tokens"] == round(stats["acceptance_rate"] * stats["drafted_tokens"])
    assert 0.2 < stats["acceptance_rate"] < 1
    assert stats["accepted_tokens"] > (20, 30, 35)[(1, 2, 8).index(num_drafts)]
    for ticket, request in zip(tickets, requests, strict=True):
        (sequence,) = ticket._call.sequences
        expected, _ = expected_tokens(request.token_ids.tolist(), request.seed, request.params)
        assert sequence.output_token_ids == expected


@pytest.mark.parametrize("is_right", [False, True])
def test_what_a_router_says_of_a_draft_counts_if_it_is_right(is_right):
    engine = fake_engine(num_drafts=1)
    runner, run = engine._runner, engine._runner.run
    drafts: dict[int, int] = {}  # by position

    def run_and_remember(spans):
        drafts.clear()
        drafts.update({s.stop - 1: int(s.token_ids[-1]) for s in spans if s.num_outputs == 2})
        return run(spans)

    def flagged(spans):
        """Every draft's row, where the choice was the draft or where it was not."""
        found = [(index, span.stop - 1) for index, span in enumerate(spans) if drafts]
        return [f for f in found if (ticket_sequence.token_ids[f[1]] == drafts[f[1]]) == is_right]

    runner.run, runner.flagged = run_and_remember, flagged
    request = fake_request([1, 2, 3], seed=3, max_tokens=20)
    ticket = engine.add_request(request)
    (ticket_sequence,) = ticket._call.sequences
    while engine.has_unfinished:
        engine.step()
    assert ticket_sequence.finish_reason == ("error" if is_right else "length")
    expected, _ = expected_tokens([1, 2, 3], 3, request.params)
    output = ticket_sequence.output_token_ids
    assert output == expected[: len(output)]


def test_a_module_that_overflows_makes_no_drafts_any_more():
    engine = fake_engine(num_drafts=1)
    sampler, draft = engine._sampler, engine._runner.draft
    calls = []

    def draft_and_tell(rows, spans):
        logits = draft(rows, spans)
        calls.extend(["draft"] if logits is not None else [])
        return logits

    def sample(rows, sequences, positions):
        if calls[3:] and calls[-1] == "draft":
            calls[-1] = "none"
            return [-1] * len(rows), [None] * len(rows)
        return sampler(rows, sequences, positions)

    engine._runner.draft, engine._sampler = draft_and_tell, sample
    request = fake_request([1, 2, 3], seed=3, max_tokens=20)
    ticket = engine.add_request(request)
    while engine.has_unfinished:
        engine.step()
    (sequence,) = ticket._call.sequences
    assert (sequence.output_token_ids, sequence.finish_reason) == expected_tokens(
        [1, 2, 3], 3, request.params
    )
    assert engine.stats()["drafted_tokens"] == 3


class StepCounter:
    """In the place of a model runner's ``run``."""

    def __init__(self, llm: ek.LLM) -> None:
        self.count = 0
        self._run = llm._engine._runner.run
        llm._engine._runner.run = self

    def __call__(self, spans):
        self.count += 1
        return self._run(spans)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guessable")
    write_mtp_checkpoint(folder, noise=0.001, vocab_size=tokenizer_files.VOCAB_SIZE, eos_token_id=2)
    tokenizer_files.write_tokenizer(folder)
    return folder


PARAMS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.95},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    "logprobs": {"temperature": 0.8, "logprobs": 4},
    "stop strings": {"temperature": 1.0, "stop": ["e", " a"]},
    "three answers": {"temperature": 1.0, "n": 3},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
}


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_are_those_without_drafts(folder, rng, kind, dtype):
    params = ek.SamplingParams(**{"max_tokens": 33, "seed": 7, "ignore_eos": True, **PARAMS[kind]})
    prompts = random_ids(rng, 1, 31, 32, 33, 64, vocab_size=600)
    outputs, steps = [], []
    for config in (None, MTP, {**MTP, "num_speculative_tokens": 3}):
        with ek.LLM.from_pretrained(
            folder, device="cpu", dtype=dtype, speculative_config=config
        ) as llm:
            counter = StepCounter(llm)
            outputs.append(llm.generate(prompt_token_ids=prompts, params=params))
            steps.append(counter.count)
            llm._engine.check()
            stats = llm.stats()
            assert stats["num_free_blocks"] == stats["num_blocks"]
    assert outputs[0] == outputs[1] == outputs[2]
    if kind in ("greedy", "sampled", "logprobs", "penalties"):
        assert stats["acceptance_rate"] > 0.5
        assert steps[1] < 0.75 * steps[0]
        assert steps[2] < 0.85 * steps[1]
    if kind in ("one token", "two tokens"):
        assert stats["drafted_tokens"] == 0


def test_logits_are_those_without_drafts(folder, rng):
    prompts = random_ids(rng, 1, 40, 64, vocab_size=600)
    logits = []
    for config in (None, MTP):
        with ek.LLM.from_pretrained(folder, device="cpu", speculative_config=config) as llm:
            llm.generate(prompt_token_ids=prompts, params=ek.SamplingParams(max_tokens=3))
            before = llm.stats()["prompt_tokens"]
            logits.append(llm.forward(prompts))
            assert llm.stats()["prompt_tokens"] == before + 105
    assert all(np.array_equal(a, b) for a, b in zip(*logits, strict=True))


def test_a_stream_yields_one_token_at_a_time(folder):
    params = ek.SamplingParams(max_tokens=20, ignore_eos=True)
    with ek.LLM.from_pretrained(folder, device="cpu", speculative_config=MTP) as llm:
        chunks = list(llm.generate(prompt_token_ids=[[5, 6]], params=params, stream=True))
        assert llm.stats()["accepted_tokens"] > 5
    assert [len(chunk.token_ids) for chunk in chunks] == [1] * 20
    tokens = list(itertools.chain(*(chunk.token_ids for chunk in chunks)))
    assert chunks[-1].output.outputs[0].token_ids == tokens


def test_logits_that_are_not_finite_end_a_request_at_the_same_token(folder, rng):
    """Of the row behind a wrong draft nobody hears."""
    prompts = random_ids(rng, 20, 40, vocab_size=600)
    params = ek.SamplingParams(max_tokens=12, ignore_eos=True, temperature=1.0, seed=3)
    results = []
    for config in (None, MTP):
        with ek.LLM.from_pretrained(folder, device="cpu", speculative_config=config) as llm:
            expected = llm.generate(prompt_token_ids=prompts, params=params)
            bad = expected[0].outputs[0].token_ids[6]
            spoil_logits_after(llm, bad)
            with pytest.raises(ek.NumericError) as caught:
                llm.generate(prompt_token_ids=prompts, params=params)
            results.append([output.outputs for output in caught.value.outputs])
    assert results[0] == results[1]


def spoil_logits_after(llm: ek.LLM, token: int) -> None:
    """From now on nothing is known of what follows a token."""
    runner = llm._engine._runner
    run, logits = runner.run, runner.logits
    rows: list[int] = []

    def run_and_remember(spans):
        rows[:] = [
            int(token_id)
            for span in spans
            for token_id in span.token_ids[len(span.token_ids) - span.num_outputs :]
        ]
        return run(spans)

    def spoiled(hidden_states):
        result = logits(hidden_states)
        if len(rows) == len(hidden_states):
            result.numpy()[[row for row, each in enumerate(rows) if each == token]] = np.nan
        return result

    runner.run, runner.logits = run_and_remember, spoiled
