"""Who runs in a step: order, budget, blocks, preemption, shared beginnings."""

from __future__ import annotations

import numpy as np
import pytest
from fake_model import expected_tokens, fake_engine, fake_request

import ernie_kernels as ek
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.requests import make_prompt_sequence, make_sequences
from ernie_kernels.runner.scheduler import Scheduler
from ernie_kernels.runner.sequence import Progress


class Rig:
    """A scheduler whose steps are carried out by saying so."""

    def __init__(self, *, num_blocks=100, block_size=4, max_num_seqs=8, budget=32) -> None:
        self.manager = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.manager, max_num_seqs=max_num_seqs, max_tokens_per_step=budget
        )

    def add(self, length: int, *, first: int = 0, max_tokens: int = 20, **changes) -> list:
        """The sequences of a request for a prompt like no other, unless ``first`` is the same."""
        prompt = np.arange(length) + 1000 * (first or self.scheduler.num_waiting + 7)
        sequences = make_sequences(fake_request(prompt, max_tokens=max_tokens, **changes), None)
        for sequence in sequences:
            sequence.siblings = sequences
            self.scheduler.prepare(sequence)
            self.scheduler.add(sequence)
        return sequences

    def step(self) -> dict:
        """What was scheduled: (start, number of tokens) by sequence."""
        scheduled = self.scheduler.schedule()
        self.scheduler.check()
        for sequence, span in scheduled:
            assert span.num_outputs == (span.stop == sequence.num_tokens)
            assert np.array_equal(span.token_ids, sequence.token_ids[span.start : span.stop])
            if span.num_outputs and sequence.num_tokens < len(sequence.token_ids):
                sequence.token_ids[sequence.num_tokens] = 9
                sequence.progress.append(Progress(9, None))
            self.scheduler.advance(sequence, span.stop)
        self.scheduler.check()
        return {sequence: (span.start, len(span.token_ids)) for sequence, span in scheduled}


def test_tokens_first_then_prompts_in_chunks():
    rig = Rig(budget=32)
    (a,) = rig.add(10)
    (b,) = rig.add(50)
    (c,) = rig.add(10)
    assert rig.step() == {a: (0, 10), b: (0, 22)}
    assert rig.step() == {a: (10, 1), b: (22, 28), c: (0, 3)}
    assert list(rig.step().items()) == [(a, (11, 1)), (b, (50, 1)), (c, (3, 7))]


def test_no_more_sequences_than_may_run():
    rig = Rig(max_num_seqs=2)
    a, b, c = (rig.add(3)[0] for _ in range(3))
    assert list(rig.step()) == [a, b]
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (2, 1)
    rig.scheduler.remove(a)
    assert list(rig.step()) == [b, c]


def test_blocks_are_taken_as_tokens_are_scheduled():
    rig = Rig(budget=8)
    (a,) = rig.add(20)
    for blocks in (2, 4, 5, 6, 6, 6, 6, 7):
        rig.step()
        assert a.num_blocks == blocks
    assert rig.manager.num_free == 93


def test_a_sequence_is_admitted_when_all_its_tokens_find_room():
    rig = Rig(num_blocks=10, budget=8)
    (a,) = rig.add(20)  # five blocks, two of them now
    (b,) = rig.add(16)  # four, and one must stay free
    assert rig.step() == {a: (0, 8)}
    rig.step()
    assert rig.step() == {a: (16, 4), b: (0, 4)}


@pytest.mark.parametrize("length", [16, 17])
def test_one_block_stays_free_when_another_is_let_in(length):
    rig = Rig(num_blocks=10)
    (a,) = rig.add(20)
    (b,) = rig.add(length)
    assert (b in rig.step()) == (length == 16)
    assert a.num_computed == 20


def test_alone_a_sequence_may_have_the_whole_cache():
    rig = Rig(num_blocks=5)
    (a,) = rig.add(19, max_tokens=1)
    assert rig.step() == {a: (0, 19)}


def test_what_can_never_fit_is_refused():
    rig = Rig(num_blocks=5)
    with pytest.raises(ek.CapacityError, match="6 blocks of 4 tokens needed, there are 5"):
        rig.add(20, max_tokens=1)
    assert rig.scheduler.num_waiting == 0


# -------------------------------------------------------------------------------------- preemption


def test_the_one_that_came_last_gives_its_blocks_to_the_others():
    rig = Rig(num_blocks=7)
    a, b, c = (rig.add(4)[0] for _ in range(3))
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    # They have two blocks each; the first to want another gets the last one, the next one c's.
    assert [s.num_blocks for s in (a, b, c)] == [3, 3, 0]
    assert c.num_computed == 0
    assert c.num_output_tokens == 5
    (d,) = rig.add(2)
    before = c.output_token_ids
    while rig.scheduler.num_preemptions == 1:
        scheduled = rig.step()
        assert a in scheduled
        assert d not in scheduled
    assert c.output_token_ids == before
    assert rig.scheduler.num_waiting == 3
    rig.scheduler.remove(a)
    assert next(iter(rig.step())) is b
    assert d.num_computed == 0 or c.num_computed > 0


