"""temporal_merge, spatial_merge, scatter_rows."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from placement import PLACES, backwards, same_bits
from reference import BF16, F32, on

DTYPES = [F32, BF16]


def zeros(*shape):
    return np.zeros(shape, F32)


# ---------------------------------------------------------------------------------- temporal_merge

MERGES = [
    ([(1, 2, 2)], 2, 2),
    ([(2, 2, 2)], 2, 2),
    ([(1, 4, 6), (4, 2, 4), (1, 2, 2), (6, 4, 2)], 2, 2),
    ([(3, 1, 2), (1, 3, 1), (6, 1, 1)], 1, 3),
    ([(5, 2, 2), (1, 2, 2)], 2, 1),
    ([(1 + i % 2, 2, 2) for i in range(130)], 2, 2),  # more than two launches
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 8, 17, 40])
@pytest.mark.parametrize(("grid", "merge_size", "temporal_size"), MERGES)
def test_frames_come_side_by_side(device, rng, grid, merge_size, temporal_size, hidden_size, dtype):
    array = np.array(grid, np.int64)
    num_rows = int((np.prod(array, axis=1) // merge_size**2).sum())
    x = reference.random(rng, (num_rows, hidden_size), dtype)
    x[0, 0] = np.nan
    sizes = {"merge_size": merge_size, "temporal_size": temporal_size}
    expected = reference.temporal_merge(x, array, merge_size, temporal_size)
    for place in PLACES:
        same_bits(ops.temporal_merge(place(x, device), array, **sizes), expected)
    wide = ek.from_numpy(np.zeros((len(expected), expected.shape[1] + 3), dtype), device)
    out = wide[:, 2 : 2 + expected.shape[1]]
    assert ops.temporal_merge(on(x, device), array, out=out, **sizes) is out
    padded = np.zeros(wide.shape, dtype)
    padded[:, 2 : 2 + expected.shape[1]] = expected
    same_bits(wide, padded)


def test_an_odd_number_of_frames_is_refused():
    message = (
        r"grid_thw: expected 1 frame, or a multiple of temporal_size=2, got \(3, 2, 2\) at ite"
    )
    with pytest.raises(ek.ArgumentError, match=f"^temporal_merge: {message}m 1"):
        ops.temporal_merge(zeros(4, 4), np.array([(1, 2, 2), (3, 2, 2)]))


@pytest.mark.parametrize("rows", [0, 1, 3, 10**6])
def test_rows_that_the_grid_does_not_tell_are_refused(rows):
    x = np.broadcast_to(zeros(1, 1), (rows, 1))
    with pytest.raises(ek.ArgumentError, match=r"x: expected shape \[blocks of grid_thw=2, "):
        ops.temporal_merge(x, np.array([(2, 2, 2)]))


def test_a_merge_of_rows_too_wide_for_64_bits_is_refused():
    x, nothing = ek.empty((0, 2**60), "float32"), np.empty((0, 3), np.int64)
    with pytest.raises(ek.ArgumentError, match="x: expected rows that can be put side by side"):
        ops.temporal_merge(x, nothing, temporal_size=1024)


def test_merging_nothing_gives_nothing(device):
    nothing = np.empty((0, 3), np.int64)
    assert ops.temporal_merge(on(zeros(0, 6), device), nothing).shape == (0, 12)


# ----------------------------------------------------------------------------------- spatial_merge


def test_spatial_merge_is_a_view(device):
    x = on(np.arange(48, dtype=F32).reshape(8, 6), device)
    merged = ops.spatial_merge(x)
    assert merged.shape == (2, 24)
    x = x if isinstance(x, np.ndarray) else x.numpy()
    np.testing.assert_array_equal(np.asarray(merged), x.reshape(2, 24))
    assert ops.spatial_merge(x, 1).shape == (8, 6)
    assert device != "cpu" or np.shares_memory(merged, x)


@pytest.mark.parametrize(
    ("x", "merge_size"), [(zeros(7, 6), 2), (zeros(8), 2), (zeros(8, 6), 3), (zeros(1, 4, 4), 1)]
)
def test_spatial_merge_wants_whole_blocks(x, merge_size):
    with pytest.raises(ek.ArgumentError, match=r"^spatial_merge: x: expected \[a multiple of"):
        ops.spatial_merge(x, merge_size)


def test_spatial_merge_of_what_is_no_tensor():
    with pytest.raises(TypeError, match=r"^spatial_merge: x: expected a Tensor or a num.*got list"):
        ops.spatial_merge([1.0])


@pytest.mark.parametrize("x", [zeros(8, 6)[:, :3], zeros(6, 8).T, zeros(8, 6)[::-1]])
def test_spatial_merge_never_copies(x):
    message = r"^spatial_merge: x: expected a contiguous tensor, got a strided view of shape \[8, "
    with pytest.raises(ek.ArgumentError, match=message):
        ops.spatial_merge(x)
    with pytest.raises(ek.ArgumentError, match=message):
        ops.spatial_merge(ek.from_numpy(zeros(8, 6))[:, :3])


@pytest.mark.parametrize(
    ("merge_size", "got"),
    [
        (0, "0"),
        (-1, "-1"),
        (1025, "1025"),
        (2**62, str(2**62)),
        (1 << 90000, "one of more than 64"),
    ],
    ids=["0", "-1", "1025", "large", "huge"],
)
def test_the_merge_size_has_bounds(merge_size, got):
    message = f"^spatial_merge: merge_size: expected a value from 1 to 1024, got {got}"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.spatial_merge(zeros(8, 6), merge_size)


@pytest.mark.parametrize("merge_size", ["2", 2.0, None])
def test_the_merge_size_is_an_integer(merge_size):
    with pytest.raises(TypeError, match="spatial_merge: merge_size: expected an integer, got "):
        ops.spatial_merge(zeros(8, 6), merge_size)


def test_a_merge_size_of_numpy_does_not_wrap():
    """16 * 16 is 0 in 8 bits."""
    assert ops.spatial_merge(zeros(512, 3), np.int8(16)).shape == (2, 768)


# ------------------------------------------------------------------------------------ scatter_rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "num_tokens", "hidden_size"), [(1, 1, 1), (3, 9, 8), (40, 50, 17), (70, 70, 264)]
)
def test_rows_go_to_their_places(device, rng, n, num_tokens, hidden_size, dtype):
    x = reference.random(rng, (n, hidden_size), dtype)
    x[0, 0] = np.nan
    before = reference.random(rng, (num_tokens, hidden_size), dtype)
    rows = rng.permutation(num_tokens)[:n].astype(np.int32)
    expected = before.copy()
    expected[rows] = x
    for place in PLACES:
        out = ek.from_numpy(before, device)
        assert ops.scatter_rows(place(x, device), on(rows, device), out) is out
        same_bits(out, expected)
    wide = ek.from_numpy(np.zeros((num_tokens, hidden_size + 3), dtype), device)
    ops.scatter_rows(on(x, device), on(rows, device), wide[:, 2 : 2 + hidden_size])
    padded = np.zeros(wide.shape, dtype)
    padded[rows, 2 : 2 + hidden_size] = x
    same_bits(wide, padded)


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ([3, 9], "9 at 1"),
        ([-1, 0], "-1 at 0"),
        ([8, 8], "8 again at 1"),
        ([0, -(2**31)], f"{-(2**31)} at 1"),
        ([2**31 - 1, 0], f"{2**31 - 1} at 0"),
    ],
)
def test_rows_out_of_range_or_twice_are_refused_and_nothing_written(rows, got):
    out = zeros(9, 4)
    message = f"^scatter_rows: rows: expected distinct rows from 0 to 8, got {got}"
    with pytest.raises(ek.ArgumentError, match=message):
        ops.scatter_rows(np.ones((2, 4), F32), np.array(rows, np.int32), out)
    assert not out.any()


@pytest.mark.cuda
@pytest.mark.parametrize("place", PLACES)
def test_a_gpu_skips_rows_out_of_range(rng, place):
    """The host does not see the rows: no address may come of a wrong one."""
    x, before = reference.random(rng, (6, 30), F32), reference.random(rng, (9, 30), F32)
    rows = np.array([3, 9, -1, 2**31 - 1, -(2**31), 8], np.int32)
    out = ek.from_numpy(before, "cuda")
    ops.scatter_rows(place(x, "cuda"), on(rows, "cuda"), out)
    before[[3, 8]] = x[[0, 5]]
    same_bits(out, before)


@pytest.mark.parametrize("hidden_size", [8, 17])
def test_outputs_may_lie_backwards(device, rng, hidden_size):
    x, rows = reference.random(rng, (4, hidden_size), F32), np.array([5, 0, 2, 3], np.int32)
    merged, scattered = (
        backwards(zeros(*shape), device) for shape in ((3, 2 * hidden_size), (6, hidden_size))
    )
    grid = np.array([(1, 2, 4), (2, 2, 2)])
    ops.temporal_merge(backwards(x, device), grid, out=merged)
    ops.scatter_rows(backwards(x, device), on(rows, device), scattered)
    expected = zeros(6, hidden_size)
    expected[rows] = x
    same_bits(merged, reference.temporal_merge(x, grid, 2, 2))
    same_bits(scattered, expected)


def test_rows_without_a_place_are_refused(device):
    one = on(zeros(1, 4), device), on(np.zeros(1, np.int32), device)
    with pytest.raises(
        ek.ArgumentError, match=r"^scatter_rows: out: expected rows for those of x, got shape \[0, "
    ):
        ops.scatter_rows(*one, on(zeros(0, 4), device))


def test_scattering_nothing_changes_nothing(device):
    out = ek.from_numpy(np.ones((3, 4), F32), device)
    ops.scatter_rows(on(zeros(0, 4), device), on(np.empty(0, np.int32), device), out)
    assert (out.numpy() == 1).all()
