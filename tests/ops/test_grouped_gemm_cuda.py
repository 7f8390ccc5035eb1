"""The experts' products on CUDA: what is launched and where rows lie, asked without a GPU; and on a
GPU, that every kernel is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops
from simt import control

import reference
from reference import BF16, F32, on, poisoned

# num_rows, num_experts: a decode step of 1 to 64 tokens of the 21B (64 experts, 6 a token), prefill,
# one expert, as many as there may be.
ROWS = [
    (6, 64),
    (48, 64),
    (384, 64),
    (768, 64),
    (3072, 64),
    (24576, 64),
    (1, 1),
    (300, 1),
    (9, 4096),
]
# out_features, in_features: the 21B's two products and the 300B's, and awkward ones.
WEIGHTS = [(1536, 2560), (2560, 1536), (3584, 8192), (8192, 3584), (1, 1), (17, 33)]
DTYPES = {"bfloat16": ["bfloat16", "int8", "uint8"],
          "float32": ["float32", "bfloat16", "int8", "uint8"]}  # fmt: skip
STEP = {"bfloat16": 32, "int8": 64, "uint8": 128}


def plan(rows: int, experts: int, features: int, depth: int, **kwargs) -> dict:
    step = 32 if kwargs.get("x") == "float32" else STEP[kwargs.get("weight", "bfloat16")]
    kwargs.setdefault("inputs_aligned", depth % (step // 4) == 0)
    return _core.cuda_grouped_plan(rows, experts, features, depth, **kwargs)


# ------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("x", "weight"), [(x, weight) for x, weights in DTYPES.items() for weight in weights]
)
def test_plan_covers_the_output_and_fits(x, weight, gated):
    step = 32 if x == "float32" else STEP[weight]
    for (rows, experts), (features, depth) in itertools.product(ROWS, WEIGHTS):
        p = plan(rows, experts, features, depth, x=x, weight=weight, gated=gated)
        assert 0 <= p["feature_blocks"] * p["tile_features"] - features < p["tile_features"]
        assert p["token_blocks"] * p["feature_blocks"] < 2**31
        assert p["shared_bytes"] <= 96 << 10  # beside static shared memory, on any GPU from 8.0 on
        assert p["threads"] in (128, 256)
        assert p["kernel"] in ({"narrow_f32"} if x == "float32" else {"narrow_bf16", "tile_bf16"})
        assert p["slice"] % step == 0
        assert p["slice"] * _core.GEMM_SLICES >= depth
        assert p["slice"] - step < max(depth / _core.GEMM_SLICES, 1)


@pytest.mark.parametrize("weight", ["bfloat16", "int8", "uint8"])
@pytest.mark.parametrize(("features", "depth"), WEIGHTS)
def test_plan_keeps_one_order_of_sums(features, depth, weight):
    plans = [plan(*rows, features, depth, weight=weight) for rows in ROWS]
    assert len({p["slice"] for p in plans}) == 1


@pytest.mark.parametrize(
    ("tokens", "bf16", "wint4"),
    [
        (1, "narrow_bf16 8x16x0", "narrow_bf16 8x32x0"),
        (32, "narrow_bf16 8x16x0", "narrow_bf16 8x32x0"),
        (64, "narrow_bf16 16x16x0", "narrow_bf16 16x32x0"),
        (128, "narrow_bf16 32x32x0", "narrow_bf16 32x16x0"),
        (512, "tile_bf16 64x64x32", "tile_bf16 64x64x128"),
        (4096, "tile_bf16 128x128x32", "tile_bf16 128x128x128"),
    ],
)
def test_plan_of_the_21b(tokens, bf16, wint4):
    for weight, want in (("bfloat16", bf16), ("uint8", wint4)):
        assert plan(6 * tokens, 64, 2560, 1536, weight=weight)["text"].startswith(want + " stages")
    gated = plan(6, 64, 1536, 2560, gated=True)
    assert (gated["tile_features"], gated["token_blocks"]) == (8, 6)


def test_plan_refuses_what_no_kernel_takes():
    with pytest.raises(ek.DeviceError, match=r"grouped_linear: no kernel for compute capability 7"):
        plan(8, 4, 8, 8, capability=75)
    with pytest.raises(ek.ArgumentError, match="grouped_linear: num_experts: expected at least 1"):
        plan(8, 0, 8, 8)
    with pytest.raises(ek.ArgumentError, match="grouped_linear_silu_and_mul: expected extents >="):
        plan(8, 4, -1, 8, gated=True)
    for extents in ((2**40, 4, 8, 8), (8, 4, 2**40, 8), (8, 4, 8, 2**40)):
        with pytest.raises(ek.UnsupportedError, match=r"grouped_linear.*1099511627776.*split the "):
            plan(*extents)


# ----------------------------------------------------------------------------------- where rows lie


def offsets_of(counts) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def row_tiles(offsets, num_rows: int, tile_rows: int) -> list[tuple[int, int, int]]:
    """Expert, first row and number of rows of each tile, in order."""
    tiles = []
    for expert, (begin, end) in enumerate(itertools.pairwise(int(o) for o in offsets)):
        index = 0
        while True:
            count, *rows = _core.cuda_grouped_row_tile(begin, end, num_rows, tile_rows, index)
            if index < count:
                tiles.append((expert, *rows))
            index += 1
            if index >= count:
                break
    return tiles


def test_row_tiles_hold_each_row_once(rng):
    for tile_rows, experts in itertools.product((8, 16, 32, 64, 128), (1, 5, 70)):
        counts = rng.integers(0, 3, experts) * rng.integers(0, 200, experts)
        offsets = offsets_of(counts)
        tiles = row_tiles(offsets, int(offsets[-1]), tile_rows)
        owner = [(e, row) for e, first, count in tiles for row in range(first, first + count)]
        assert owner == [(e, r) for e in range(experts) for r in range(*offsets[e : e + 2])]
        assert all(0 < count <= tile_rows for _, _, count in tiles)
        most = max(
            1, (int(offsets[-1]) + min(experts, int(offsets[-1])) * (tile_rows - 1)) // tile_rows
        )
        assert len(tiles) <= most


def test_a_grid_is_large_enough_and_no_larger():
    """One row more than whole tiles makes the most tiles."""
    for rows, experts in ROWS:
        p = plan(rows, experts, 64, 64)
        tile = p["tile_tokens"]
        counts = np.zeros(experts, np.int64)
        counts[: min(rows, experts)] = 1
        counts[0] += (rows - counts.sum()) // tile * tile
        counts[-1] += rows - counts.sum()
        tiles = len(row_tiles(offsets_of(counts), rows, tile))
        assert p["token_blocks"] - 1 <= tiles <= p["token_blocks"]


@pytest.mark.parametrize("begin", [-(2**63), -1, 0, 3, 10, 11, 2**40, 2**63 - 1])
@pytest.mark.parametrize("end", [-(2**63), -1, 0, 3, 10, 11, 2**40, 2**63 - 1])
def test_any_offsets_stay_within_the_rows(begin, end):
    tiles, first, count = _core.cuda_grouped_row_tile(begin, end, 10, 4, 0)
    expected = max(0, min(max(end, 0), 10) - min(max(begin, 0), 10))
    assert (tiles, count) == (-(-expected // 4), min(expected, 4))
    assert 0 <= first <= first + count <= 10


def test_source_rows_stay_within_the_tokens():
    for row, expected in ((-(2**31), 0), (-1, 0), (0, 0), (6, 6), (7, 6), (2**31 - 1, 6)):
        assert _core.cuda_grouped_source_row(row, 7) == expected
    assert _core.cuda_grouped_source_row(2**31 - 1, 2**40) == 2**31 - 1


def test_weight_rows_of_a_block():
    plain = [_core.cuda_grouped_weight_row(96, i, False, 1000) for i in range(64)]
    assert plain == [(96 + i, 96 + i) for i in range(64)]
    gated = [_core.cuda_grouped_weight_row(96, i, True, 1000) for i in range(64)]
    assert sorted(gated) == sorted((o, o + up) for o in range(96, 128) for up in (0, 1000))
    for i in range(64):  # a lane's two sums are eight weight rows apart: gate, then up
        if i % 16 < 8:
            assert gated[i][0] == gated[i][1] == gated[i + 8][0] == gated[i + 8][1] - 1000
    large = _core.cuda_grouped_weight_row(2**31 - 8, 15, True, 2**31)
    assert large == (2**31 - 1, 2**32 - 1)


def test_a_nibble_is_a_number_of_the_lowest_bfloat16_bits():
    """What weight.cuh widens by: u = nibble ^ 8 as the lowest bits of a bfloat16 is u 2^-133."""
    nibbles = np.arange(16)
    weights = np.where(nibbles < 8, nibbles, nibbles - 16)
    for shift, factor in ((0, 2.0**127), (4, 2.0**123)):
        lowest = ((nibbles ^ 8) << shift).astype(np.uint16).view(BF16).astype(np.float64)
        widened = (factor * lowest - 0.125).astype(BF16).astype(np.float64)
        np.testing.assert_array_equal(widened, weights / 64)


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
    aligned = {(kind, *tile, True) for kind in SHAPES for tile in tiles}
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


def cutlass_plan(rows: int, experts: int, features: int, depth: int, **kwargs) -> dict:
    return plan(rows, experts, features, depth, workspace_bytes=2**62, **kwargs)


@pytest.mark.parametrize(
    ("capability", "gated", "gathers", "kernel"),
    [
        (90, False, False, "sm90 128x128x64"),
        (90, True, True, "sm90 128x128x64"),
        (80, False, False, "sm80 128x128x32"),
        (80, False, True, "tile_bf16 64x64x32"),
        (80, True, False, "tile_bf16 64x32x32"),
        (120, False, False, "sm80 128x128x32"),
    ],
)
def test_cutlass_is_planned_for_many_rows(capability, gated, gathers, kernel):
    chosen = {"capability": capability, "gated": gated, "gathers": gathers}
    p = cutlass_plan(128 * 64, 64, 1536, 2560, **chosen)
    assert p["text"].startswith(kernel)
    if "sm" in kernel:
        assert p["token_blocks"] == 127
        assert p["feature_blocks"] == (24 if gated else 12)
    assert "sm" not in cutlass_plan(127 * 64, 64, 1536, 2560, **chosen)["kernel"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"inputs_aligned": False},
        {"outputs_aligned": False},
        {"batch_invariant": True},
        {"weight": "int8"},
        {"weight": "uint8"},
        {"x": "float32"},
    ],
    ids=str,
)
def test_cutlass_is_in_no_other_plan(kwargs):
    assert cutlass_plan(8192, 64, 2560, 1536)["kernel"] == "sm90"
    assert cutlass_plan(8192, 64, 2560, 1536, **kwargs)["kernel"] in ("tile_bf16", "narrow_f32")
    assert cutlass_plan(8192, 64, 2560, 1536, **kwargs)["workspace"] == 0


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("gathers", [False, True])
def test_less_workspace_leaves_cutlass_out(gated, gathers):
    shape, chosen = (8192, 64, 2560, 1536), {"gated": gated, "gathers": gathers}
    wanted = plan(*shape, **chosen)["workspace"]
    rows = 2 * (gathers * 1536 + gated * 2 * 2560)
    assert 0 <= wanted - 8192 * rows - 64 * 60 - 132 * 1024 < 10 * 256
    assert plan(*shape, **chosen, workspace_bytes=wanted)["kernel"] == "sm90"
    assert plan(*shape, **chosen, workspace_bytes=wanted - 1)["kernel"] == "tile_bf16"
    more = [plan(rows, *shape[1:], **chosen)["workspace"] for rows in range(8000, 9000, 64)]
    assert more == sorted(more)


@pytest.mark.cuda
@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("counts", [[130], [0, 257, 0, 300], [200, 56]], ids=str)
def test_cutlass_gets_the_problems_of_the_experts(rng, counts, gathers):
    """On the SIMT machine a plain kernel reads them in its place."""
    offsets = offsets_of(counts)
    rows = int(offsets[-1])
    x = reference.random(rng, (17 if gathers else rows, 24), BF16)
    sources = rng.integers(0, 17, rows).astype(np.int32) if gathers else None
    experts = Experts(rng, "bfloat16", len(counts), 16, 24)
    given = on(x, "cuda"), experts.on_device, on(offsets, "cuda")
    kwargs = {"source_rows": on(sources, "cuda")} if gathers else {}
    got = ops.grouped_linear(*given, **kwargs)
    experts.check(got.numpy(), x[sources] if gathers else x, offsets)
    gated = ops.grouped_linear_silu_and_mul(*given, **kwargs)
    np.testing.assert_array_equal(gated.numpy(), gate(got.numpy()))


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
