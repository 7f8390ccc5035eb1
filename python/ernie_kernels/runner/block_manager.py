"""Who holds which cache blocks, and which of them can be had.

A block may be held by several sequences that begin alike. One that nobody holds any more keeps its
contents until the block is needed: whoever begins with the same tokens finds it by its hash.

An interrupt may strike between any two lines here: ``rebuild`` puts everything right again from the
block tables of the sequences and the hashes of the blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ernie_kernels.errors import ArgumentError, CapacityError, InternalError


class BlockManager:
    """Reference counts of ``num_blocks`` blocks of ``block_size`` tokens. Not thread-safe.

    Each block is either held (by one or more), or cached (by none, contents known by a hash), or
    free. A hash belongs to one block at most.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ArgumentError(
                f"block manager: expected at least one block of one token, got {num_blocks} "
                f"blocks of {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._holders = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # The last one is taken first: what was used most recently is warm in the CPU's cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that can be had, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds and whose contents may still be of use."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.block_size)

    # ----------------------------------------------------------------------------- take and give back

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks to write to, all or none; cached ones when no other is left.

        Raises:
            CapacityError: fewer can be had.
        """
        if count < 0:
            raise InternalError(f"block manager: cannot allocate {count} blocks")
        if count > self.num_free:
            raise CapacityError(
                f"KV cache: {count} blocks of {self.block_size} tokens needed, {self.num_free} "
                f"of {self.num_blocks} free; {self._advice(count)}"
            )
        return [self._take_one() for _ in range(count)]

    def _advice(self, count: int) -> str:
        if count > self.num_blocks:
            return "it can never fit: raise kv_cache_memory or ask for fewer tokens"
        return "finish or close what is running, or raise kv_cache_memory"

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            forgotten = self._hashes[block]
            # Before the block is anyone's: its contents are about to change.
            self._hashes[block] = None
            if forgotten is not None:
                del self._block_of[forgotten]
        self._holders[block] = 1
        return block

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of ``hashes`` whose contents are there."""
        blocks = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_cached_of(self, blocks: Iterable[int]) -> int:
        """How many of these blocks count as free until they are acquired."""
        return sum(self._holders[block] == 0 for block in blocks)

    def acquire(self, blocks: Sequence[int]) -> None:
        """Hold blocks that :meth:`find_prefix` has found, to read."""
        for block in blocks:
            if self._hashes[block] is None:
                raise InternalError(f"block manager: block {block} holds nothing to share")
        for block in blocks:
            self._cached.pop(block, None)
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back, in the order of their sequence.

        Raises:
            InternalError: a block occurs twice or is not held; nothing was released.
        """
        if len(set(blocks)) != len(blocks):
            raise InternalError("block manager: a block is released twice in one call")
        for block in blocks:
            if not 0 <= block < self.num_blocks or self._holders[block] == 0:
                raise InternalError(f"block manager: block {block} is not held")
        # The end of a sequence is of use only to those who share all before it: it is forgotten first.
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, digest: bytes) -> None:
        """Let others find a held block: all its tokens are computed, and nobody writes to it again.

        Where another block has the same contents already, this one stays unknown.
        """
        if self._holders[block] == 0 or self._hashes[block] is not None:
            raise InternalError(f"block manager: block {block} is not held, or published already")
        if digest not in self._block_of:
            self._hashes[block] = digest
            self._block_of[digest] = block

    # -------------------------------------------------------------------------------------- integrity

    def rebuild(self, tables: Iterable[Iterable[int]]) -> None:
        """Count anew: the blocks held are those in ``tables``, once for each table.

        Contents stay known; what is held by nobody can be had.
        """
        holders = self._count(tables)
        known = [digest is not None for digest in self._hashes]
        self._cached = OrderedDict.fromkeys(
            block
            for block in (*self._cached, *range(self.num_blocks))
            if known[block] and holders[block] == 0
        )
        self._holders = holders
        self._block_of = {
            digest: block for block, digest in enumerate(self._hashes) if digest is not None
        }
        self._free = [
            block
            for block in range(self.num_blocks - 1, -1, -1)
            if holders[block] == 0 and not known[block]
        ]

    def _count(self, tables: Iterable[Iterable[int]]) -> list[int]:
        holders = [0] * self.num_blocks
        for table in tables:
            for block in table:
                holders[block] += 1
        return holders

    def check(self, tables: Iterable[Iterable[int]] | None = None) -> None:
        """Raises InternalError unless each block is held, cached or free, and only one of them.

        With ``tables``, those who hold a block must be the tables that it is in.
        """
        free = set(self._free)
        if len(free) != len(self._free):
            raise InternalError("block manager: a block is on the free list twice")
        for block, (holders, digest) in enumerate(zip(self._holders, self._hashes, strict=True)):
            states = (holders > 0, block in self._cached, block in free)
            expected = (
                holders > 0,
                *(holders == 0 and w for w in (digest is not None, not digest)),
            )
            if holders < 0 or states != expected:
                raise InternalError(
                    f"block manager: block {block} is held, cached, free: {states}, expected "
                    f"{expected}"
                )
            if digest is not None and self._block_of.get(digest) != block:
                raise InternalError(f"block manager: block {block} cannot be found by its hash")
        if len(self._block_of) != sum(digest is not None for digest in self._hashes):
            raise InternalError("block manager: a hash leads to a block with other contents")
        if tables is not None and self._count(tables) != self._holders:
            raise InternalError("block manager: blocks are held by nobody, or not counted")
