"""Which cache blocks are free and who holds the others.

The owner of each block is the truth; the free list is derived from it. An interrupt may strike
between any two lines here: ``keep_only`` puts everything right again from the owners alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ernie_kernels.errors import ArgumentError, CapacityError, InternalError

_FREE = -1


class BlockManager:
    """A free list of ``num_blocks`` blocks of ``block_size`` tokens. Not thread-safe.

    Owners are integers >= 0, chosen by the caller; one owner may hold many blocks.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ArgumentError(
                f"block manager: expected at least one block of one token, got {num_blocks} "
                f"blocks of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._owners = [_FREE] * num_blocks
        # The last one is taken first: what was used most recently is warm in the CPU's cache.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int, owner: int) -> list[int]:
        """Take ``count`` blocks, all or none.

        Raises:
            CapacityError: fewer are free.
        """
        if count < 0 or owner < 0:
            raise InternalError(f"block manager: cannot allocate {count} blocks for {owner}")
        if count > len(self._free):
            raise CapacityError(
                f"KV cache: {count} blocks of {self.block_size} tokens needed, {len(self._free)} "
                f"of {self.num_blocks} free; {self._advice(count)}"
            )
        blocks = self._free[len(self._free) - count :][::-1]
        for block in blocks:
            self._owners[block] = owner
        del self._free[len(self._free) - count :]
        return blocks

    def _advice(self, count: int) -> str:
        if count > self.num_blocks:
            return "it can never fit: raise kv_cache_memory or ask for fewer tokens"
        return "finish or close what is running, or raise kv_cache_memory"

    def free(self, blocks: Sequence[int], owner: int) -> None:
        """Give blocks back.

        Raises:
            InternalError: a block occurs twice or is not held by ``owner``; nothing was freed.
        """
        if len(set(blocks)) != len(blocks):
            raise InternalError("block manager: a block is freed twice in one call")
        if owner < 0:  # -1 marks free blocks
            raise InternalError(f"block manager: {owner} is no owner")
        for block in blocks:
            if not 0 <= block < self.num_blocks or self._owners[block] != owner:
                raise InternalError(f"block manager: block {block} is not held by {owner}")
        for block in blocks:
            self._owners[block] = _FREE
        self._free.extend(reversed(blocks))

    def keep_only(self, owners: Collection[int]) -> None:
        """Take back every block whose owner is not in ``owners``, and rebuild the free list."""
        keep = set(owners)
        for block, owner in enumerate(self._owners):
            if owner not in keep:
                self._owners[block] = _FREE
        held = self._owners
        self._free = [b for b in range(self.num_blocks - 1, -1, -1) if held[b] == _FREE]

    def check(self) -> None:
        """Raises InternalError unless each block is either free, once, or held."""
        free = set(self._free)
        if len(free) != len(self._free):
            raise InternalError("block manager: a block is on the free list twice")
        unowned = {block for block, owner in enumerate(self._owners) if owner == _FREE}
        if free != unowned:
            raise InternalError(
                f"block manager: {len(free ^ unowned)} blocks are both free and held, or neither"
            )
