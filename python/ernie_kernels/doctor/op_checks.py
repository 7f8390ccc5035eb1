"""One small check per op: awkward shapes, against the formula in float64.

A check calls its op once through ``case.timed`` and returns pairs of a result and what is expected
of it. The bounds are those of ``ernie_kernels.verify.bounds``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ernie_kernels import _core, ops
from ernie_kernels._core import Tensor, from_numpy
from ernie_kernels.verify import formulas
from ernie_kernels.verify.bounds import FLOAT32, UNDERFLOW, Bounds, Expected, summation
from ernie_kernels.verify.formulas import Array
from ernie_kernels.verify.stored_weights import Matrix

NUMPY_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
EPS = 1e-5
THETA = 500000.0
TOP_K = 3

Result = TypeVar("Result")


@dataclass(slots=True)
class Case:
    """Where and in which dtype an op is checked."""

    device: str
    dtype: str
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    seconds: float = 0.0  # of the op's call

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.dtype)

    def random(self, *shape: int) -> Array:
        """Values that the dtype holds exactly."""
        values = self.rng.standard_normal(shape).astype(np.float32)
        return values.astype(NUMPY_DTYPES[self.dtype]).astype(np.float64)

    def floats(self, values: Array) -> Tensor:
        rounded = values.astype(np.float32).astype(NUMPY_DTYPES[self.dtype])
        return from_numpy(rounded, self.device)

    def integers(self, values: Any, dtype: str) -> Tensor:
        return from_numpy(np.array(values, dtype), self.device)

    def timed(self, call: Callable[[], Result]) -> Result:
        begin = time.perf_counter()
        result = call()
        if isinstance(result, Tensor):
            result.numpy()  # a GPU's work is done when it has been fetched
        self.seconds = time.perf_counter() - begin
        return result


Pairs = Iterator[tuple[Any, Expected]]


def exactly(values: Array) -> Expected:
    return Expected(values, np.zeros_like(values))


def rms_norm(case: Case) -> Pairs:
    x, weight = case.random(5, 37), case.random(37)
    out = case.timed(lambda: ops.rms_norm(case.floats(x), case.floats(weight), eps=EPS))
    yield out, case.bounds.rms_norm(x, weight, EPS)


def add_rms_norm(case: Case) -> Pairs:
    x, residual, weight = case.random(5, 37), case.random(5, 37), case.random(37)
    added = case.floats(residual)
    out, _ = case.timed(
        lambda: ops.add_rms_norm(case.floats(x), added, case.floats(weight), eps=EPS)
    )
    yield added, case.bounds.sum(x, residual)
    yield out, case.bounds.rms_norm(float64(added), weight, EPS)


def linear(case: Case) -> Pairs:
    x, weight, bias = case.random(5, 37), case.random(19, 37), case.random(19)
    out = case.timed(lambda: ops.linear(case.floats(x), case.floats(weight), case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(weight, bias))


def linear_pack(case: Case) -> Pairs:
    """What the packed weight multiplies, and that it still holds every element."""
    x, matrix = case.random(5, 37), Matrix(case.random(19, 37), None)
    packed = case.timed(lambda: ops.linear_pack(case.floats(matrix.weight)))
    yield ops.linear(case.floats(x), packed), case.bounds.linear(x, matrix)
    rows = np.arange(19)[::-1].copy()
    yield ops.embedding(rows, packed), exactly(matrix.weight[rows])


def linear_silu_and_mul(case: Case) -> Pairs:
    x, gate, up = case.random(5, 37), case.random(13, 37), case.random(13, 37)
    weight = case.floats(np.concatenate([gate, up]))
    out = case.timed(lambda: ops.linear_silu_and_mul(case.floats(x), weight))
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint8_weight(case: Case, out_features: int) -> tuple[Array, Array]:
    """Values and scales, both exact in every dtype."""
    values = case.rng.integers(-127, 128, (out_features, 37)).astype(np.float64)
    return values, np.exp2(case.rng.integers(-8, -5, out_features)).astype(np.float64)


def wint8_linear(case: Case) -> Pairs:
    x, bias = case.random(5, 37), case.random(19)
    values, scale = wint8_weight(case, 19)
    weight = case.integers(values, "int8"), case.integers(scale, "float32")
    scaled = values * scale[:, None]
    out = case.timed(lambda: ops.wint8_linear(case.floats(x), *weight, case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(scaled, bias))
    if case.device == "cpu":
        whole = np.rint(x * 20)
        whole[:, 3] = 127  # then the integers are their own int8
        out = ops.wint8_linear(case.floats(whole), *weight, int8_activations=True)
        yield out, case.bounds.linear(whole, Matrix(scaled, None))


def wint8_linear_silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 37)
    values, scale = wint8_weight(case, 26)
    weight = case.integers(values, "int8"), case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint8_linear_silu_and_mul(case.floats(x), *weight))
    gate, up = np.split(values * scale[:, None], 2)
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint8_quantize(case: Case) -> Pairs:
    weight = case.random(19, 37)
    values, scale = case.timed(lambda: ops.wint8_quantize(case.floats(weight)))
    largest = np.abs(weight).max(axis=1)
    wanted = weight / largest[:, None] * 127
    yield values, Expected(wanted, np.full_like(wanted, 0.5 + 1e-4))
    yield scale, Expected(largest / 127, (case.bounds.unit + FLOAT32) * largest / 127)


def wint8_quantize_and_pack(case: Case) -> Pairs:
    """The same as by the two ops."""
    weight, rows = case.floats(case.random(19, 37)), np.arange(19)[::-1].copy()
    packed, scale = case.timed(lambda: ops.wint8_quantize_and_pack(weight))
    values, same_scale = (float64(tensor) for tensor in ops.wint8_quantize(weight))
    ones = case.integers(np.ones(19), "float32")
    yield ops.embedding(rows, packed, scale=ones), exactly(values[rows])
    yield scale, exactly(same_scale)


def wint8_pack(case: Case) -> Pairs:
    """That the packed weight still holds every element."""
    (values, scale), rows = wint8_weight(case, 19), np.arange(19)[::-1].copy()
    packed = case.timed(lambda: ops.wint8_pack(case.integers(values, "int8")))
    looked_up = ops.embedding(rows, packed, scale=case.integers(scale, "float32"))
    yield looked_up, exactly((values * scale[:, None])[rows])


def wint4_weight(case: Case, out_features: int) -> tuple[Array, Tensor, Array]:
    """Values, the same two in a byte, and scales: all exact in every dtype."""
    values = case.rng.integers(-7, 8, (out_features, 37)).astype(np.float64)
    halves = np.pad(values, ((0, 0), (0, 1))).astype(np.int64) & 15
    pairs = case.integers(halves[:, ::2] | halves[:, 1::2] << 4, "uint8")
    return values, pairs, np.exp2(case.rng.integers(-8, -5, out_features)).astype(np.float64)


def wint4_linear(case: Case) -> Pairs:
    x, bias = case.random(5, 37), case.random(19)
    values, pairs, scale = wint4_weight(case, 19)
    weight = pairs, case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint4_linear(case.floats(x), *weight, case.floats(bias)))
    yield out, case.bounds.linear(x, Matrix(values * scale[:, None], bias))


def wint4_linear_silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 37)
    values, pairs, scale = wint4_weight(case, 26)
    weight = pairs, case.integers(scale, "float32")
    out = case.timed(lambda: ops.wint4_linear_silu_and_mul(case.floats(x), *weight))
    gate, up = np.split(values * scale[:, None], 2)
    yield out, case.bounds.gated(x, Matrix(gate, None), Matrix(up, None))


def wint4_quantize(case: Case) -> Pairs:
    weight = case.random(19, 37)
    pairs, scale = case.timed(lambda: ops.wint4_quantize(case.floats(weight)))
    halves = pairs.numpy()[..., None] >> np.array([0, 4]) & 15
    values = ((halves.reshape(19, 38) + 8) % 16 - 8).astype(np.float64)
    largest = np.abs(weight).max(axis=1)
    wanted = np.pad(weight / largest[:, None] * 7, ((0, 0), (0, 1)))
    yield values, Expected(wanted, np.full_like(wanted, 0.5 + 1e-5))
    yield scale, Expected(largest / 7, (case.bounds.unit + FLOAT32) * largest / 7)


def wint4_quantize_and_pack(case: Case) -> Pairs:
    """The same as by the two ops."""
    weight = case.floats(case.random(19, 37))
    packed, scale = case.timed(lambda: ops.wint4_quantize_and_pack(weight))
    pairs, same_scale = ops.wint4_quantize(weight)
    yield packed.tensor, exactly(float64(ops.wint4_pack(pairs, 37).tensor))
    yield scale, exactly(float64(same_scale))


def wint4_pack(case: Case) -> Pairs:
    """That the packed weight still holds every element."""
    values, pairs, scale = wint4_weight(case, 19)
    packed = case.timed(lambda: ops.wint4_pack(pairs, 37))
    one_hot = case.integers(np.eye(37), "float32")
    product = ops.wint4_linear(one_hot, packed, case.integers(scale, "float32"))
    yield product, exactly((values * scale[:, None]).T)


def embedding(case: Case) -> Pairs:
    table, ids = case.random(11, 37), np.array([10, 0, 3, 3, 7])
    out = case.timed(lambda: ops.embedding(case.integers(ids, "int64"), case.floats(table)))
    yield out, exactly(table[ids])


def silu_and_mul(case: Case) -> Pairs:
    x = case.random(5, 26) * 4
    out = case.timed(lambda: ops.silu_and_mul(case.floats(x)))
    gate, up = np.split(x, 2, axis=-1)
    value = formulas.silu(gate) * up
    computed = 16 * FLOAT32 * (1 + np.abs(gate)) + case.bounds.unit
    yield out, Expected(value, computed * np.abs(value) + UNDERFLOW)


def rope_table(case: Case) -> Pairs:
    positions = np.array([0, 1, 31, 4095, 131071])
    out = case.timed(lambda: ops.rope_table(case.integers(positions, "int64"), 14, theta=THETA))
    angles = formulas.rope_angles(positions, 14, THETA)
    value = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(5, 14)
    yield out, Expected(value, FLOAT32 * (1.01 * np.abs(value)) + UNDERFLOW)


def rope(case: Case) -> Pairs:
    positions = np.array([0, 1, 31, 4095, 131071])
    query, key = case.random(5, 3, 14), case.random(5, 1, 14)
    turned = case.floats(query), case.floats(key)
    case.timed(lambda: ops.rope(*turned, case.integers(positions, "int64"), theta=THETA))
    angles = formulas.rope_angles(positions, 14, THETA)
    for actual, before in zip(turned, (query, key), strict=True):
        yield actual, case.bounds.rotated(exactly(before), angles)


def kv_cache_write(case: Case) -> Pairs:
    key, value = case.random(4, 2, 6), case.random(4, 2, 6)
    caches = case.random(3, 2, 16, 6), case.random(3, 2, 16, 6)
    slots = np.array([40, -1, 0, 17])
    written = case.floats(caches[0]), case.floats(caches[1])
    slot_mapping = case.integers(slots, "int32")
    case.timed(
        lambda: ops.kv_cache_write(case.floats(key), case.floats(value), *written, slot_mapping)
    )
    for cache, rows in zip(caches, (key, value), strict=True):
        for slot, row in zip(slots, rows, strict=True):
            if slot >= 0:
                cache[slot // 16, :, slot % 16] = row
    for actual, cache in zip(written, caches, strict=True):
        yield actual, exactly(cache)


def kv_cache_copy_blocks(case: Case) -> Pairs:
    caches = case.random(5, 2, 16, 6), case.random(5, 2, 16, 6)
    copied = case.floats(caches[0]), case.floats(caches[1])
    pairs = case.integers([[4, 0], [2, 3]], "int32")
    case.timed(lambda: ops.kv_cache_copy_blocks(*copied, pairs))
    for actual, cache in zip(copied, caches, strict=True):
        cache[[0, 3]] = cache[[4, 2]]
        yield actual, exactly(cache)


def attention(case: Case) -> Pairs:
    """A whole prompt, the end of another, and one token of a third, in blocks out of order."""
    lengths = [(7, 7), (5, 33), (1, 19)]  # queries, tokens in the cache
    heads, kv_heads, head_dim, block = 6, 2, 24, 16
    table = np.full((3, 3), -1, np.int32)
    free = iter(case.rng.permutation(8))
    keys, values = (np.full((8, kv_heads, block, head_dim), 0.0) for _ in range(2))
    queries, sequences = case.random(13, heads, head_dim), []
    for row, (_, length) in enumerate(lengths):
        k, v = case.random(length, kv_heads, head_dim), case.random(length, kv_heads, head_dim)
        sequences.append((k, v))
        for first in range(0, length, block):
            table[row, first // block] = here = int(next(free))
            count = min(block, length - first)
            keys[here, :, :count] = k[first : first + count].swapaxes(0, 1)
            values[here, :, :count] = v[first : first + count].swapaxes(0, 1)
    starts = np.cumsum([0, *(n for n, _ in lengths)])
    out = case.timed(
        lambda: ops.attention(
            case.floats(queries),
            case.floats(keys),
            case.floats(values),
            cu_seqlens_q=case.integers(starts, "int32"),
            seq_lens=case.integers([length for _, length in lengths], "int32"),
            block_table=case.integers(table, "int32"),
            max_seqlen_q=7,
            max_seq_len=33,
        )
    )
    result = float64(out)
    for (k, v), begin, end in zip(sequences, starts[:-1], starts[1:], strict=True):
        yield result[begin:end], case.bounds.attention(queries[begin:end], k, v)


def moe_route(case: Case) -> Pairs:
    logits, bias = case.random(5, 7), 0.5 * case.random(7)
    weights, ids = case.timed(lambda: ops.moe_route(case.floats(logits), case.floats(bias), TOP_K))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    chosen = np.argsort(-(p + bias), axis=-1, kind="stable")[:, :TOP_K]
    yield ids, exactly(chosen.astype(np.float64))
    value = np.take_along_axis(p, chosen, -1)
    value /= value.sum(-1, keepdims=True)
    yield weights, Expected(value, 4 * summation(7) * value + UNDERFLOW)


def chosen_experts() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of 5 tokens, with experts that nobody chooses, and the order of all choices by expert."""
    ids = np.array([[6, 0, 3], [0, 6, 2], [3, 2, 0], [6, 3, 5], [0, 2, 6]])
    return ids, np.argsort(ids.ravel(), kind="stable")


