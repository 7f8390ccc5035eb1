"""What each op means, in numpy and float64: slow, obvious, and the judge of every kernel.

``check`` is the bound of every comparison: per element

    |y - y64| <= unit(dtype) * |y64| + c * 2**-24 * S + 2**-140,   c = max(16, 2 sqrt(K))

where ``S`` is the sum of the absolute values of the K terms that make the element. The first term
is the rounding of the result, the second what any float32 summation order may add.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np
import numpy.typing as npt

import ernie_kernels as ek
from ernie_kernels import _core

F32 = np.dtype(np.float32)
BF16 = np.dtype(ml_dtypes.bfloat16)
Array = npt.NDArray

# Half the distance of neighbouring values, relative: the error of one rounding.
UNIT = {F32: 2.0**-24, BF16: 2.0**-8}
# What a float32 intermediate below the smallest normal number may lose, absolutely.
UNDERFLOW = 2.0**-140


def random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, scale=1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def on(array: Array, device: str) -> ek.Tensor | Array:
    """The array itself on the CPU, so that numpy arguments are tested too; a Tensor on CUDA."""
    return array if device == "cpu" else ek.from_numpy(array, device)


def poisoned(shape: tuple[int, ...], dtype: np.dtype, device: str) -> ek.Tensor:
    """An output full of NaN: an element that a kernel misses stays NaN and fails."""
    return ek.from_numpy(np.full(shape, np.nan).astype(dtype), device)


def f64(x) -> Array:
    if isinstance(x, ek.Tensor):
        x = x.numpy()
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return np.asarray(x).astype(np.float64)


def round_to(x: Array, dtype: np.dtype) -> Array:
    """Rounds float64 values once to ``dtype``, as the op's header says that the op does."""
    return (
        x.astype(np.float32).astype(dtype).astype(np.float64)
        if dtype == BF16
        else (x.astype(dtype).astype(np.float64))
    )


def check(actual, expected: Array, *, magnitude: Array | float, terms: int = 1) -> None:
    """Fails with the worst element unless ``actual`` is within the bound above of ``expected``."""
    if isinstance(actual, ek.Tensor):
        actual = actual.numpy()
    assert actual.shape == expected.shape
    if actual.size == 0:
        return
    c = max(16.0, 2.0 * math.sqrt(terms))
    bound = UNIT[actual.dtype] * np.abs(expected) + c * 2.0**-24 * magnitude + UNDERFLOW
    error = np.abs(f64(actual) - expected)
    excess = np.where(np.isnan(error), np.inf, error) - bound
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[worst] <= 0, (
        f"element {tuple(int(i) for i in worst)}: got {float(f64(actual)[worst])!r}, expected "
        f"{expected[worst]!r}, error {error[worst]:.3e} over the bound "
        f"{np.broadcast_to(bound, expected.shape)[worst]:.3e}"
    )


# ------------------------------------------------------------------------------------------ norm


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """Returns the result and the magnitude of its one term (the quotient's rounding included)."""
    x64 = f64(x)
    quotient = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + eps)
    exact = quotient * f64(weight)
    # The stated rounding of the quotient may fall either way where it is within float32 noise of
    # a tie, so its unit counts towards the bound instead of being applied.
    rounding = UNIT[x.dtype] / 2.0**-24 / 16 * np.abs(exact)
    return exact, np.abs(exact) + rounding


# ------------------------------------------------------------------------------------------ gemm


def linear(x: Array, weight: Array, bias: Array | None) -> tuple[Array, Array]:
    expected = f64(x) @ f64(weight).T
    magnitude = np.abs(f64(x)) @ np.abs(f64(weight)).T
    if bias is not None:
        expected = expected + f64(bias)
        magnitude = magnitude + np.abs(f64(bias))
    return expected, magnitude


# ---------------------------------------------------------------------------------------- vision


