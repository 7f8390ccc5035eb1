"""The experts' products on CUDA: that every kernel is right. What is launched:
test_grouped_gemm_plan.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from expert_cases import offsets_of
from grouped_plans import plan

from ernie_kernels import _core, ops
from simt import control

import reference
from reference import BF16, F32, on, poisoned

# ------------------------------------------------------------------------------------- every kernel

# Rows of each expert, and of which kernel and tile that is: none, one, a full tile, one row more.
COUNTS = {
    "narrow 8": [1, 0, 8, 3, 0, 9],
    "narrow 16": [7, 0, 17, 1, 12],
    "narrow 32": [33, 0, 20],
    "tile 64": [65, 0, 3, 70],
    "tile 128": [290, 40, 160],
}
# out_features (gated: half of the weight's rows), in_features of 16-byte pieces: slices of several
# rounds of loads for few rows, ends in the middle of a step.
SHAPES = {"bfloat16": [(70, 1064), (36, 264)], "int8": [(70, 1040), (36, 272)],
          "uint8": [(70, 2080), (36, 288)]}  # fmt: skip


class Experts:
    """Weights of some kind, on the device and as what they mean in float64."""

    def __init__(self, rng, kind: str, num_experts: int, rows: int, depth: int) -> None:
        self.scale = None
        if kind in ("float32", "bfloat16"):
            stored = reference.random(
                rng, (num_experts, rows, depth), BF16 if kind == "bfloat16" else F32
            )
            self.exact = reference.f64(stored)
        else:
            self.scale = rng.uniform(0.001, 0.1, (num_experts, rows)).astype(F32)
            if kind == "int8":
                stored = rng.integers(-128, 128, (num_experts, rows, depth)).astype(np.int8)
                values = stored
            else:
                values = rng.integers(-8, 8, (num_experts, rows, depth))
                nibbles = np.pad(values & 15, ((0, 0), (0, 0), (0, depth % 2)))
                stored = (nibbles[..., ::2] | nibbles[..., 1::2] << 4).astype(np.uint8)
            self.exact = values * reference.f64(self.scale)[..., None]
        self.on_device = ops.ExpertWeights(
            on(stored, "cuda"), num_experts, rows, depth,
            None if self.scale is None else on(self.scale, "cuda"),
        )  # fmt: skip

    def check(self, actual, x, offsets) -> None:
        for expert, (begin, end) in enumerate(itertools.pairwise(offsets)):
            expected, magnitude = reference.linear(x[begin:end], self.exact[expert], None)
            reference.check(
                actual[begin:end], expected, magnitude=magnitude, terms=self.exact.shape[2]
            )


def product(op, columns: int, x, experts: Experts, offsets, **kwargs) -> np.ndarray:
    """Into a given output, so without a workspace: the kernels of this repository alone."""
    kwargs = {name: on(array, "cuda") for name, array in kwargs.items()}
    rows = kwargs.get("source_rows", x)
    out = poisoned((len(rows), columns), x.dtype, "cuda")
    op(on(x, "cuda"), experts.on_device, on(offsets, "cuda"), out=out, **kwargs)
    return out.numpy()


def linear(x, experts: Experts, offsets, **kwargs) -> np.ndarray:
    columns = experts.on_device.out_features
    return product(ops.grouped_linear, columns, x, experts, offsets, **kwargs)


def silu_and_mul(x, experts: Experts, offsets, **kwargs) -> np.ndarray:
    columns = experts.on_device.out_features // 2
    return product(ops.grouped_linear_silu_and_mul, columns, x, experts, offsets, **kwargs)


def gate(gate_up: np.ndarray) -> np.ndarray:
    return ops.silu_and_mul(on(gate_up, "cuda")).numpy()


CASES = [
    (kind, which, *shape)
    for kind in SHAPES
    for which in COUNTS
    for shape in [*SHAPES[kind][: 1 if "narrow" in which else 0], SHAPES[kind][1], (20, 77)]
]


def test_cases_reach_every_kernel():
    reached = set()
    for kind, which, features, depth in CASES:
        counts = COUNTS[which]
        p = plan(sum(counts), len(counts), features, depth, weight=kind)
        reached.add((kind, p["kernel"].removesuffix("_bf16"), p["tile_tokens"], p["aligned"]))
    tiles = {("narrow", 8), ("narrow", 16), ("narrow", 32), ("tile", 64), ("tile", 128)}
    aligned = {(kind, *tile, True) for kind in SHAPES for tile in tiles} - {
        ("uint8", "narrow", 32, True)
    }
    unaligned = {(kind, *tile, False) for kind in SHAPES for tile in (("narrow", 8), ("tile", 64))}
    assert reached == aligned | unaligned


@pytest.mark.cuda
@pytest.mark.parametrize(("kind", "which", "features", "depth"), CASES)
def test_bf16_on_every_kernel(rng, kind, which, features, depth):
    """Plain against numpy, gated against the plain product of the same bits."""
    offsets = offsets_of(COUNTS[which])
    x = reference.random(rng, (int(offsets[-1]), depth), BF16)
    experts = Experts(rng, kind, len(COUNTS[which]), 2 * features, depth)
    gate_up = linear(x, experts, offsets)
    experts.check(gate_up, x, offsets)
    np.testing.assert_array_equal(silu_and_mul(x, experts, offsets), gate(gate_up))


@pytest.mark.cuda
@pytest.mark.parametrize(("features", "depth"), [(21, 328), (9, 77)])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "uint8"])
def test_float32_on_every_kernel(rng, kind, features, depth):
    offsets = offsets_of([1, 0, 9, 3])
    x = reference.random(rng, (13, depth), F32)
    experts = Experts(rng, kind, 4, 2 * features, depth)
    gate_up = linear(x, experts, offsets)
    experts.check(gate_up, x, offsets)
    np.testing.assert_array_equal(silu_and_mul(x, experts, offsets), gate(gate_up))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 32, 128])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_every_weight_at_every_k_is_exact(kind, rows, dtype):
    """x picks one weight an output, and the weights of a row are all that there are."""
    depth = 256 if kind == "int8" else 128
    values = (np.arange(17)[:, None] * 7 + np.arange(depth)) % depth - depth // 2
    if kind == "uint8":
        values = values % 16 - 8
        stored = (values[:, ::2] & 15 | (values[:, 1::2] & 15) << 4).astype(np.uint8)
    else:
        stored = values.astype(np.int8)
    scale = (2.0 ** np.arange(-8, 9)).astype(F32)
    weight = ops.ExpertWeights(on(stored[None], "cuda"), 1, 17, depth, on(scale[None], "cuda"))
    for first in range(0, depth, max(rows, 64)):
        x = np.eye(depth, dtype=dtype)[first : first + rows]
        offsets = on(offsets_of([len(x)]), "cuda")
        got = ops.grouped_linear(on(x, "cuda"), weight, offsets).numpy()
        np.testing.assert_array_equal(got, (values.T[first : first + rows] * scale).astype(dtype))


@pytest.mark.cuda
@pytest.mark.parametrize(("which", "dtype"), [*((w, BF16) for w in COUNTS), ("narrow 8", F32)])
def test_rows_are_gathered_by_their_source(rng, which, dtype):
    offsets = offsets_of(COUNTS[which])
    x = reference.random(rng, (11, 72), dtype)
    rows = rng.integers(0, 11, int(offsets[-1])).astype(np.int32)
    experts = Experts(rng, "bfloat16", len(COUNTS[which]), 40, 72)
    expected = linear(x[rows], experts, offsets)
    np.testing.assert_array_equal(linear(x, experts, offsets, source_rows=rows), expected)
    gated = silu_and_mul(x, experts, offsets, source_rows=rows)
    np.testing.assert_array_equal(gated, gate(expected))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "uint8"])
@pytest.mark.parametrize("off", ["x", "weight", "x's rows", "out"])
@pytest.mark.parametrize("which", ["narrow 8", "tile 64"])
def test_rows_off_16_bytes(rng, which, off, kind):
    offsets = offsets_of(COUNTS[which])
    features, depth, rows = 36, 288, int(offsets[-1])
    x = reference.random(rng, (rows, depth), BF16)
    experts = Experts(rng, kind, len(COUNTS[which]), features, depth)
    wide = np.full((rows, depth + 16), np.nan, F32).astype(BF16)
    first = {"x": 1, "x's rows": 8}.get(off, 0)
    wide[:, first : first + depth] = x
    width = depth + {"x": 16, "x's rows": 9}.get(off, 8)
    given_x = on(wide[:, :width].copy(), "cuda")[:, first : first + depth]
    weight = experts.on_device
    stored = weight.weight.numpy()
    skip = 1 if off == "weight" else 16
    flat = np.concatenate([np.zeros(skip, stored.dtype), stored.ravel()])
    given = on(flat, "cuda")[skip:].reshape(*stored.shape)
    weight = ops.ExpertWeights(given, len(stored), features, depth, weight.scale)
    room = on(np.full((rows, features + 3), 7, F32).astype(BF16), "cuda")
    begin = 1 if off == "out" else 0
    out = room[:, begin : begin + features]
    ops.grouped_linear(given_x, weight, on(offsets, "cuda"), out=out)
    experts.check(room.numpy()[:, begin : begin + features], x, offsets)
    assert np.all(room.numpy()[:, :begin] == 7)
    assert np.all(room.numpy()[:, begin + features :] == 7)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "counts",
    [[0] * 5 + [1] + [0] * 600, [0, 0, 40, 0], [3] * 300, [26] * 130, [1] * 70],
    ids=["one row", "one expert", "of 300", "of 130", "of 70"],
)
def test_experts_are_found_among_any_number(rng, counts):
    """The blocks' search goes through 128 or 256 experts at a time."""
    offsets = offsets_of(counts)
    x = reference.random(rng, (int(offsets[-1]), 8), BF16)
    experts = Experts(rng, "bfloat16", len(counts), 3, 8)
    experts.check(linear(x, experts, offsets), x, offsets)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("scale", [1, 30], ids=["narrow", "tile"])
