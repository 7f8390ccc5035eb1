"""The target size and the bicubic resize: against transformers, and against the algorithm in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.resize import bicubic_resize, target_size

from pictures import noise

pytest.importorskip("PIL")

IMAGE = {"min_pixels": 56 * 56, "max_pixels": 6177 * 784}
FRAME = {"min_pixels": 299 * 784, "max_pixels": 1196 * 784}
FRACTION_BITS = 22  # of the taps of a filter for 8-bit pixels


def cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resized_rows(pixels: np.ndarray, width: int) -> np.ndarray:
    """One pass, along the second axis: taps in fixed point, one rounding to uint8."""
    stored = pixels.shape[1]
    scale = stored / width
    stretch = max(scale, 1.0)
    result = np.empty((pixels.shape[0], width, 3), np.uint8)
    for column in range(width):
        center, support = (column + 0.5) * scale, 2.0 * stretch
        first = max(0, int(center - support + 0.5))
        last = min(stored, int(center + support + 0.5))
        weights = cubic((np.arange(first, last) - center + 0.5) / stretch)
        taps = weights / weights.sum() * (1 << FRACTION_BITS)
        taps = np.trunc(taps + np.copysign(0.5, taps)).astype(np.int64)
        sums = np.einsum("rtc,t->rc", pixels[:, first:last].astype(np.int64), taps)
        result[:, column] = np.clip((sums + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS, 0, 255)
    return result


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = resized_rows(pixels, width)
    return resized_rows(rows.swapaxes(0, 1), height).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ((1, 1), (56, 56)),
        ((3, 200), (28, 308)),
        ((200, 3), (308, 28)),
        ((97, 61), (84, 56)),
        ((61, 97), (112, 28)),  # taller and narrower
        ((240, 60), (28, 56)),  # where releases differ: much less height, hardly less width
        ((250, 250), (28, 28)),
        ((56, 84), (56, 84)),
    ],
)
def test_every_pixel_is_that_of_the_fixed_point_algorithm(stored, wanted):
    pixels = noise(*stored)
    result = bicubic_resize(pixels, *wanted)
    np.testing.assert_array_equal(result, resized(pixels, *wanted))
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, pixels)


def test_the_order_of_the_passes_can_be_told():
    """The cases above would not notice a swap if the order made no difference to them."""
    pixels = noise(240, 60)
    swapped = resized(pixels.swapaxes(0, 1), 56, 28).swapaxes(0, 1)
    assert (swapped != bicubic_resize(pixels, 28, 56)).any()


def test_sizes_of_the_definition():
    assert target_size(1000, 1500, **IMAGE) == (1008, 1512)
    assert target_size(42, 70, **IMAGE) == (56, 56)  # 1.5 and 2.5 round to even
    assert target_size(1, 1, **IMAGE) == (56, 56)
    assert target_size(8000, 4000, **IMAGE) == (3108, 1540)
    assert target_size(1080, 1920, **FRAME) == (700, 1288)


@pytest.mark.parametrize("rule", ["transformers", "baidu"])
@pytest.mark.parametrize("limits", [IMAGE, FRAME])
def test_sizes_are_multiples_within_the_limits(rng, rule, limits):
    for height, width in rng.integers(1, 6000, (2000, 2)).tolist():
        if max(height, width) > 200 * min(height, width):
            continue
        rows, columns = target_size(height, width, rule=rule, **limits)
        assert rows % 28 == columns % 28 == 0
        assert rows * columns >= limits["min_pixels"]
        assert rows * columns <= limits["max_pixels"] or min(rows, columns) == 28


def test_row_42_extreme_aspects():
    for height, width in ((1, 201), (201, 1), (10, 2001)):
        with pytest.raises(LimitError, match=rf"{width} x {height}.*above 200"):
            target_size(height, width, **IMAGE)
    assert target_size(1, 200, **IMAGE) == (28, 812)
    assert target_size(1, 16384, rule="baidu", **IMAGE) == (28, 5600)  # cut to 28 x 5600
    assert target_size(16384, 1, rule="baidu", **IMAGE) == (5600, 28)


def test_row_42_no_extent():
    for size in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(InputError, match="at least 1 pixel"):
            target_size(*size, **IMAGE)


def test_baidus_rule_refuses_what_fits_no_limit():
    with pytest.raises(LimitError, match="no multiple of 28"):
        target_size(100, 20000, rule="baidu", min_pixels=784, max_pixels=28 * 2800)


@pytest.mark.oracle
@pytest.mark.parametrize("limits", [IMAGE, FRAME])
def test_sizes_equal_those_of_transformers(rng, limits):
    from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import (
        smart_resize,
    )

    sizes = np.concatenate(
        [
            rng.integers(1, 60, (2000, 2)),
            rng.integers(1, 17000, (4000, 2)),
            np.stack([rng.integers(1, 80, 2000), rng.integers(1, 17000, 2000)], axis=1),
            rng.integers(1, 200, (2000, 2)) * 14,  # ties of the rounding
        ]
    )
    compared = 0
    for height, width in sizes.tolist():
        if max(height, width) / min(height, width) > 200:
            continue
        ours = target_size(height, width, **limits)
        assert ours == smart_resize(height, width, 28, **limits), (height, width)
        compared += math.prod(ours) > 0
    assert compared > 8000
