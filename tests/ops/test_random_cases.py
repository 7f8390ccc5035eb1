"""Thousands of random shapes per op, each against float64 within the bound of tests/reference.py.

Every case has its own seed: a failure prints the op and the seed, and

    ERNIE_TEST_CASE=linear:1234 pytest tests/ops/test_random_cases.py

runs that one again. ``ERNIE_TEST_CASES`` sets how many cases run in all (default 2,000; CI runs
20,000 on the best CPU tier); each op gets a fixed share of them, and a test counts that none is
skipped.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from expert_cases import Experts

import reference_vision
from ernie_kernels import ops

import reference
import reference_moe
from reference import BF16, F32, PagedBatch, SegmentBatch, on, poisoned

# Around every vector width, register tile and block of the kernels; drawn half of the time.
EDGES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 96, 97, 127, 128,
         129]  # fmt: skip


def extent(rng: np.random.Generator, limit: int) -> int:
    edges = [e for e in EDGES if e <= limit]
    return int(rng.choice(edges)) if rng.random() < 0.5 else int(rng.integers(1, limit + 1))


def dtype_of(rng: np.random.Generator) -> np.dtype:
    return (F32, BF16)[rng.integers(2)]


def magnitude_of(rng: np.random.Generator) -> float:
    return float(rng.choice([1.0, 1.0, 1e-3, 30.0]))


def strided(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """Half of the time a view into a wider array whose other columns are NaN."""
    if rng.random() < 0.5:
        return array
    left, right = (int(n) for n in rng.integers(0, 9, 2))
    wide = np.full((*array.shape[:-1], left + array.shape[-1] + right), np.nan).astype(array.dtype)
    wide[..., left : left + array.shape[-1]] = array
    return wide[..., left : left + array.shape[-1]]


def case_rms_norm(rng, device):
    dtype, tokens, hidden = dtype_of(rng), extent(rng, 12), extent(rng, 300)
    x = reference.random(rng, (tokens, hidden), dtype, magnitude_of(rng))
    weight = reference.random(rng, (hidden,), dtype)
    eps = float(rng.choice([1e-5, 1e-6, 1e-2]))
    out = poisoned(x.shape, dtype, device)
    ops.rms_norm(on(strided(rng, x), device), on(weight, device), eps=eps, out=out)
    expected, magnitude = reference.rms_norm(x, weight, eps)
    reference.check(out, expected, magnitude=magnitude, terms=hidden)


def case_layer_norm(rng, device):
    """Of a sum half of the time, which it keeps."""
    dtype, tokens, hidden = dtype_of(rng), extent(rng, 12), extent(rng, 300)
    x, residual = (reference.random(rng, (tokens, hidden), dtype, magnitude_of(rng)) for _ in "xr")
    weight, bias = (reference.random(rng, (hidden,), dtype) for _ in "wb")
    eps, out = float(rng.choice([1e-5, 1e-6, 1e-2])), poisoned(x.shape, dtype, device)
    factors = on(weight, device), on(bias, device)
    if rng.random() < 0.5:
        ops.layer_norm(on(strided(rng, x), device), *factors, eps=eps, out=out)
    else:
        total = (x.astype(F32) + residual.astype(F32)).astype(dtype)
        stream = reference.ek.from_numpy(residual, device)
        ops.add_layer_norm(on(strided(rng, x), device), stream, *factors, eps=eps, out=out)
        np.testing.assert_array_equal(stream.numpy(), total)
        x = total
    expected, magnitude = reference_vision.layer_norm(x, weight, bias, eps)
    reference.check(out, expected, magnitude=magnitude, terms=hidden)


def case_linear(rng, device):
    x_dtype = dtype_of(rng)
    w_dtype = BF16 if x_dtype == BF16 else dtype_of(rng)
    out_dtype = x_dtype if rng.random() < 0.7 else F32
    tokens, k, n = extent(rng, 30), extent(rng, 200), extent(rng, 150)
    x = reference.random(rng, (tokens, k), x_dtype, magnitude_of(rng))
    weight = reference.random(rng, (n, k), w_dtype, magnitude_of(rng))
    bias = reference.random(rng, (n,), w_dtype) if rng.random() < 0.3 else None
    packed = device == "cpu" and rng.random() < 0.7
    given = ops.linear_pack(weight) if packed else on(weight, device)
    out = poisoned((tokens, n), out_dtype, device)
    given_bias = None if bias is None else on(bias, device)
    activation = (None, None, None, "gelu", "quick_gelu")[rng.integers(5)]
    ops.linear(on(strided(rng, x), device), given, given_bias, activation=activation, out=out)
    expected, magnitude = reference.linear(x, weight, bias)
    if activation:
        expected, magnitude = reference_vision.activated_linear(x, weight, bias, activation)
    reference.check(out, expected, magnitude=magnitude, terms=k)


def case_wint8_linear(rng, device):
    dtype = dtype_of(rng)
    out_dtype = dtype if rng.random() < 0.7 else F32
    tokens, k, n = extent(rng, 30), extent(rng, 200), extent(rng, 150)
    x = reference.random(rng, (tokens, k), dtype, magnitude_of(rng))
    weight = rng.integers(-128, 128, (n, k)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, n).astype(np.float32)
    bias = reference.random(rng, (n,), dtype_of(rng)) if rng.random() < 0.3 else None
    int8_activations = device == "cpu" and bool(rng.random() < 0.5)
    packed = device == "cpu" and rng.random() < 0.7
    out = poisoned((tokens, n), out_dtype, device)
    ops.wint8_linear(
        on(strided(rng, x), device),
        ops.wint8_pack(weight) if packed else on(weight, device),
        on(scale, device),
        None if bias is None else on(bias, device),
        int8_activations=int8_activations,
        out=out,
    )
    if int8_activations:
        expected = reference.w8a8_linear(x, weight, scale, bias).astype(out_dtype)
        np.testing.assert_array_equal(out.numpy(), expected)
    else:
        expected, magnitude = reference.wint8_linear(x, weight, scale, bias)
        reference.check(out, expected, magnitude=magnitude, terms=k)


def case_attention(rng, device):
    group, kv_heads = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    lengths = []
    for _ in range(rng.integers(1, 4)):
        total = extent(rng, 90)
        queries = 1 if rng.random() < 0.5 else int(rng.integers(0, min(total, 12) + 1))
        lengths.append((queries, total))
    batch = PagedBatch(
        rng,
        lengths,
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=2 * extent(rng, 40),
        block_size=int(rng.choice([16, 32, 64])),
        dtype=dtype_of(rng),
        scale=float(rng.choice([1.0, 0.1, 4.0])),
    )
    causal, scale = bool(rng.random() < 0.8), float(rng.choice([0.05, 0.125, 1.0]))
    out = poisoned(batch.query.shape, batch.query.dtype, device)
    arguments = batch.arguments(device)
    query, k_cache, v_cache = (arguments.pop(name) for name in ("query", "k_cache", "v_cache"))
    ops.attention(query, k_cache, v_cache, **arguments, causal=causal, scale=scale, out=out)
    expected, magnitude = batch.expected(scale=scale, causal=causal, device=device)
    reference.check(out, expected, magnitude=magnitude, terms=batch.max_seq_len)


def case_varlen_attention(rng, device):
    group, kv_heads = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    batch = SegmentBatch(
        rng,
        [int(rng.integers(0, extent(rng, 90) + 1)) for _ in range(rng.integers(1, 5))],
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=2 * extent(rng, 40),
        dtype=dtype_of(rng),
        scale=float(rng.choice([1.0, 0.1, 4.0])),
    )
    scale = float(rng.choice([0.05, 0.125, 1.0]))
    out = poisoned(batch.query.shape, batch.query.dtype, device)
    ops.varlen_attention(**batch.arguments(device), scale=scale, out=out)
    expected, magnitude = batch.expected(scale=scale, device=device)
    reference.check(out, expected, magnitude=magnitude, terms=max(batch.max_seqlen, 1))


def case_rope(rng, device):
    dtype, tokens, head_dim = dtype_of(rng), extent(rng, 9), 2 * extent(rng, 64)
    query, key = (reference.random(rng, (tokens, extent(rng, 6), head_dim), dtype) for _ in "qk")
    positions = rng.integers(0, 1 << int(rng.integers(1, 22)), tokens)
    theta = float(rng.choice([10000.0, 500000.0]))
    table = reference.rope_table(positions, head_dim, theta)
    expected = [reference.rope(x, table) for x in (query, key)]
    rotated = [reference.ek.from_numpy(x, device) for x in (query, key)]
    ops.rope(*rotated, on(positions, device), theta=theta)
    for got, (value, magnitude) in zip(rotated, expected, strict=True):
        reference.check(got, value, magnitude=magnitude, terms=2)


def case_rope_2d(rng, device):
    """With a table of its own; and that of text with media, the same where all three rows are."""
    dtype, tokens, head_dim = dtype_of(rng), extent(rng, 9), 4 * extent(rng, 32)
    query, key = (reference.random(rng, (tokens, extent(rng, 6), head_dim), dtype) for _ in "qk")
    positions = rng.integers(0, 1 << int(rng.integers(1, 12)), (2, tokens))
    table = ops.rope_2d_table(on(positions, device), head_dim)
    exact = reference_vision.rope_2d_table(positions, head_dim, 10000.0)
    np.testing.assert_allclose(table.numpy(), exact, rtol=0, atol=2**-24)
    rotated = [reference.ek.from_numpy(x, device) for x in (query, key)]
    ops.rope_2d(*rotated, table)
    for got, before in zip(rotated, (query, key), strict=True):
        expected, magnitude = reference_vision.rope_2d(before, reference.f64(table.numpy()))
        reference.check(got, expected, magnitude=magnitude, terms=2)
    axes = rng.integers(0, 1 << 20, (3, tokens))
    allocation = int(rng.integers(0, head_dim // 2 + 1))
    options = {"theta": 500000.0, "freq_allocation": allocation - allocation % 2}
    media = ops.mrope_table(on(axes, device), head_dim, **options)
    exact = reference_vision.mrope_table(axes, head_dim, **options)
    np.testing.assert_allclose(media.numpy(), exact, rtol=0, atol=2**-24)


def case_gelu(rng, device):
    dtype, tokens, width = dtype_of(rng), extent(rng, 12), extent(rng, 200)
    name = ("gelu", "quick_gelu")[rng.integers(2)]
    # Below -13 gelu is denormal; test_activation.py has all bfloat16 inputs.
    x = reference.random(rng, (tokens, width), dtype, min(magnitude_of(rng), 2.0))
    out = poisoned(x.shape, dtype, device)
    getattr(ops, name)(on(strided(rng, x), device), out=out)
    expected, magnitude = getattr(reference_vision, name)(x)
    reference.check(out, expected, magnitude=magnitude, terms=1)


def case_silu_and_mul(rng, device):
    dtype, tokens, width = dtype_of(rng), extent(rng, 12), extent(rng, 200)
    # Gates below -87 have a denormal sigmoid; test_activation.py has all bfloat16 gates.
    x = reference.random(rng, (tokens, 2 * width), dtype, min(magnitude_of(rng), 10.0))
    out = poisoned((tokens, width), dtype, device)
    ops.silu_and_mul(on(strided(rng, x), device), out=out)
    expected = reference.silu_and_mul(x)
    reference.check(out, expected, magnitude=np.abs(expected), terms=1)


def case_embedding(rng, device):
    dtype, vocab, hidden, tokens = dtype_of(rng), extent(rng, 90), extent(rng, 100), extent(rng, 20)
    weight = reference.random(rng, (vocab, hidden), dtype)
    ids = rng.integers(0, vocab, tokens)
    table = ops.linear_pack(weight).tensor if device == "cpu" and rng.random() < 0.5 else weight
    out_dtype = dtype_of(rng)
    out = poisoned((tokens, hidden), out_dtype, device)
    ops.embedding(on(ids, device), on(table, device), vocab_size=vocab, out=out)
    np.testing.assert_array_equal(out.numpy(), weight[ids].astype(out_dtype))
    if device == "cpu":
        quantized, scale = (tensor.numpy() for tensor in ops.wint8_quantize(weight))
        table = ops.wint8_pack(quantized) if rng.random() < 0.5 else quantized
        ops.embedding(ids, table, scale=scale, out=out)
        expected = scale[ids, None] * quantized[ids].astype(np.float32)
        np.testing.assert_array_equal(out.numpy(), expected.astype(out_dtype))
    values, scale = reference.wint4_quantize(weight)
    pairs = reference.nibbles(values)
    packed = device == "cpu" and rng.random() < 0.5
    table = ops.wint4_pack(pairs, hidden) if packed else on(pairs, device)
    ops.embedding(on(ids, device), table, scale=on(scale, device), out=out)
    expected = scale[ids, None] * values[ids].astype(np.float32)
    np.testing.assert_array_equal(out.numpy(), expected.astype(out_dtype))


def case_moe_route(rng, device):
    tokens, experts = extent(rng, 12), extent(rng, 300 if rng.random() < 0.2 else 130)
    top_k = min(experts, int(rng.integers(1, 9)) if rng.random() < 0.8 else extent(rng, experts))
    logits = reference.random(rng, (tokens, experts), F32, float(rng.choice([1.0, 0.1, 8.0, 60.0])))
    if rng.random() < 0.3:  # many equal scores
        logits = np.round(logits)
    bias = reference.random(rng, (experts,), F32, float(rng.choice([0.0, 0.02, 1.0, 1e30])))
    if rng.random() < 0.2:
        logits[rng.integers(tokens), rng.integers(experts)] = rng.choice([np.nan, np.inf, -np.inf])
    norm_min = float(rng.choice([1e-12, 1e-12, 0.1]))
    flags = reference.ek.from_numpy(np.zeros(tokens, np.uint8), device)
    weights, ids = ops.moe_route(
        on(strided(rng, logits), device), on(bias, device), top_k, norm_min=norm_min, flags=flags
    )
    expected = reference_moe.moe_route(logits, bias, top_k, norm_min)
    for got, wanted in zip((weights, ids, flags), expected, strict=True):
        np.testing.assert_array_equal(got.numpy().view(np.uint8), wanted.view(np.uint8))


def case_moe_route_of_banks(rng, device):
    tokens, num_banks, experts = extent(rng, 12), int(rng.integers(2, 5)), extent(rng, 130)
    top_k = min(experts, int(rng.integers(1, 9)))
    logits = reference.random(rng, (tokens, num_banks * experts), F32, 2.0)
    bias = reference.random(rng, (num_banks, experts), F32, 0.02)
    if rng.random() < 0.5:
        logits[rng.integers(tokens), rng.integers(logits.shape[1])] = np.nan
    banks = rng.integers(0, num_banks, tokens).astype(np.uint8)
    flags = reference.ek.from_numpy(np.zeros(tokens, np.uint8), device)
    weights, ids = ops.moe_route(
        on(strided(rng, logits), device), on(bias, device), top_k, banks=on(banks, device),
        num_banks=num_banks, flags=flags,
    )  # fmt: skip
    expected = reference_moe.moe_route_of_banks(logits, bias, top_k, banks)
    for got, wanted in zip((weights, ids, flags), expected, strict=True):
        np.testing.assert_array_equal(got.numpy().view(np.uint8), wanted.view(np.uint8))


def case_moe_dispatch(rng, device):
    """A dispatch, experts that scale their rows, and the combination."""
    dtype, tokens, top_k, hidden = dtype_of(rng), extent(rng, 40), extent(rng, 9), extent(rng, 150)
    experts = extent(rng, 129) if rng.random() < 0.9 else int(rng.integers(513, 1000))
    some = rng.integers(0, experts, extent(rng, 20))  # the others are empty
    topk_ids = rng.choice(some, (tokens, top_k)).astype(np.int32)
    x = reference.random(rng, (tokens, hidden), dtype, magnitude_of(rng))
    permuted, offsets, inverse = ops.moe_dispatch(
        on(strided(rng, x), device), on(topk_ids, device), experts
    )
    expected_offsets, expected_inverse, source_rows = reference_moe.moe_sort(topk_ids, experts)
    np.testing.assert_array_equal(offsets.numpy(), expected_offsets)
    np.testing.assert_array_equal(inverse.numpy(), expected_inverse)
    np.testing.assert_array_equal(permuted.numpy(), x[source_rows])

    scale = rng.standard_normal(experts)[np.sort(topk_ids, axis=None), None]
    results = (reference.f64(x[source_rows]) * scale).astype(dtype)
    weights = rng.random((tokens, top_k)).astype(np.float32)
    shared = reference.random(rng, x.shape, dtype) if rng.random() < 0.5 else None
    out = poisoned(x.shape, dtype, device)
    ops.moe_combine(
        on(strided(rng, results), device), inverse, on(weights, device),
        shared=None if shared is None else on(strided(rng, shared), device), out=out,
    )  # fmt: skip
    expected, magnitude = reference_moe.moe_combine(results, expected_inverse, weights, shared)
    reference.check(out, expected, magnitude=magnitude, terms=top_k + 1)


def case_wint4_linear(rng, device):
    dtype, tokens = dtype_of(rng), extent(rng, 110 if rng.random() < 0.1 else 20)
    columns, rows = extent(rng, 2100 if rng.random() < 0.1 else 150), extent(rng, 150)
    x = reference.random(rng, (tokens, columns), dtype, magnitude_of(rng))
    weight = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, rows).astype(np.float32)
    bias = reference.random(rng, (rows,), dtype_of(rng)) if rng.random() < 0.5 else None
    given = reference.nibbles(weight)
    packs = device == "cpu" and rng.random() < 0.8
    given = ops.wint4_pack(given, columns) if packs else on(given, device)
    out = poisoned((tokens, rows), dtype, device)
    ops.wint4_linear(
        on(strided(rng, x), device),
        given,
        on(scale, device),
        None if bias is None else on(bias, device),
        out=out,
    )
    expected, magnitude = reference.wint8_linear(x, weight, scale, bias)
    reference.check(out, expected, magnitude=magnitude, terms=columns)


def case_fused_moe(rng, device):
    """Experts of any kind, and of several, in one to three banks."""
    dtype, tokens, top_k = dtype_of(rng), extent(rng, 24), extent(rng, 6)
    hidden, counts = extent(rng, 150), [extent(rng, 20) for _ in range(int(rng.integers(1, 4)))]
    kinds = ["bfloat16", "wint8", "wint4"] + ["float32"] * (dtype == F32)
    gate_up, down = [], []
    for count in counts:
        width, pack = extent(rng, 100), device == "cpu" and rng.random() < 0.8
        for side, rows, columns in ((gate_up, 2 * width, hidden), (down, hidden, width)):
            kind = str(rng.choice(kinds))
            side.append(Experts(rng, kind, count, rows, columns, pack=pack, device=device))
    experts = sum(counts)
    some = rng.integers(0, experts, extent(rng, 8))  # the others are empty
    topk_ids = rng.choice(some, (tokens, top_k)).astype(np.int32)
    x = reference.random(rng, (tokens, hidden), dtype)
    weights = rng.random((tokens, top_k)).astype(np.float32)
    shared = reference.random(rng, x.shape, dtype) if rng.random() < 0.5 else None
    out = poisoned(x.shape, dtype, device)
    ops.fused_moe(
        on(strided(rng, x), device), on(weights, device), on(topk_ids, device),
        [bank.given for bank in gate_up], [bank.given for bank in down],
        shared=None if shared is None else on(strided(rng, shared), device), out=out,
    )  # fmt: skip
    matrices = ([m for bank in side for m in bank.matrices] for side in (gate_up, down))
    expected, magnitude = reference_moe.fused_moe(x, weights, topk_ids, *matrices, shared)
    reference.check(out, expected, magnitude=magnitude)


def random_grid(rng, merge_size, most):
    """Images and videos of few patches."""
    return [
        (int(rng.choice([1, 1, 2, 4])), *(merge_size * extent(rng, most) for _ in range(2)))
        for _ in range(extent(rng, 4))
    ]


def case_patch_embed(rng, device):
    """By way of image_patches half of the time, whose rows are then held to the bit."""
    patch_size, merge_size = extent(rng, 8), int(rng.choice([1, 2, 2, 3]))
    grid = random_grid(rng, merge_size, 3)
    items = [
        rng.integers(0, 256, (t, rows * patch_size, columns * patch_size, 3)).astype(np.uint8)
        for t, rows, columns in grid
    ]
    levels, dtype = rng.standard_normal((3, 256)).astype(F32), dtype_of(rng)
    patches = reference.image_patches(items, levels, patch_size, merge_size).astype(dtype)
    pixels = on(np.concatenate([item.reshape(-1) for item in items]), device)
    sizes = {"patch_size": patch_size, "merge_size": merge_size}
    if rng.random() < 0.5:
        out = poisoned(patches.shape, dtype, device)
        ops.image_patches(pixels, np.array(grid), on(levels, device), **sizes, out=out)
        np.testing.assert_array_equal(out.numpy(), patches)
        return
    weight = reference.random(rng, (extent(rng, 60), patches.shape[1]), dtype)
    packed = device == "cpu" and rng.random() < 0.7
    given = ops.linear_pack(weight) if packed else on(weight, device)
    out = ops.patch_embed(pixels, given, np.array(grid), levels=on(levels, device), **sizes)
    expected, magnitude = reference.linear(patches, weight, None)
    reference.check(out, expected, magnitude=magnitude, terms=patches.shape[1])


def case_temporal_merge(rng, device):
    """And rows of what it gives to random places."""
    merge_size, dtype, hidden = int(rng.choice([1, 2, 2, 3])), dtype_of(rng), extent(rng, 100)
    grid = np.array(random_grid(rng, merge_size, 4))
    x = reference.random(rng, (int(np.prod(grid, axis=1).sum()) // merge_size**2, hidden), dtype)
    merged = ops.temporal_merge(on(strided(rng, x), device), grid, merge_size=merge_size)
    expected = reference.temporal_merge(x, grid, merge_size, 2)
    np.testing.assert_array_equal(merged.numpy(), expected)
    places = rng.permutation(len(expected) + extent(rng, 9))
    out = poisoned((len(places), 2 * hidden), dtype, device)
    ops.scatter_rows(merged, on(places[: len(expected)].astype(np.int32), device), out)
    np.testing.assert_array_equal(out.numpy()[places[: len(expected)]], expected)
    assert np.isnan(out.numpy()[places[len(expected) :]].astype(F32)).all()


# op -> (case, share of all cases)
CASES = {
    "rms_norm": (case_rms_norm, 0.05),
    "layer_norm": (case_layer_norm, 0.03),
    "linear": (case_linear, 0.1),
    "wint8_linear": (case_wint8_linear, 0.1),
    "patch_embed": (case_patch_embed, 0.02),
    "temporal_merge": (case_temporal_merge, 0.01),
    "wint4_linear": (case_wint4_linear, 0.06),
    "attention": (case_attention, 0.2),
    "varlen_attention": (case_varlen_attention, 0.05),
    "rope": (case_rope, 0.03),
    "rope_2d": (case_rope_2d, 0.02),
    "silu_and_mul": (case_silu_and_mul, 0.03),
    "gelu": (case_gelu, 0.02),
    "embedding": (case_embedding, 0.04),
    "moe_route": (case_moe_route, 0.08),
    "moe_route of banks": (case_moe_route_of_banks, 0.02),
    "moe_dispatch": (case_moe_dispatch, 0.08),
    "fused_moe": (case_fused_moe, 0.06),
}
TOTAL = int(os.environ.get("ERNIE_TEST_CASES", "2000"))


def seeds_of(op: str) -> list[int]:
    chosen = os.environ.get("ERNIE_TEST_CASE")
    if chosen:
        name, seed = chosen.split(":")
        return [int(seed)] if name == op else []
    return list(range(round(TOTAL * CASES[op][1])))


def test_shares_make_a_whole():
    assert sum(share for _, share in CASES.values()) == pytest.approx(1)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("op", CASES)
def test_random_cases(device, op):
    case, _ = CASES[op]
    seeds = seeds_of(op)
    ran = 0
    for seed in seeds:
        try:
            case(np.random.default_rng([seed, len(op)]), device)
        except Exception as error:
            message = f"ERNIE_TEST_CASE={op}:{seed} fails: {error}"
            raise AssertionError(message) from error
        ran += 1
    assert ran == len(seeds)