def test_any_offsets_and_sources_stay_in_bounds(rng, scale, dtype):
    """What the contract excludes: rows of no expert stay as they are, sources count as the nearest
    token. The SIMT machine sees what is read and written."""
    rows = 9 * scale
    x = reference.random(rng, (5, 40), dtype)
    experts = Experts(rng, "bfloat16", 4, 6, 40)
    sources = rng.choice([-(2**31), -1, 0, 4, 5, 2**31 - 1], rows).astype(np.int32)
    offsets = np.array([-(2**62), 3 * scale, 2 * scale, 6 * scale, 2**62], np.int64)
    out = poisoned((rows, 6), dtype, "cuda")
    out = ops.grouped_linear(
        on(x, "cuda"), experts.on_device, on(offsets[[0, 1, 1, 3, 4]], "cuda"),
        source_rows=on(sources, "cuda"), out=out,
    )  # fmt: skip
    experts.check(
        out.numpy(), x[np.clip(sources, 0, 4)], [0, 3 * scale, 3 * scale, 6 * scale, rows]
    )
    out = poisoned((rows, 6), dtype, "cuda")
    backwards = on(np.array([2**62, rows, 5, -1, -(2**62)], np.int64), "cuda")
    ops.grouped_linear(
        on(x, "cuda"), experts.on_device, backwards, source_rows=on(sources, "cuda"), out=out
    )
    assert np.isnan(out.numpy().astype(F32)).all()


