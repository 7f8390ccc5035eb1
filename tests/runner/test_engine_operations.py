"""Random lives of an engine: requests come, run, are aborted, fail; nothing is lost, late or mixed up."""

from __future__ import annotations

import os
import random

import pytest
from fake_model import expected_tokens, fake_engine, fake_request

from ernie_kernels.runner.sampler import seed_of_sample

# tests/long/run.sh raises it.
OPERATIONS = int(os.environ.get("ERNIE_TEST_OPERATIONS", "200000")) // 20


class Life:
    """An engine, the tickets of its callers, and what each of them must get in the end."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.num_blocks = draw.choice((4, 6, 8, 12, 30))
        self.block_size = draw.choice((1, 2, 4))
        self.engine = fake_engine(
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_num_seqs=draw.choice((1, 2, 4, 9)),
            budget=draw.choice((1, 5, 16, 64)),
            num_drafts=draw.choice((0, 1, 3)),
        )
        self.callers: list[tuple] = []  # ticket, request, whether something was aborted
        self.starts = [self.tokens(draw.randrange(1, 12)) for _ in range(3)]
        self.operations = 0

    def tokens(self, count: int) -> list[int]:
        return [self.draw.randrange(1, 40) for _ in range(count)]

    def act(self) -> None:
        kind = self.draw.random()
        if kind < 0.25 and len(self.callers) < 30:
            self.add()
        elif kind < 0.29 and self.callers:
            self.abort(self.draw.randrange(len(self.callers)))
        elif kind < 0.31 and self.callers:
            # Abandoned: closed, or just forgotten.
            ticket, *_ = self.callers.pop(self.draw.randrange(len(self.callers)))
            if self.draw.random() < 0.5:
                ticket.close()
        else:
            self.step()
        self.operations += 1

    def add(self) -> None:
        room = self.num_blocks * self.block_size
        prompt = (self.draw.choice(self.starts) + self.tokens(self.draw.randrange(6)))[: room - 1]
        request = fake_request(
            prompt,
            seed=self.draw.randrange(1 << 16),
            max_tokens=self.draw.randint(1, min(12, room - len(prompt))),
            n=self.draw.choice((1, 1, 1, 2, 5)),
            ignore_eos=self.draw.random() < 0.5,
            salt=self.draw.choice((b"", b"", b"other")),
        )
        self.callers.append((self.engine.add_request(request), request, []))

    def abort(self, caller: int) -> None:
        ticket, request, aborted = self.callers[caller]
        index = self.draw.choice((None, self.draw.randrange(request.params.n)))
        self.engine.abort(ticket.request_ids[0], index)
        aborted.append(index)

    def step(self) -> None:
        runner = self.engine._runner
        before = runner.num_spans
        had_work = self.engine.has_unfinished
        self.engine.step()
        self.engine.check()
        self.operations += runner.num_spans - before
        if had_work and self.engine.has_unfinished:
            assert runner.num_spans > before
        for caller in list(self.callers):
            ticket = caller[0]
            ticket.take()
            if ticket.is_done:
                self.callers.remove(caller)
                self.compare(*caller)

    def compare(self, ticket, request, aborted) -> None:
        for sequence in ticket._call.sequences:
            seed = seed_of_sample(request.seed, sequence.index)
            tokens, end = expected_tokens(request.token_ids.tolist(), seed, request.params)
            if sequence.finish_reason == "abort":
                assert None in aborted or sequence.index in aborted
                assert sequence.output_token_ids == tokens[: sequence.num_output_tokens]
            else:
                assert (sequence.output_token_ids, sequence.finish_reason) == (tokens, end)

    def end(self) -> None:
        """Everybody's requests end, in so many steps at most, and the cache is free again."""
        # One sequence alone needs a step for each token of its prompt (the budget may be 1) and one
        # for each token after that; the oldest always goes forward.
        left = [s for ticket, *_ in self.callers for s in ticket._call.sequences]
        limit = sum(len(s.token_ids) + 2 for s in left) + 2
        steps = 0
        while self.callers:
            self.step()
            steps += 1
            assert steps <= limit
        assert self.engine.stats()["num_free_blocks"] == self.num_blocks
        assert self.engine.stats()["running"] == self.engine.stats()["waiting"] == 0


def test_random_operations():
    operations, preemptions, hits, drafted, accepted, life = 0, 0, 0, 0, 0, 0
    while operations < OPERATIONS:
        life_of = Life(random.Random(life))
        for _ in range(150):
            life_of.act()
        life_of.end()
        operations += life_of.operations
        stats = life_of.engine.stats()
        preemptions += stats["preemptions"]
        hits += stats["prefix_hit_tokens"]
        drafted += stats["drafted_tokens"]
        accepted += stats["accepted_tokens"]
        life += 1
    # Otherwise this has shown little.
    assert preemptions > operations / 200
    assert hits > operations / 10
    assert operations / 50 < accepted < drafted * 0.7
    print(
        f"\n{operations} operations, {life} engines, {preemptions} preemptions, {hits} tokens found, "
        f"{accepted} of {drafted} drafts accepted"
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_life_is_the_same_each_time(seed):
    stats = []
    for _ in "ab":
        life = Life(random.Random(seed))
        for _ in range(100):
            life.act()
        life.end()
        stats.append(life.engine.stats())
    assert stats[0] == stats[1]
