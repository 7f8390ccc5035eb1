"""The block manager: every block is held, cached or free; what is found was published and not lost."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ernie_kernels as ek
from ernie_kernels.runner.block_manager import BlockManager

# tests/long/run.sh raises them.
STATE_MACHINE_EXAMPLES = int(os.environ.get("ERNIE_TEST_STATE_MACHINE_EXAMPLES", "60"))
OPERATIONS = int(os.environ.get("ERNIE_TEST_OPERATIONS", "200000"))


def name(number: int) -> bytes:
    return b"contents %d" % number


def test_allocates_and_releases():
    manager = BlockManager(4, 16)
    assert [manager.blocks_for(n) for n in (0, 1, 16, 17, 64)] == [0, 1, 1, 2, 4]
    assert manager.allocate(3) == [0, 1, 2]
    with pytest.raises(ek.CapacityError, match="2 blocks of 16 tokens needed, 1 of 4 free"):
        manager.allocate(2)
    assert manager.num_free == 1
    with pytest.raises(ek.CapacityError, match="it can never fit"):
        manager.allocate(5)
    with pytest.raises(ek.InternalError, match="cannot allocate -1"):
        manager.allocate(-1)
    manager.release([0, 1, 2])
    assert (manager.num_free, manager.num_cached) == (4, 0)
    manager.check()


@pytest.mark.parametrize("blocks", [[0, 0], [3], [-1], [4], [1, 3]], ids=str)
def test_refuses_to_release_what_is_not_held(blocks):
    manager = BlockManager(4, 16)
    held = manager.allocate(3)
    with pytest.raises(ek.InternalError):
        manager.release(blocks)
    assert manager.num_free == 1
    manager.release(held)
    with pytest.raises(ek.InternalError):
        manager.release(held)
    assert manager.num_free == 4


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0), (-1, 16)])
def test_refuses_an_empty_cache(num_blocks, block_size):
    with pytest.raises(ek.ArgumentError, match="at least one block"):
        BlockManager(num_blocks, block_size)


# ----------------------------------------------------------------------------------------- sharing


def test_published_blocks_are_found_and_shared():
    manager = BlockManager(4, 16)
    first = manager.allocate(2)
    assert manager.find_prefix([name(0), name(1)]) == []
    manager.publish(first[0], name(0))
    assert manager.find_prefix([name(0), name(1)]) == first[:1]
    manager.publish(first[1], name(1))
    assert manager.find_prefix([name(0), name(1), name(2)]) == first
    assert manager.find_prefix([name(1)]) == first[1:]
    assert manager.find_prefix([name(2), name(0)]) == []
    assert manager.num_cached_of(first) == 0
    manager.acquire(first)
    manager.release(first)
    assert manager.num_free == 2  # held once more
    manager.release(first)
    assert (manager.num_free, manager.num_cached) == (4, 2)
    assert manager.num_cached_of(first) == 2
    manager.acquire(first[:1])
    assert (manager.num_free, manager.num_cached) == (3, 1)
    manager.check([first[:1]])


def test_the_first_of_equal_contents_counts():
    manager = BlockManager(3, 16)
    a, b = manager.allocate(2)
    manager.publish(a, name(0))
    manager.publish(b, name(0))
    assert manager.find_prefix([name(0)]) == [a]
    manager.release([b])
    assert manager.num_cached == 0
    manager.check([[a]])


def test_refuses_to_publish_or_share_what_is_not_known():
    manager = BlockManager(3, 16)
    (held,) = manager.allocate(1)
    with pytest.raises(ek.InternalError, match="nothing to share"):
        manager.acquire([held])
    with pytest.raises(ek.InternalError, match="not held, or published"):
        manager.publish(2, name(0))
    manager.publish(held, name(0))
    with pytest.raises(ek.InternalError, match="not held, or published"):
        manager.publish(held, name(1))
    manager.check([[held]])


def test_cached_blocks_are_taken_last_and_the_longest_unused_first():
    manager = BlockManager(5, 16)
    old, new = manager.allocate(2), manager.allocate(2)
    for number, block in enumerate([*old, *new]):
        manager.publish(block, name(number))
    manager.release(old)
    manager.release(new)
    assert manager.allocate(1) == [4]  # which nobody knows
    assert manager.num_cached == 4
    # Of a sequence the end first: the beginning is of use to more.
    assert manager.allocate(1) == old[1:]
    assert manager.find_prefix([name(0), name(1)]) == old[:1]
    manager.acquire(old[:1])  # used again
    assert manager.allocate(2) == new[::-1]
    assert manager.find_prefix([name(2)]) == []
    manager.check()


# ---------------------------------------------------------------------------------------- integrity


def broken(change) -> BlockManager:
    """A manager with block 0 held, 1 cached, 2 free; then changed, as by an interrupt."""
    manager = BlockManager(3, 16)
    for block in manager.allocate(2):
        manager.publish(block, name(block))
    manager.release([1])
    manager.check([[0]])
    change(manager)
    return manager


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m._free.append(2),
        lambda m: m._free.append(0),
        lambda m: m._free.clear(),
        lambda m: m._cached.clear(),
        lambda m: m._cached.update({0: None}),
        lambda m: m._holders.__setitem__(0, 0),
        lambda m: m._holders.__setitem__(0, 2),
        lambda m: m._holders.__setitem__(1, -1),
        lambda m: m._holders.__setitem__(2, 1),
        lambda m: m._block_of.pop(name(0)),
        lambda m: m._block_of.update({name(5): 2}),
        lambda m: m._block_of.update({name(0): 1}),
        lambda m: m._hashes.__setitem__(2, name(7)),
    ],
)
def test_check_sees_what_is_broken_and_rebuild_mends_it(change):
    manager = broken(change)
    with pytest.raises(ek.InternalError):
        manager.check([[0]])
    manager.rebuild([[0]])
    manager.check([[0]])
    assert manager.num_free == 2
    assert manager.find_prefix([name(0)]) == [0]


def test_check_sees_a_hash_without_its_block():
    manager = broken(lambda m: m._hashes.__setitem__(1, None))
    with pytest.raises(ek.InternalError):
        manager.check()
    manager.rebuild([[0, 1], [0]])
    manager.check([[0, 1], [0]])
    assert manager.find_prefix([name(1)]) == []


def test_rebuild_keeps_the_order_in_which_blocks_are_forgotten():
    manager = BlockManager(4, 16)
    for block in manager.allocate(4):
        manager.publish(block, name(block))
    for block in (2, 0, 3, 1):
        manager.release([block])
    manager.rebuild([[0]])
    assert manager.allocate(3) == [2, 3, 1]


# ------------------------------------------------------------------------------- any order of calls


class Tables:
    """Sequences that hold blocks, and what each block contains: the manager beside a model of it."""

    def __init__(self, num_blocks: int) -> None:
        self.manager = BlockManager(num_blocks, 16)
        self.tables: list[list[int]] = []
        self.contents: list[int | None] = [None] * num_blocks  # None: overwritten
        self.num_published = 0

    def allocate(self, count: int) -> None:
        free = self.manager.num_free
        try:
            blocks = self.manager.allocate(count)
        except ek.CapacityError:
            assert count > free
            return
        assert len(blocks) == count <= free
        held = {block for table in self.tables for block in table}
        assert held.isdisjoint(blocks)
        for block in blocks:
            self.contents[block] = None
        self.tables.append(blocks)

    def publish(self, table: int, at: int) -> None:
        if self.tables and self.tables[table % len(self.tables)]:
            blocks = self.tables[table % len(self.tables)]
            block = blocks[at % len(blocks)]
            if self.contents[block] is None:
                self.contents[block] = self.num_published
                self.manager.publish(block, name(self.num_published))
                self.num_published += 1

    def share(self, number: int, count: int) -> None:
        """Hold what contents from ``number`` on are found, as a sequence that begins so would."""
        blocks = self.manager.find_prefix(name(number + i) for i in range(count))
        assert [self.contents[block] for block in blocks] == [*range(number, number + len(blocks))]
        if len(blocks) < count:
            missing = number + len(blocks)
            assert missing >= self.num_published or missing not in self.contents
        free = self.manager.num_free - self.manager.num_cached_of(blocks)
        self.manager.acquire(blocks)
        assert self.manager.num_free == free
        self.tables.append(blocks)

    def release(self, table: int) -> None:
        if self.tables:
            self.manager.release(self.tables.pop(table % len(self.tables)))

    def rebuild(self, keep: int) -> None:
        self.tables = self.tables[:keep]
        self.manager.rebuild(self.tables)

    def check(self) -> None:
        self.manager.check(self.tables)
        held = {block for table in self.tables for block in table}
        assert self.manager.num_free == self.manager.num_blocks - len(held)


class Machine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(1, 24))
    def start(self, num_blocks):
        self.tables = Tables(num_blocks)

    @rule(count=st.integers(0, 8))
    def allocate(self, count):
        self.tables.allocate(count)

    @rule(table=st.integers(0, 20), at=st.integers(0, 7))
    def publish(self, table, at):
        self.tables.publish(table, at)

    @rule(number=st.integers(0, 30), count=st.integers(1, 3))
    def share(self, number, count):
        self.tables.share(number, count)

    @rule(table=st.integers(0, 20))
    def release(self, table):
        self.tables.release(table)

    @rule(keep=st.integers(0, 20))
    def rebuild(self, keep):
        self.tables.rebuild(keep)

    @invariant()
    def everything_agrees(self):
        if hasattr(self, "tables"):
            self.tables.check()


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=STATE_MACHINE_EXAMPLES, stateful_step_count=40, deadline=None
)


def test_random_operations():
    """A long life of one cache, where the state machine has many short ones."""
    draw = random.Random(20250701)
    tables = Tables(37)
    for number in range(OPERATIONS):
        kind = draw.random()
        if kind < 0.3:
            tables.allocate(draw.randrange(9))
        elif kind < 0.55:
            tables.publish(draw.randrange(64), draw.randrange(8))
        elif kind < 0.7:
            begin = max(0, tables.num_published - draw.randrange(60))
            tables.share(begin, draw.randrange(1, 4))
        elif kind < 0.9995:
            tables.release(draw.randrange(64))
        else:
            tables.rebuild(draw.randrange(10))
        if number % 50 == 0:
            tables.check()
    for _ in range(len(tables.tables)):
        tables.release(0)
    tables.check()
    assert tables.manager.num_free == 37
    print(f"\n{OPERATIONS} operations, {tables.num_published} blocks published")