@pytest.mark.cuda
@pytest.mark.parametrize(("rows", "features", "depth"), [(0, 5, 8), (3, 0, 8), (3, 5, 0)])
def test_nothing_to_multiply(rng, rows, features, depth):
    experts = Experts(rng, "bfloat16", 2, 2 * features, depth)
    x, offsets = np.ones((rows, depth), BF16), offsets_of([rows, 0])
    np.testing.assert_array_equal(linear(x, experts, offsets), np.zeros((rows, 2 * features)))
    np.testing.assert_array_equal(silu_and_mul(x, experts, offsets), np.zeros((rows, features)))


# ----------------------------------------------------------------------------------------- CUTLASS


@pytest.mark.cuda
@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("counts", [[130], [0, 257, 0, 300], [200, 56]], ids=str)
def test_cutlass_gets_the_problems_of_the_experts(rng, counts, gathers):
    """On the SIMT machine a plain kernel reads them in its place."""
    offsets = offsets_of(counts)
    rows = int(offsets[-1])
    wide = reference.random(rng, (17 if gathers else rows, 40), BF16)
    x = wide[:, :24]
    sources = rng.integers(0, 17, rows).astype(np.int32) if gathers else None
    experts = Experts(rng, "bfloat16", len(counts), 16, 24)
    given = on(wide, "cuda")[:, :24], experts.on_device, on(offsets, "cuda")
    kwargs = {"source_rows": on(sources, "cuda")} if gathers else {}
    got = ops.grouped_linear(*given, **kwargs)
    experts.check(got.numpy(), x[sources] if gathers else x, offsets)
    gated = ops.grouped_linear_silu_and_mul(*given, **kwargs)
    np.testing.assert_array_equal(gated.numpy(), gate(got.numpy()))


