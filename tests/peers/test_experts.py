"""What went wrong with mixtures of experts in comparable systems, and that it does not happen here.

The numbers are rows of the catalogue of such failures. That routing cannot return unweighted logits
(the other half of a44) needs no test: there is no such option.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from ernie_kernels import ops

import reference
import reference_moe
from reference import BF16, F32, on

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("num_experts", [5, 700])
def test_a38_experts_without_tokens(device, rng, num_experts):
    """All on one, none on some, none at all."""
    last = num_experts - 1
    for ids in ([[last, last], [last, last]], [[0, last], [2, 0]], np.empty((0, 2))):
        topk_ids = np.asarray(ids, np.int32)
        x = reference.random(rng, (len(topk_ids), 9), F32)
        permuted, offsets, _ = ops.moe_dispatch(on(x, device), on(topk_ids, device), num_experts)
        expected, _, source_rows = reference_moe.moe_sort(topk_ids, num_experts)
        np.testing.assert_array_equal(offsets.numpy(), expected)
        np.testing.assert_array_equal(permuted.numpy(), x[source_rows])


def far_rows(rows: int, stride: int, hidden_size: int) -> np.ndarray:
    """Rows of bfloat16 that lie `stride` elements apart, in memory of which few pages are used."""
    no_reserve = 0x4000  # of Linux; Python 3.11 does not name it
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = mmap.mmap(-1, rows * stride * 2, flags=flags)
    return np.frombuffer(memory, np.uint16).view(BF16).reshape(rows, stride)[:, :hidden_size]


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is not reserved")
def test_a41_offsets_beyond_31_bits(rng):
    stride = (1 << 30) + 8  # the fourth row begins beyond 2^31 elements
    permuted, results = far_rows(4, stride, 24), far_rows(4, stride, 24)
    x = reference.random(rng, (2, 24), BF16)
    topk_ids = np.array([[2, 0], [1, 2]], np.int32)
    _, _, inverse = ops.moe_dispatch(x, topk_ids, 3, permuted=permuted)
    source_rows = reference_moe.moe_sort(topk_ids, 3)[2]
    np.testing.assert_array_equal(permuted, x[source_rows])
    results[...] = permuted
    weights = np.full((2, 2), 0.5, np.float32)
    np.testing.assert_array_equal(ops.moe_combine(results, inverse, weights).numpy(), x)


@pytest.mark.parametrize("num_experts", [16, 300])
@pytest.mark.parametrize(
    "row",
    [[NAN], [0.0, NAN, 1.0], [INF], [INF, -INF], [-INF], [0.0], [3e38], [-3e38, 3e38]],
    ids=str,
)
def test_a43_ids_are_distinct_and_in_range_whatever_the_logits(device, row, num_experts):
    logits = np.resize(np.array(row, np.float32), (2, num_experts))
    for bias in (0.0, -1e30, NAN):
        biases = on(np.full(num_experts, bias, np.float32), device)
        ids = ops.moe_route(on(logits, device), biases, 8)[1].numpy()
        assert ((ids >= 0) & (ids < num_experts)).all()
        assert all(len(set(chosen)) == 8 for chosen in ids.tolist())


@pytest.mark.parametrize("num_experts", [7, 100, 300])
@pytest.mark.parametrize("shift", [-1000.0, -100.0, 0.0, 100.0])
def test_a44_experts_do_not_depend_on_the_sign_of_the_logits(device, rng, shift, num_experts):
    logits = rng.integers(-40, 40, (5, num_experts)).astype(np.float32) / 8  # exact when shifted
    bias = on(np.zeros(num_experts, np.float32), device)
    weights, ids = (t.numpy() for t in ops.moe_route(on(logits, device), bias, 4))
    moved = ops.moe_route(on(logits + np.float32(shift), device), bias, 4)
    np.testing.assert_array_equal(moved[0].numpy(), weights)
    np.testing.assert_array_equal(moved[1].numpy(), ids)