def test_a_preempted_sequence_finds_its_blocks_again():
    rig = Rig(num_blocks=7)
    a, b = (rig.add(8, max_tokens=18)[0] for _ in range(2))
    while rig.scheduler.num_preemptions == 0:
        rig.step()
    tokens = b.num_tokens
    assert rig.scheduler.num_prefix_hit_tokens == 0
    rig.scheduler.remove(a)
    scheduled = rig.step()
    assert scheduled[b] == (tokens - 1, 1)  # those with generated tokens, too
    assert rig.scheduler.num_prefix_hit_tokens == tokens - 1 == 12


def test_a_token_scheduled_before_its_sequence_is_preempted_is_not_run():
    """A prompt that came first needs the blocks of one that is already generating."""
    rig = Rig(num_blocks=9, budget=8)
    a, b = rig.add(7)[0], rig.add(24, max_tokens=9)[0]
    rig.step()
    (c,) = rig.add(1)
    rig.scheduler._running.append(c)  # let in although there is no room for all
    del rig.scheduler._waiting[c]
    rig.scheduler._append_blocks(c, rig.manager.allocate(1))
    while c.num_blocks:
        scheduled = rig.step()
    assert list(scheduled) == [a, b]


# ---------------------------------------------------------------------------------- shared beginnings


def test_a_prompt_that_was_computed_is_found():
    rig = Rig()
    (a,) = rig.add(20, first=1)
    rig.step()
    (b,) = rig.add(20, first=1)
    # Four of five full blocks: the last token is computed in any case, and so is its block.
    assert rig.step()[b] == (16, 4)
    assert rig.scheduler.num_prefix_hit_tokens == 16
    assert b.blocks[:4].tolist() == a.blocks[:4].tolist()
    assert not set(b.blocks[4:].tolist()) & set(a.blocks.tolist())
    (c,) = rig.add(21, first=1)
    assert rig.step()[c] == (20, 1)
    rig.scheduler.remove(a)
    rig.scheduler.remove(b)
    rig.scheduler.remove(c)
    rig.scheduler.check()
    assert rig.manager.num_free == 100
    (d,) = rig.add(9, first=1)
    assert rig.step()[d] == (8, 1)


def test_nothing_is_shared_with_another_salt():
    rig = Rig()
    rig.add(20, first=1)
    rig.step()
    (b,) = rig.add(20, first=1, salt=b"adapter")
    assert rig.step()[b] == (0, 20)
    (c,) = rig.add(20, first=1, salt=b"adapter")
    assert rig.step()[c] == (16, 4)


def test_equal_tokens_after_different_ones_are_not_shared():
    rig = Rig()
    sequences = []
    for start in (1, 2):
        prompt = [start, *range(10, 29)]
        (sequence,) = make_sequences(fake_request(prompt), None)
        rig.scheduler.prepare(sequence)
        rig.scheduler.add(sequence)
        sequences.append(sequence)
        assert rig.step()[sequence] == (0, 20)
    assert rig.scheduler.num_prefix_hit_tokens == 0


def test_what_is_found_counts_as_room():
    rig = Rig(num_blocks=10, budget=64)
    (a,) = rig.add(32, first=1, max_tokens=8)
    rig.step()
    (b,) = rig.add(33, first=1, max_tokens=1)  # eight blocks of a's, and one more
    assert rig.step() == {a: (32, 1)}  # which took one of the two that were left; one must stay
    rig.scheduler.remove(a)
    assert rig.step() == {b: (32, 1)}


def test_found_blocks_that_nobody_holds_are_not_counted_twice():
    """Blocks that can be had, and are about to be used, cannot be had for the rest of the tokens."""
    rig = Rig(num_blocks=9)
    (a,) = rig.add(16, first=1)
    rig.step()
    rig.scheduler.remove(a)
    (b,) = rig.add(12, first=2)  # three of the nine, four are cached
    rig.step()
    assert rig.manager.num_free == 6
    (c,) = rig.add(24, first=1, max_tokens=9)  # four cached ones and two more: none would be left
    assert c not in rig.step()
    rig.scheduler.remove(b)
    assert rig.step() == {c: (16, 8)}


def test_the_logits_of_a_whole_prompt_are_computed_from_its_first_token():
    rig = Rig()
    rig.add(20, first=1)
    rig.step()
    prompt = np.arange(20) + 1000
    sequence = make_prompt_sequence(0, prompt, np.empty((20, 3), np.float32))
    rig.scheduler.prepare(sequence)
    rig.scheduler.add(sequence)
    scheduled = dict(rig.scheduler.schedule())
    assert (scheduled[sequence].start, scheduled[sequence].num_outputs) == (0, 20)


def test_several_answers_read_their_prompt_once():
    rig = Rig(budget=8)
    answers = rig.add(22, n=4)
    (other,) = rig.add(3)
    assert rig.step() == {answers[0]: (0, 8)}
    assert rig.step() == {answers[0]: (8, 8)}
    # There would be room for more, but no sense in reading the prompt twice.
    assert rig.step() == {answers[0]: (16, 6)}
    scheduled = rig.step()
    assert scheduled[answers[1]] == scheduled[answers[2]] == (20, 2)
    rig.step()
    assert other.num_computed > 0
    assert len({tuple(s.blocks[:5].tolist()) for s in answers}) == 1


