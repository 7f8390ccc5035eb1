"""The paged cache: any program of block allocation, writes, copies and attention, beside a model of it.

A step is refused exactly where the model says that it is wrong, and then changes nothing.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import ml_dtypes
import numpy as np
from mutation import json_changed

import ernie_kernels as ek
from ernie_kernels.runner.block_manager import BlockManager

import reference

ALLOWED = ()  # what is refused is compared with the model, in run()
KV_HEADS, HEAD_DIM, GROUP = 2, 4, 2
MAX_SIZE = 64  # of lists in a step: a mutation may make them longer
KINDS = ["allocate", "release", "publish", "share", "rebuild", "write", "copy", "attend"]


def seeds() -> list[Any]:
    manage = [["allocate", 2], ["publish", 0, 7], ["publish", 1, 8], ["release", [0, 1]], ["share", [7, 8]],
              ["allocate", 5], ["rebuild", [[0], [3, 0]]], ["allocate", 3], ["release", [0]]]  # fmt: skip
    fill = [["write", list(range(20)), 32], ["write", [-1, 40, 41, -1], 64], ["copy", [[0, 3]], 32],
            ["copy", [[1, 4], [1, 5]], 64]]  # fmt: skip
    attend = [["attend", [0, 1, 4], [9, 20], [[2], [0, 1]]], ["attend", [0, 3], [3], [[1]]],
              ["attend", [0], [], []]]  # fmt: skip
    return [
        {"blocks": 6, "block_size": 16, "bfloat16": False, "steps": manage},
        {"blocks": 6, "block_size": 16, "bfloat16": False, "steps": [*fill, *attend]},
        {"blocks": 3, "block_size": 32, "bfloat16": True, "steps": fill[:1] + attend[1:]},
    ]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    if draw.random() < 0.1:
        case["blocks"] = draw.randint(1, 8)
        case["block_size"] = draw.choice((16, 16, 32, 64))
        case["bfloat16"] = not case["bfloat16"]
    elif draw.random() < 0.3:
        steps = case["steps"]
        steps[draw.randint(0, len(steps)) :] = [
            draw.choice(other["steps"]) for _ in range(draw.randint(1, 6))
        ]
    else:
        case["steps"] = json_changed(case["steps"], other["steps"], draw, KINDS)
        if not isinstance(case["steps"], list):
            case["steps"] = []
    return case


def integers(values: Any, bits: int) -> list[int] | None:
    """The list, if it is one of integers that an array of so many bits holds."""
    if not isinstance(values, list) or len(values) > MAX_SIZE:
        return None
    fits = all(type(v) is int and -(2 ** (bits - 1)) <= v < 2 ** (bits - 1) for v in values)
    return values if fits else None


class Program:
    """The code under test, and the model: arrays and dictionaries that say what should be there."""

    def __init__(self, case: Any) -> None:
        self.num_blocks, self.block_size = case["blocks"], case["block_size"]
        self.dtype = np.dtype(ml_dtypes.bfloat16 if case["bfloat16"] else np.float32)
        shape = (self.num_blocks, KV_HEADS, self.block_size, HEAD_DIM)
        self.rng = np.random.default_rng(len(case["steps"]))
        self.caches = [self.values(*shape) for _ in range(2)]
        self.model = [cache.copy() for cache in self.caches]
        self.manager = BlockManager(self.num_blocks, self.block_size)
        self.holders = [0] * self.num_blocks
        self.contents: list[int | None] = [None] * self.num_blocks

    def values(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(-2, 2, shape).astype(self.dtype)

    def step(self, step: Any) -> None:
        if not isinstance(step, list) or not step or step[0] not in KINDS:
            return
        getattr(self, step[0].replace(" ", "_"))(*[*step[1:], None, None, None][:3])
        self.manager.check()
        assert self.manager.num_free == self.holders.count(0)
        for cache, model in zip(self.caches, self.model, strict=True):
            assert cache.tobytes() == model.tobytes()

    # ------------------------------------------------------------------------------------- blocks

    def allocate(self, count: Any, _: Any, __: Any) -> None:
        if type(count) is not int:
            return
        try:
            blocks = self.manager.allocate(count)
        except ek.InternalError:
            assert count < 0
        except ek.CapacityError:
            assert count > self.holders.count(0)
        else:
            assert len(blocks) == count >= 0
            for block in blocks:
                assert self.holders[block] == 0
                self.holders[block], self.contents[block] = 1, None

    def release(self, blocks: Any, _: Any, __: Any) -> None:
        if integers(blocks, 64) is None:
            return
        is_right = len(set(blocks)) == len(blocks)
        is_right = is_right and all(0 <= b < self.num_blocks and self.holders[b] for b in blocks)
        try:
            self.manager.release(blocks)
        except ek.InternalError:
            assert not is_right
        else:
            assert is_right
            for block in blocks:
                self.holders[block] -= 1

    def publish(self, block: Any, number: Any, _: Any) -> None:
        if type(block) is not int or not 0 <= block < self.num_blocks or type(number) is not int:
            return
        is_right = self.holders[block] > 0 and self.contents[block] is None
        try:
            self.manager.publish(block, b"%d" % number)
        except ek.InternalError:
            assert not is_right
        else:
            assert is_right
            if number not in self.contents:
                self.contents[block] = number

    def share(self, numbers: Any, _: Any, __: Any) -> None:
        if integers(numbers, 64) is None:
            return
        blocks = self.manager.find_prefix([b"%d" % number for number in numbers])
        assert [self.contents[block] for block in blocks] == numbers[: len(blocks)]
        assert len(blocks) == len(numbers) or numbers[len(blocks)] not in self.contents
        self.manager.acquire(blocks)
        for block in blocks:
            self.holders[block] += 1

    def rebuild(self, tables: Any, _: Any, __: Any) -> None:
        if not isinstance(tables, list) or any(integers(table, 64) is None for table in tables):
            return
        if all(0 <= block < self.num_blocks for table in tables for block in table):
            self.manager.rebuild(tables)
            self.holders = [sum(t.count(b) for t in tables) for b in range(self.num_blocks)]

    # -------------------------------------------------------------------------------------- caches

    def write(self, slots: Any, bits: Any, _: Any) -> None:
        bits = 64 if bits == 64 else 32
        if integers(slots, bits) is None:
            return
        key, value = (self.values(len(slots), KV_HEADS, HEAD_DIM) for _ in range(2))
        used = [slot for slot in slots if slot != -1]
        is_right = len(set(used)) == len(used)
        is_right = is_right and all(0 <= s < self.num_blocks * self.block_size for s in used)
        try:
            ek.ops.kv_cache_write(key, value, *self.caches, np.array(slots, f"int{bits}"))
        except ek.ArgumentError:
            assert not is_right
            return
        assert is_right
        for token, slot in enumerate(slots):
            if slot != -1:
                block, row = divmod(slot, self.block_size)
                self.model[0][block, :, row] = key[token]
                self.model[1][block, :, row] = value[token]

    def copy(self, pairs: Any, bits: Any, _: Any) -> None:
        bits = 64 if bits == 64 else 32
        if not isinstance(pairs, list) or len(pairs) > MAX_SIZE:
            return
        if any(integers(pair, bits) is None or len(pair) != 2 for pair in pairs):
            return
        mapping = np.array(pairs, f"int{bits}").reshape(-1, 2)
        sources, targets = [p[0] for p in pairs], [p[1] for p in pairs]
        is_right = all(0 <= block < self.num_blocks for block in (*sources, *targets))
        is_right = (
            is_right and len(set(targets)) == len(targets) and not set(sources) & set(targets)
        )
        try:
            ek.ops.kv_cache_copy_blocks(*self.caches, mapping)
        except ek.ArgumentError:
            assert not is_right
            return
        assert is_right
        for source, target in pairs:
            for cache in self.model:
                cache[target] = cache[source]

    def attend(self, starts: Any, lengths: Any, tables: Any) -> None:
        if integers(starts, 32) is None or integers(lengths, 32) is None or not starts:
            return
        if not isinstance(tables, list) or any(integers(row, 32) is None for row in tables):
            return
        if len(tables) != len(lengths) or len(starts) != len(lengths) + 1:
            return
        width = max((len(row) for row in tables), default=0)
        table = np.array([row + [0] * (width - len(row)) for row in tables], np.int32)
        table = table.reshape(len(lengths), width)
        tokens = min(max(starts[-1], 0), MAX_SIZE)
        query = self.values(tokens, KV_HEADS * GROUP, HEAD_DIM)
        queries = [end - begin for begin, end in itertools.pairwise(starts)]
        is_right = starts[0] == 0 and starts[-1] == tokens
        is_right = is_right and all(
            0 <= n <= length for n, length in zip(queries, lengths, strict=True)
        )
        is_right = is_right and all(length <= width * self.block_size for length in lengths)
        is_right = is_right and all(
            0 <= block < self.num_blocks
            for row, length, n in zip(table, lengths, queries, strict=True)
            for block in row[: -(-length // self.block_size)]
        )
        try:
            out = ek.ops.attention(
                query, *self.caches, cu_seqlens_q=np.array(starts, np.int32),
                seq_lens=np.array(lengths, np.int32), block_table=table,
                max_seqlen_q=min(max([0, *queries]), tokens),
                max_seq_len=min(max([0, *lengths]), width * self.block_size),
            ).numpy()  # fmt: skip
        except ek.ArgumentError:
            assert not is_right
            return
        if tokens == 0:
            return  # nothing to do is nothing to refuse
        assert is_right
        for begin, n, length, row in zip(starts, queries, lengths, table, strict=False):
            self.compare(out[begin : begin + n], query[begin : begin + n], length, row)

    def compare(self, out: np.ndarray, query: np.ndarray, length: int, row: np.ndarray) -> None:
        """With plain attention over the tokens that the model's caches hold."""
        places = [(row[i // self.block_size], i % self.block_size) for i in range(length)]
        keys, values = (
            np.array([cache[block, :, at] for block, at in places], self.dtype).reshape(
                length, KV_HEADS, HEAD_DIM
            )
            for cache in self.model
        )
        expected, magnitude, summed = reference.attention(
            query, keys, values, scale=HEAD_DIM**-0.5, causal=True
        )
        if (
            self.dtype == reference.BF16
        ):  # probabilities may be rounded: a unit, in terms of check()
            magnitude = magnitude + reference.UNIT[reference.BF16] / (16 * 2.0**-24) * summed
        reference.check(out, expected, magnitude=magnitude, terms=length)


def run(case: Any) -> None:
    program = Program(case)
    for step in case["steps"][:MAX_SIZE]:
        program.step(step)
