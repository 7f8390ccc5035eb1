"""Bugs of the cache's blocks, shared prefixes, and who runs next."""

from __future__ import annotations

from bug import BLOCK_MANAGER, SCHEDULER, Bug

BUGS = [
    Bug(
        "cache: a block is free although others hold it",
        "python/ernie_kernels/runner/block_manager.py",
        "self._holders[block] -= 1",
        "self._holders[block] = 0",
        BLOCK_MANAGER,
    ),
    Bug(
        "cache: a block keeps its hash when it is taken",
        "python/ernie_kernels/runner/block_manager.py",
        "            self._hashes[block] = None\n            if forgotten",
        "            if forgotten",
        BLOCK_MANAGER,
    ),
    Bug(
        "cache: mended blocks have one holder",
        "python/ernie_kernels/runner/block_manager.py",
        "                holders[block] += 1",
        "                holders[block] = 1",
        BLOCK_MANAGER,
    ),
    Bug(
        "prefix: salt left out of the hash",
        "python/ernie_kernels/runner/sequence.py",
        "salt_hash(self.salt)",
        'salt_hash(b"")',
        SCHEDULER,
    ),
    Bug(
        "prefix: tokens before the block left out of the hash",
        "python/ernie_kernels/runner/prefix.py",
        "_digest(parent + token_ids.tobytes()",
        "_digest(parent[:0] + token_ids.tobytes()",
        SCHEDULER,
    ),
    Bug(
        "scheduler: no token left to compute",
        "python/ernie_kernels/runner/scheduler.py",
        "count = (sequence.num_tokens - 1) // self._block_size",
        "count = sequence.num_tokens // self._block_size",
        SCHEDULER,
    ),
    Bug(
        "scheduler: the first comer is preempted",
        "python/ernie_kernels/runner/scheduler.py",
        "last = self._running[-1]",
        "last = self._running[0]",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a preempted sequence queues up again",
        "python/ernie_kernels/runner/scheduler.py",
        "        self._waiting.move_to_end(sequence, last=False)\n",
        "",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a preempted sequence runs all the same",
        "python/ernie_kernels/runner/scheduler.py",
        "            step.drop(last)\n",
        "",
        SCHEDULER,
    ),
    Bug(
        "scheduler: a block is shared before it is full",
        "python/ernie_kernels/runner/scheduler.py",
        "now_full = stop // self._block_size",
        "now_full = -(-stop // self._block_size)",
        SCHEDULER,
    ),
    Bug(
        "scheduler: found blocks count as free, too",
        "python/ernie_kernels/runner/scheduler.py",
        "manager.num_free - manager.num_cached_of(found)",
        "manager.num_free",
        SCHEDULER,
    ),
]
