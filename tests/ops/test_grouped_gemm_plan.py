"""The experts' products on CUDA, asked without a GPU: what is launched, and where rows lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from expert_cases import offsets_of
from grouped_plans import STEP, plan

import ernie_kernels as ek
from ernie_kernels import _core

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
        assert p["threads"] == 256
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
        (128, "narrow_bf16 32x32x0", "narrow_bf16 16x32x0"),
        (512, "tile_bf16 64x128x32", "tile_bf16 64x128x128"),
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


# ----------------------------------------------------------------------------------------- CUTLASS


def cutlass_plan(rows: int, experts: int, features: int, depth: int, **kwargs) -> dict:
    return plan(rows, experts, features, depth, workspace_bytes=2**62, **kwargs)


@pytest.mark.parametrize(
    ("capability", "gated", "gathers", "kernel"),
    [
        (90, False, False, "sm90 128x128x64"),
        (90, True, True, "sm90 128x128x64"),
        (80, False, False, "sm80 128x128x32"),
        (80, False, True, "tile_bf16 64x128x32"),
        (80, True, False, "tile_bf16 64x64x32"),
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