def offsets_of(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(ids.ravel(), minlength=7))])


def moe_sort(case: Case) -> Pairs:
    ids, order = chosen_experts()
    offsets, inverse, source_rows = case.timed(lambda: ops.moe_sort(case.integers(ids, "int32"), 7))
    yield offsets, exactly(offsets_of(ids).astype(np.float64))
    yield inverse, exactly(np.argsort(order).reshape(ids.shape).astype(np.float64))
    yield source_rows, exactly((order // TOP_K).astype(np.float64))


def moe_dispatch(case: Case) -> Pairs:
    (ids, order), x = chosen_experts(), case.random(5, 37)
    permuted, offsets, inverse = case.timed(
        lambda: ops.moe_dispatch(case.floats(x), case.integers(ids, "int32"), 7)
    )
    yield permuted, exactly(x[order // TOP_K])
    yield offsets, exactly(offsets_of(ids).astype(np.float64))
    yield inverse, exactly(np.argsort(order).reshape(ids.shape).astype(np.float64))


def moe_combine(case: Case) -> Pairs:
    (ids, order), x, shared = chosen_experts(), case.random(15, 37), case.random(5, 37)
    inverse = np.argsort(order).reshape(ids.shape)
    weights = np.abs(case.random(5, TOP_K))
    out = case.timed(
        lambda: ops.moe_combine(
            case.floats(x),
            case.integers(inverse, "int32"),
            case.integers(weights, "float32"),
            shared=case.floats(shared),
        )
    )
    terms = weights[..., None] * x[inverse]
    value = terms.sum(1) + shared
    magnitude = np.abs(terms).sum(1) + np.abs(shared)
    bound = case.bounds.unit * np.abs(value) + summation(TOP_K + 1) * magnitude + UNDERFLOW
    yield out, Expected(value, bound)


def experts_of(case: Case, rows: int, columns: int) -> tuple[Array, ops.ExpertWeights]:
    """Matrices of 7 experts, set one at a time."""
    matrices = case.random(7, rows, columns) / 8
    experts = ops.expert_weights(7, rows, columns, dtype=case.dtype, device=case.device)
    for index, matrix in enumerate(matrices.astype(NUMPY_DTYPES[case.dtype])):
        ops.expert_weights_set(experts, index, matrix)
    return matrices, experts


def grouped_linear(case: Case) -> Pairs:
    """Experts with no row, with one and with several, which are gathered."""
    (ids, order), x = chosen_experts(), case.random(5, 37)
    matrices, experts = experts_of(case, 19, 37)
    offsets, rows = case.integers(offsets_of(ids), "int64"), order // TOP_K
    source_rows = case.integers(rows, "int32")
    given = case.floats(x)
    out = case.timed(lambda: ops.grouped_linear(given, experts, offsets, source_rows=source_rows))
    result = float64(out)
    for place, expert in enumerate(np.sort(ids.ravel())):
        row = x[rows[place], None]
        yield result[place, None], case.bounds.linear(row, Matrix(matrices[expert], None))


def grouped_linear_silu_and_mul(case: Case) -> Pairs:
    (ids, order), x = chosen_experts(), case.random(5, 37)
    matrices, experts = experts_of(case, 26, 37)
    offsets, rows = case.integers(offsets_of(ids), "int64"), order // TOP_K
    given = case.floats(x[rows])
    out = case.timed(lambda: ops.grouped_linear_silu_and_mul(given, experts, offsets))
    result = float64(out)
    for place, expert in enumerate(np.sort(ids.ravel())):
        gate, up = np.split(matrices[expert], 2)
        expected = case.bounds.gated(x[rows[place], None], Matrix(gate, None), Matrix(up, None))
        yield result[place, None], expected


def fused_moe(case: Case) -> Pairs:
    (ids, _), x, shared = chosen_experts(), case.random(5, 37), case.random(5, 37)
    matrices, gate_up = experts_of(case, 26, 37)
    down_matrices, down = experts_of(case, 37, 13)
    weights = np.abs(case.random(5, TOP_K))
    out = case.timed(
        lambda: ops.fused_moe(
            case.floats(x),
            case.integers(weights, "float32"),
            case.integers(ids, "int32"),
            gate_up,
            down,
            shared=case.floats(shared),
        )
    )
    value, bound, magnitude = shared.copy(), np.zeros_like(x), np.abs(shared)
    for t, j in np.ndindex(ids.shape):
        gate, up = np.split(matrices[ids[t, j]], 2)
        matrix = down_matrices[ids[t, j]]
        gated = case.bounds.gated(x[t, None], Matrix(gate, None), Matrix(up, None))
        y = case.bounds.linear(gated.value, Matrix(matrix, None))
        value[t] += weights[t, j] * y.value[0]
        bound[t] += weights[t, j] * (y.bound + 1.01 * gated.bound @ np.abs(matrix).T)[0]
        magnitude[t] += weights[t, j] * np.abs(y.value[0])
    bound += case.bounds.unit * np.abs(value) + summation(TOP_K + 1) * magnitude + UNDERFLOW
    yield out, Expected(value, bound)


def apply_penalties(case: Case) -> Pairs:
    logits = case.random(2, 9) * 3
    tokens = [[1, 4, 4, 2, 4], [8, 0]]
    prompt_lens, penalties = [2, 1], (1.3, 0.5, 0.25)
    penalised = case.floats(logits)
    case.timed(
        lambda: ops.apply_penalties(
            penalised,
            case.integers([*tokens[0], *tokens[1]], "int64"),
            case.integers([0, 5, 7], "int32"),
            case.integers(prompt_lens, "int32"),
            repetition_penalty=penalties[0],
            presence_penalty=penalties[1],
            frequency_penalty=penalties[2],
        )
    )
    repetition, presence, frequency = (float(np.float32(p)) for p in penalties)
    expected = logits.copy()
    for row, (ids, prompt) in enumerate(zip(tokens, prompt_lens, strict=True)):
        for token in set(ids):
            value = expected[row, token]
            value = value / repetition if value > 0 else value * repetition
            count = ids[prompt:].count(token)
            expected[row, token] = value - (frequency * count + presence if count else 0.0)
    yield penalised, Expected(expected, summation(4) * (np.abs(logits) * 2 + 2))


def sample(case: Case) -> Pairs:
    """The token whose share of the filtered probabilities the row's own random number falls in."""
    logits = case.random(6, 50) * 2
    temperatures = np.array([0.0, 0.7, 1.0, 1.3, 1.0, 0.9], np.float32)
    top_k, top_p, min_p = 20, 0.9, 0.02
    seeds, positions = np.arange(6) * 12345 + 7, np.array([0, 1, 5, 1000, 70000, 2**33])
    drawn = case.timed(
        lambda: ops.sample(
            case.floats(logits),
            temperature=from_numpy(temperatures, case.device),
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=case.integers(seeds, "int64"),
            position=case.integers(positions, "int64"),
        )
    )
    expected = [
        _drawn(
            row, float(t), top_k, float(np.float32(top_p)), float(np.float32(min_p)), int(s), int(p)
        )
        for row, t, s, p in zip(logits, temperatures, seeds, positions, strict=True)
    ]
    yield drawn, exactly(np.array(expected, np.float64))


def _drawn(
    logits: Array,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    position: int,
) -> int:
    if temperature == 0:
        return int(np.argmax(logits))
    weights = np.exp((logits - logits.max()) / temperature)
    kept = np.argsort(-logits, kind="stable")[:top_k]
    reached = np.cumsum(weights[kept]) / weights[kept].sum()
    kept = kept[: 1 + np.searchsorted(reached, top_p)]
    kept = kept[weights[kept] >= min_p * weights.max()]
    shares = np.zeros_like(weights)
    shares[kept] = weights[kept] / weights[kept].sum()
    return int(np.argmax(np.cumsum(shares) > _uniform(seed, position)))


def _uniform(seed: int, position: int) -> float:
    """Philox4x32-10 with the seed as key and the position as counter: 53 bits of [0, 1)."""
    c = [position % 2**32, position >> 32, 0, 0]
    key = [seed % 2**32, seed >> 32]
    for _ in range(10):
        first, third = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (third >> 32) ^ c[1] ^ key[0],
            third % 2**32,
            (first >> 32) ^ c[3] ^ key[1],
            first % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return ((c[1] << 32 | c[0]) >> 11) * 2.0**-53


def float64(tensor: Tensor) -> Array:
    return tensor.numpy().astype(np.float64)


BOTH = ("float32", "bfloat16")
CHECKS: dict[str, tuple[Callable[[Case], Pairs], tuple[str, ...]]] = {
    "rms_norm": (rms_norm, BOTH),
    "add_rms_norm": (add_rms_norm, BOTH),
    "linear": (linear, BOTH),
    "linear_pack": (linear_pack, BOTH),
    "linear_silu_and_mul": (linear_silu_and_mul, BOTH),
    "wint8_linear": (wint8_linear, BOTH),
    "wint8_linear_silu_and_mul": (wint8_linear_silu_and_mul, BOTH),
    "wint8_quantize": (wint8_quantize, BOTH),
    "wint8_quantize_and_pack": (wint8_quantize_and_pack, BOTH),
    "wint8_pack": (wint8_pack, ("float32",)),
    "wint4_linear": (wint4_linear, BOTH),
    "wint4_linear_silu_and_mul": (wint4_linear_silu_and_mul, BOTH),
    "wint4_quantize": (wint4_quantize, BOTH),
    "wint4_quantize_and_pack": (wint4_quantize_and_pack, BOTH),
    "wint4_pack": (wint4_pack, ("float32",)),
    "embedding": (embedding, BOTH),
    "silu_and_mul": (silu_and_mul, BOTH),
    "rope_table": (rope_table, ("float32",)),
    "rope": (rope, BOTH),
    "kv_cache_write": (kv_cache_write, BOTH),
    "kv_cache_copy_blocks": (kv_cache_copy_blocks, BOTH),
    "attention": (attention, BOTH),
    "moe_route": (moe_route, ("float32",)),
    "moe_sort": (moe_sort, ("float32",)),
    "moe_dispatch": (moe_dispatch, BOTH),
    "moe_combine": (moe_combine, BOTH),
    "grouped_linear": (grouped_linear, BOTH),
    "grouped_linear_silu_and_mul": (grouped_linear_silu_and_mul, BOTH),
    "fused_moe": (fused_moe, BOTH),
    "apply_penalties": (apply_penalties, ("float32",)),
    "sample": (sample, ("float32",)),
}
# CUDA reads weights as they are, 4-bit ones of experts alone.
CPU_ONLY = {
    "linear_pack",
    "wint8_quantize",
    "wint8_quantize_and_pack",
    "wint8_pack",
    "wint4_linear",
    "wint4_linear_silu_and_mul",
    "wint4_quantize",
    "wint4_quantize_and_pack",
    "wint4_pack",
}


def cases() -> Iterator[tuple[str, Case]]:
    """Every op with every dtype on every device that there is."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(_core.device_count()))]
    for name, (_, dtypes) in CHECKS.items():
        for device in devices[:1] if name in CPU_ONLY else devices:
            for dtype in dtypes:
                yield name, Case(device, dtype)
