from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import ernie_kernels as ek
from ernie_kernels.runner.block_manager import BlockManager


def test_allocates_and_frees():
    manager = BlockManager(4, 16)
    assert [manager.blocks_for(n) for n in (0, 1, 16, 17, 64)] == [0, 1, 1, 2, 4]
    assert manager.allocate(3, owner=0) == [0, 1, 2]
    with pytest.raises(ek.CapacityError, match="2 blocks of 16 tokens needed, 1 of 4 free"):
        manager.allocate(2, owner=1)
    assert manager.num_free == 1
    with pytest.raises(ek.CapacityError, match="it can never fit"):
        manager.allocate(5, owner=1)
    manager.check()


@pytest.mark.parametrize("blocks", [[0, 0], [3], [-1], [4]], ids=str)
def test_refuses_to_free_what_is_not_held(blocks):
    manager = BlockManager(4, 16)
    held = manager.allocate(3, owner=7)
    assert sorted(held) == [0, 1, 2]
    with pytest.raises(ek.InternalError):
        manager.free(blocks, owner=7)
    with pytest.raises(ek.InternalError):
        manager.free(held, owner=8)
    assert manager.num_free == 1
    manager.free(held, owner=7)
    with pytest.raises(ek.InternalError, match="-1 is no owner"):
        manager.free(held, owner=-1)  # how free blocks are marked
    with pytest.raises(ek.InternalError):
        manager.free(held, owner=7)
    assert manager.num_free == 4


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0), (-1, 16)])
def test_refuses_an_empty_cache(num_blocks, block_size):
    with pytest.raises(ek.ArgumentError, match="at least one block"):
        BlockManager(num_blocks, block_size)


def test_check_sees_what_is_broken():
    manager = BlockManager(3, 16)
    manager._free.append(0)
    with pytest.raises(ek.InternalError, match="twice"):
        manager.check()
    manager = BlockManager(3, 16)
    manager._owners[1] = 5  # as after an interrupt in the middle of allocate
    with pytest.raises(ek.InternalError, match="both free and held"):
        manager.check()
    manager.keep_only([])
    manager.check()
    assert manager.num_free == 3


class Machine(RuleBasedStateMachine):
    """Any order of calls, against a dictionary of who holds what."""

    @initialize(num_blocks=st.integers(1, 24))
    def start(self, num_blocks):
        self.manager = BlockManager(num_blocks, 16)
        self.held: dict[int, list[list[int]]] = {}

    @rule(count=st.integers(0, 8), owner=st.integers(0, 3))
    def allocate(self, count, owner):
        free = self.manager.num_free
        try:
            blocks = self.manager.allocate(count, owner)
        except ek.CapacityError:
            assert count > free
            return
        assert len(blocks) == count <= free
        self.held.setdefault(owner, []).append(blocks)

    @rule(owner=st.integers(0, 3), data=st.data())
    def free(self, owner, data):
        if self.held.get(owner):
            at = data.draw(st.integers(0, len(self.held[owner]) - 1))
            self.manager.free(self.held[owner].pop(at), owner)

    @rule(owners=st.sets(st.integers(0, 3)))
    def keep_only(self, owners):
        self.manager.keep_only(owners)
        self.held = {owner: blocks for owner, blocks in self.held.items() if owner in owners}

    @invariant()
    def every_block_is_free_or_held_once(self):
        if hasattr(self, "manager"):
            self.manager.check()
            held = [b for lists in self.held.values() for blocks in lists for b in blocks]
            assert len(held) == len(set(held))
            assert len(held) + self.manager.num_free == self.manager.num_blocks


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