def test_answers_go_on_when_the_first_one_is_aborted_before_it_has_read():
    rig = Rig(budget=8)
    answers = rig.add(22, n=3)
    rig.step()
    rig.scheduler.remove(answers[0])
    answers[0].progress.append(Progress(None, None, finish_reason="abort"))
    assert rig.step() == {answers[1]: (8, 8)}  # from where the first one had come to
    assert rig.step() == {answers[1]: (16, 6)}
    assert rig.step()[answers[2]] == (20, 2)


@pytest.mark.parametrize("n", [2, 7])
def test_an_engine_computes_the_prompt_of_several_answers_once(n):
    engine = fake_engine(num_blocks=100, max_num_seqs=8)
    request = fake_request(range(1, 42), n=n, max_tokens=3)
    ticket = engine.add_request(request)
    while not ticket.is_done:
        engine.step()
        ticket.take()
    # Of each further answer the one token behind the last full block.
    assert engine.stats()["prompt_tokens"] == 41 + (n - 1)


# ---------------------------------------------------------------------------------- after interrupts


def test_restore_keeps_what_is_computed_and_nothing_else():
    rig = Rig(num_blocks=30, budget=10)
    a, b, c, d = (rig.add(12)[0] for _ in range(4))
    rig.step()
    rig.step()
    rig.scheduler.schedule()  # and then never run
    assert [s.num_blocks for s in (a, b, c, d)] == [4, 3, 2, 0]
    rig.scheduler._running.pop(0)
    rig.scheduler._waiting[a] = None
    rig.manager.allocate(3)  # for nobody
    rig.scheduler.restore([c, a, d, b])
    rig.scheduler.check()
    assert [s.num_computed for s in (a, b, c, d)] == [12, 8, 0, 0]
    assert [s.num_blocks for s in (a, b, c, d)] == [3, 2, 1, 0]
    assert rig.manager.num_free == 24
    rig.scheduler.restore([b])
    assert rig.manager.num_free == 28


def test_restore_sends_back_who_would_run_before_one_that_came_earlier():
    rig = Rig(budget=8)
    a, b = rig.add(20)[0], rig.add(6)[0]
    rig.step()
    a.num_blocks, a.num_computed = 0, 8  # as in the middle of a preemption
    b.num_blocks, b.num_computed = 1, 4
    rig.scheduler.restore([a, b])
    rig.scheduler.check()
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (0, 2)
    assert rig.step() == {a: (8, 8)}


def test_nobody_waits_for_one_that_ended_when_it_was_interrupted():
    """Its end was said, and it was not taken out: it will never read the rest of the prompt."""
    rig = Rig(budget=8)
    a, b = rig.add(22, n=2)
    rig.step()
    a.progress.append(Progress(None, None, finish_reason="abort"))
    rig.scheduler.restore([b])
    assert a.num_blocks > 0
    assert rig.step() == {b: (8, 8)}


@pytest.mark.parametrize(
    "change",
    [
        lambda rig, a, b: rig.scheduler._running.reverse(),
        lambda rig, a, b: rig.scheduler._running.clear(),
        lambda rig, a, b: setattr(a, "num_computed", 14),
        lambda rig, a, b: setattr(a, "num_computed", -1),
        lambda rig, a, b: setattr(b, "num_blocks", 1),
        lambda rig, a, b: b.block_table.__setitem__(0, a.block_table[0]),
        lambda rig, a, b: a.progress.append(Progress(None, None, finish_reason="abort")),
        lambda rig, a, b: setattr(rig.scheduler, "_max_num_seqs", 1),
    ],
)
def test_check_sees_what_is_wrong(change):
    rig = Rig()
    a, b = rig.add(9)[0], rig.add(9)[0]
    rig.step()
    change(rig, a, b)
    with pytest.raises(ek.InternalError):
        rig.scheduler.check()


# -------------------------------------------------------------------------------------- starvation


def test_nobody_starves_while_others_keep_coming():
    """A long request in a small cache ends, although shorter ones arrive at every step."""
    engine = fake_engine(num_blocks=12, block_size=4, max_num_seqs=3, budget=8)
    early = [engine.add_request(fake_request([i] * 20, max_tokens=20, seed=i)) for i in (1, 2)]
    late = []
    steps = 0
    while not all(ticket.is_done for ticket in early):
        late.append(engine.add_request(fake_request([steps % 40 + 1] * 5, max_tokens=3)))
        engine.step()
        for ticket in early:
            ticket.take()
        steps += 1
        assert steps <= 2 * (20 + 20 + 2)  # as if they had run one after the other
    for i, ticket in enumerate(early, 1):
        (sequence,) = ticket._call.sequences
        request = fake_request([i] * 20, max_tokens=20, seed=i)
        assert sequence.output_token_ids == expected_tokens([i] * 20, i, request.params)[0]