def image_patches(items: list[Array], levels: Array, patch_size: int, merge_size: int) -> Array:
    """``items``: uint8 ``[t, height, width, 3]`` each. Exact float32, before any rounding."""
    patches = []
    for item in items:
        t, height, width, _ = item.shape
        rows, columns = (side // (patch_size * merge_size) for side in (height, width))
        values = np.stack([levels[c][item[..., c]] for c in range(3)], axis=1)  # channels first
        blocks = values.reshape(
            t, 3, rows, merge_size, patch_size, columns, merge_size, patch_size
        ).transpose(0, 2, 5, 3, 6, 1, 4, 7)
        patches.append(blocks.reshape(-1, 3 * patch_size**2))
    return np.concatenate(patches) if patches else np.empty((0, 3 * patch_size**2), F32)


def temporal_merge(x: Array, grid_thw: Array, merge_size: int, temporal_size: int) -> Array:
    merged, begin = [np.empty((0, temporal_size * x.shape[1]), x.dtype)], 0
    for t, rows, columns in grid_thw:
        blocks = int(rows // merge_size * (columns // merge_size))
        frames = x[begin : begin + t * blocks].reshape(t, blocks, -1)
        begin += t * blocks
        if t == 1:
            frames = np.repeat(frames, temporal_size, axis=0)
        sides = [frames[part::temporal_size] for part in range(temporal_size)]
        merged += list(np.concatenate(sides, axis=2))
    return np.concatenate(merged)


# ----------------------------------------------------------------------------------------- wint8


def wint8_quantize(weight: Array) -> tuple[Array, Array]:
    """Float32 steps as csrc/ops/wint8.h writes them down; bit for bit what the op does."""
    w = weight.astype(np.float32)
    largest = np.abs(w).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        scaled = np.nan_to_num(w / largest * np.float32(127))
    halves_away = np.trunc(f64(scaled) + np.copysign(0.5, f64(scaled)))
    scale = (largest[:, 0] / np.float32(127)).astype(weight.dtype).astype(np.float32)
    return np.clip(halves_away, -127, 127).astype(np.int8), scale


def wint8_linear(x: Array, weight: Array, scale: Array, bias: Array | None) -> tuple[Array, Array]:
    expected, magnitude = linear(x, f64(weight) * f64(scale)[:, None], bias)
    return expected, magnitude


def wint4_quantize(weight: Array) -> tuple[Array, Array]:
    """As wint8_quantize, up to 7: values of 4 bits, one in each int8."""
    w = weight.astype(np.float32)
    largest = np.abs(w).max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        scaled = np.nan_to_num(w / largest * np.float32(7))
    halves_away = np.trunc(f64(scaled) + np.copysign(0.5, f64(scaled)))
    scale = (largest[:, 0] / np.float32(7)).astype(weight.dtype).astype(np.float32)
    return np.clip(halves_away, -7, 7).astype(np.int8), scale


def nibbles(values: Array) -> Array:
    """``[N, K]`` of 4 bits as ``[N, ceil(K / 2)]`` uint8, the even columns in the low halves."""
    padded = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8) & 15
    return padded[:, ::2] | padded[:, 1::2] << 4


def quantize_activations(x: Array) -> tuple[Array, Array]:
    """``[num_tokens, groups, 64]`` integers as float32, and the scales ``[num_tokens, groups]``."""
    padded = np.pad(x.astype(np.float32), ((0, 0), (0, -x.shape[1] % 64)))
    groups = padded.reshape(len(x), padded.shape[1] // 64, 64)
    largest = np.abs(groups).max(axis=2, initial=0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        factor = np.float32(127) / largest
        values = np.where(np.isinf(factor)[..., None], 0, np.rint(groups * factor[..., None]))
    return values.astype(np.float32), largest / np.float32(127)


def w8a8_linear(x: Array, weight: Array, scale: Array, bias: Array | None) -> Array:
    """Float32 in the stated order, bit for bit what int8_activations does, before the rounding."""
    values, x_scale = quantize_activations(x)
    padded = np.pad(weight.astype(np.float64), ((0, 0), (0, -weight.shape[1] % 64)))
    total = np.zeros((len(x), len(weight)), np.float32)
    for g in range(values.shape[1]):
        exact = f64(values[:, g]) @ padded[:, 64 * g : 64 * (g + 1)].T
        total = _fma(x_scale[:, g, None], exact, total)
    out = total * scale
    return out if bias is None else out + bias.astype(np.float32)


def _fma(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` rounded to float32 once; the product of 24 and 21 bits is exact in float64."""
    product, c = f64(a) * b, f64(c)
    total = product + c
    # What the sum lost decides where it is a tie of float32: move it off the tie (round to odd).
    back = total - product
    lost = (product - (total - back)) + (c - back)
    is_even = total.view(np.int64) & 1 == 0
    toward = np.where(lost > 0, np.inf, -np.inf)
    odd = np.where((lost != 0) & is_even, np.nextafter(total, toward), total)
    return odd.astype(np.float32)


# ------------------------------------------------------------------------------------- attention


def attention(
    query: Array, keys: Array, values: Array, *, scale: float, causal: bool
) -> tuple[Array, Array, Array]:
    """One sequence: query ``[n, H, D]``, its last n of the ``[L, K, D]`` keys and values.

    Returns the result, the magnitude of its terms, and the sum of probability times abs(value).
    """
    q, k, v = f64(query), f64(keys), f64(values)
    (n, num_heads, _), (length, num_kv_heads, _) = q.shape, k.shape
    group = num_heads // num_kv_heads
    expected, magnitude, summed = (np.zeros(q.shape) for _ in range(3))
    for i in range(n):
        limit = length - n + i + 1 if causal else length
        if limit <= 0:
            continue
        for h in range(num_heads):
            score = scale * (k[:limit, h // group] @ q[i, h])
            size = abs(scale) * (np.abs(k[:limit, h // group]) @ np.abs(q[i, h]))
            p = np.exp(score - score.max())
            p /= p.sum()
            expected[i, h] = p @ v[:limit, h // group]
            summed[i, h] = p @ np.abs(v[:limit, h // group])
            magnitude[i, h] = (1 + np.max(size)) * summed[i, h]
    return expected, magnitude, summed


def attention_of_sequences(
    sequences: Iterable[tuple[Array, Array, Array]], query: Array, *, scale: float, causal: bool,
    device: str,
) -> tuple[Array, Array]:  # fmt: skip
    """All sequences' results and magnitudes; ``query`` has the rows of all of them."""
    parts, longest = [], 0
    for q, k, v in sequences:
        parts.append(attention(q, k, v, scale=scale, causal=causal))
        longest = max(longest, len(k))
    exact, magnitude, summed = (
        np.concatenate([part[i] for part in parts] or [np.zeros(query.shape)]) for i in range(3)
    )
    if query.dtype == BF16 and (device == "cuda" or _core.prefers_bf16_dot()):
        # The stated rounding of the probabilities: one unit of sum p |v|.
        terms = max(16.0, 2.0 * longest**0.5)
        magnitude = magnitude + UNIT[BF16] / 2.0**-24 / terms * summed
    return exact, magnitude


class PagedBatch:
    """Ragged sequences in a paged cache whose unused slots are NaN, blocks in random order."""

    def __init__(self, rng, lengths, *, num_heads, num_kv_heads, head_dim, block_size, dtype,
                 scale=1.0):  # fmt: skip
        self.lengths = lengths  # (query rows, tokens in the cache) of each sequence
        queries = [n for n, _ in lengths]
        blocks_of = [-(-total // block_size) for _, total in lengths]
        num_blocks = sum(blocks_of) + 3
        ids = rng.permutation(num_blocks)
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        self.k_cache = np.full(shape, np.nan, np.float32).astype(dtype)
        self.v_cache = self.k_cache.copy()
        self.block_table = np.full((len(lengths), max([*blocks_of, 1])), -1, np.int32)
        self.keys, self.values = [], []
        for s, ((_, total), count) in enumerate(zip(lengths, blocks_of, strict=True)):
            self.block_table[s, :count], ids = ids[:count], ids[count:]
            for cache, kept in ((self.k_cache, self.keys), (self.v_cache, self.values)):
                tokens = random(rng, (total, num_kv_heads, head_dim), dtype, scale)
                kept.append(tokens)
                for t in range(total):
                    block = self.block_table[s, t // block_size]
                    cache[block, :, t % block_size] = tokens[t]
        self.query = random(rng, (sum(queries), num_heads, head_dim), dtype, scale)
        self.cu_seqlens_q = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
        self.seq_lens = np.array([total for _, total in lengths], np.int32)
        self.max_seqlen_q = max([*queries, 0])
        self.max_seq_len = max([total for _, total in lengths], default=0)

    def arguments(self, device: str) -> dict:
        names = ("query", "k_cache", "v_cache", "cu_seqlens_q", "seq_lens", "block_table")
        return {name: on(getattr(self, name), device) for name in names} | {
            "max_seqlen_q": self.max_seqlen_q,
            "max_seq_len": self.max_seq_len,
        }

    def expected(self, *, scale: float, causal: bool, device: str) -> tuple[Array, Array]:
        queries = np.split(self.query, self.cu_seqlens_q[1:-1])
        sequences = zip(queries, self.keys, self.values, strict=True) if self.lengths else ()
        return attention_of_sequences(
            sequences, self.query, scale=scale, causal=causal, device=device
        )


class SegmentBatch:
    """Segments one after the other, their queries, keys and values parts of one buffer."""

    def __init__(self, rng, lengths, *, num_heads, num_kv_heads, head_dim, dtype, scale=1.0):
        self.cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        self.max_seqlen = max([*lengths, 0])
        self.ends = np.cumsum([num_heads, num_kv_heads, num_kv_heads])
        shape = (int(self.cu_seqlens[-1]), int(self.ends[-1]), head_dim)
        self.buffer = random(rng, shape, dtype, scale)
        self.query, self.key, self.value = np.split(self.buffer, self.ends[:2], axis=1)

    def arguments(self, device: str) -> dict:
        buffer = ek.from_numpy(self.buffer, device)
        first, second, last = (int(end) for end in self.ends)
        return {
            "query": buffer[:, :first],
            "key": buffer[:, first:second],
            "value": buffer[:, second:last],
            "cu_seqlens": on(self.cu_seqlens, device),
            "max_seqlen": self.max_seqlen,
        }

    def expected(self, *, scale: float, device: str) -> tuple[Array, Array]:
        parts = (np.split(x, self.cu_seqlens[1:-1]) for x in (self.query, self.key, self.value))
        sequences = zip(*parts, strict=True) if len(self.cu_seqlens) > 1 else ()
        return attention_of_sequences(
            sequences, self.query, scale=scale, causal=False, device=device
        )


def pack_linear(weight: Array) -> Array:
    """The packed layout of csrc/ops/gemm.h: panels of 16 rows, pairs of columns for bfloat16."""
    rows, columns = weight.shape
    group = 2 if weight.dtype == BF16 else 1
    padded = np.zeros((-(-rows // 16) * 16, -(-columns // group) * group), weight.dtype)
    padded[:rows, :columns] = weight
    panels = padded.reshape(-1, 16, padded.shape[1] // group, group).swapaxes(1, 2)
    return np.ascontiguousarray(panels if group == 2 else panels[..., 0])


# -------------------------------------------------------------------------------------- kv_cache


def kv_cache_write(
    key: Array, value: Array, k_cache: Array, v_cache: Array, slot_mapping: Array
) -> tuple[Array, Array]:
    k_cache, v_cache = k_cache.copy(), v_cache.copy()
    for t, slot in enumerate(slot_mapping):
        if slot >= 0:
            block, row = divmod(int(slot), k_cache.shape[2])
            k_cache[block, :, row] = key[t]
            v_cache[block, :, row] = value[t]
    return k_cache, v_cache


# ------------------------------------------------------------------------------------ activation


def silu_and_mul(x: Array) -> Array:
    gate, up = np.split(f64(x), 2, axis=-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return gate / (1 + np.exp(-gate)) * up


# ------------------------------------------------------------------------------------------ rope


def frequencies(pairs: int, theta: float) -> Array:
    return (float(theta) ** (-np.arange(pairs) / pairs)).astype(np.float32)


def angles(positions: Array, frequency: Array) -> Array:
    """In float32, as the ops' headers say: [tokens, pairs]."""
    return f64(positions.astype(np.float32) * frequency)


def interleaved(angle: Array) -> Array:
    """Cosine and sine of each pair, themselves not rounded: [tokens, 2 pairs]."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(len(angle), -1)


def rope_table(positions: Array, head_dim: int, theta: float) -> Array:
    return interleaved(angles(positions[:, None], frequencies(head_dim // 2, theta)))


def rope(x: Array, table: Array) -> tuple[Array, Array]:
    pairs = f64(x)[..., 0::2] + 1j * f64(x)[..., 1::2]
    turn = (table[:, 0::2] + 1j * table[:, 1::2])[:, None]
    turned = pairs * turn
    expected = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)
    size = np.abs(pairs.real) + np.abs(pairs.imag)
    return expected, np.repeat(size, 2, axis=-1)


# -------------------------------------------------------------------------------------- sampling


def apply_penalties(
    logits: Array, tokens: list[Array], prompt_lens: Array, repetition, presence, frequency
) -> Array:
    """``tokens`` and the penalties hold one entry per row."""
    result = f64(logits)
    for s, ids in enumerate(tokens):
        for token in set(ids.tolist()):
            value = result[s, token]
            value = value / repetition[s] if value > 0 else value * repetition[s]
            count = int((ids[prompt_lens[s] :] == token).sum())
            if count:
                value = value - frequency[s] * count - presence[s]
            result[s, token] = value
    return result


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def sample_uniform(seed: int, position: int) -> float:
    seed, position = int(seed) % 2**64, int(position) % 2**64
    words = philox([position % 2**32, position >> 32, 0, 0], [seed % 2**32, seed >> 32])
    return ((words[1] << 32 | words[0]) >> 11) * 2.0**-53


def sample_probabilities(
    logits: Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> Array:
    """What each id is drawn with, temperature > 0, all logits finite or -inf: float64, sum 1."""
    scaled = f64(logits) / float(np.float32(temperature))
    weight = np.exp(scaled - scaled.max())
    order = np.argsort(-f64(logits), kind="stable")  # equal logits: the lower id first
    kept = order[: top_k or None]
    if top_p < 1:
        prefix = np.cumsum(weight[kept]) / weight[kept].sum()
        kept = kept[: 1 + np.searchsorted(prefix, float(np.float32(top_p)))]
    kept = kept[weight[kept] >= float(np.float32(min_p)) * weight.max()]
    result = np.zeros_like(weight)
    result[kept] = weight[kept]
    return result / result.sum()


def sample(logits: Array, temperature: float, top_k: int, top_p: float, min_p: float, u: float):
    """One row."""
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        return -1
    if temperature == 0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(sample_probabilities(logits, temperature, top_k, top_p, min_p))
    return int(np.argmax(cumulative > u))