@pytest.mark.cuda
@pytest.mark.parametrize("offset", [16, 48, 240])
def test_a_workspace_begins_at_any_16_bytes(rng, offset):
    """TMA descriptors, which lie in it, want 64. Nothing is written beside it."""
    offsets, x = offsets_of([130, 126]), reference.random(rng, (256, 24), BF16)
    experts = Experts(rng, "bfloat16", 2, 32, 24)
    given = on(x, "cuda"), experts.on_device, on(offsets, "cuda")
    for op, columns in ((ops.grouped_linear, 32), (ops.grouped_linear_silu_and_mul, 16)):
        gated = op is ops.grouped_linear_silu_and_mul
        expected = op(*given).numpy()
        out = poisoned((256, columns), BF16, "cuda")
        weight = experts.on_device.weight
        wanted = _core.grouped_linear_workspace(out, given[0], weight, gated, False)
        if wanted is None:
            assert gated  # on sm_80 only the plain product runs on CUTLASS's kernel
            continue
        nbytes = len(wanted)
        room = on(np.full(offset + nbytes + 32, 0xAA, np.uint8), "cuda")
        op(*given, out=out, workspace=room[offset : offset + nbytes])
        np.testing.assert_array_equal(out.numpy(), expected)
        assert (room.numpy()[:offset] == 0xAA).all()
        assert (room.numpy()[offset + nbytes :] == 0xAA).all()


# ----------------------------------------------------------------------------------- a row's bits


@pytest.mark.one_seed
@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "uint8", "float32"])
def test_a_row_depends_on_itself_and_its_expert_alone(rng, kind):
    """In one expert with any number of others, and among other experts: every kernel."""
    depth, x_dtype = 296 if kind == "bfloat16" else 288, F32 if kind == "float32" else BF16
    experts = Experts(rng, kind, 3, 22, depth)
    x = reference.random(rng, (200, depth), x_dtype)
    for expert in (0, 2):
        counts = [0, 0, 0]
        counts[expert] = 200
        together = linear(x, experts, offsets_of(counts))
        for begin, end in [(0, 1), (199, 200), (5, 14), (3, 30), (0, 64), (100, 185)]:
            counts = [2, 3, 1]
            counts[expert] = end - begin
            first = sum(counts[:expert])
            rows = np.concatenate([x[:first], x[begin:end], x[: sum(counts[expert + 1 :])]])
            alone = linear(rows, experts, offsets_of(counts))[first : first + end - begin]
            np.testing.assert_array_equal(alone, together[begin:end])


@pytest.mark.cuda
@pytest.mark.parametrize("which", ["narrow 8", "narrow 32", "tile 64"])
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_the_bits_are_those_of_the_linear_op(rng, kind, which):
    offsets = offsets_of(COUNTS[which])
    x = reference.random(rng, (int(offsets[-1]), 336), BF16)
    experts = Experts(rng, kind, len(COUNTS[which]), 30, 336)
    got = linear(x, experts, offsets)
    _core.set_batch_invariant(True)
    try:
        for expert, (begin, end) in enumerate(itertools.pairwise(offsets)):
            if begin == end:
                continue
            rows, weight = on(x[begin:end], "cuda"), experts.on_device.weight[expert]
            if kind == "int8":
                expected = ops.wint8_linear(rows, weight, experts.on_device.scale[expert])
            else:
                expected = ops.linear(rows, weight)
            np.testing.assert_array_equal(got[begin:end], expected.numpy())
    finally:
        _core.set_batch_invariant(False)


@pytest.mark.cuda
@pytest.mark.skipif(not control.is_loaded(), reason="asks the SIMT machine what was called")
def test_offsets_are_never_read_by_the_host(rng):
    offsets = offsets_of([3, 0, 2])
    x, experts = reference.random(rng, (5, 16), BF16), Experts(rng, "uint8", 3, 6, 16)
    given_x, given_offsets = on(x, "cuda"), on(offsets, "cuda")
    out = poisoned((5, 6), BF16, "cuda")
    with control.recorded() as calls:
        ops.grouped_linear(given_x, experts.on_device, given_offsets, out=out)
    assert not [c for c in calls if "Memcpy" in str(c) or "Synchronize" in str(c)]
