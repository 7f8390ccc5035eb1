"""Arrays where kernels that read 16 bytes at once do not find them aligned; and arrays as bits."""

from __future__ import annotations

import numpy as np

import ernie_kernels as ek

from reference import on


def bits(x) -> np.ndarray:
    x = np.ascontiguousarray(x.numpy() if isinstance(x, ek.Tensor) else x)
    return x.view(np.uint8)


def same_bits(actual, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(bits(actual), bits(expected))


def in_wider_rows(array: np.ndarray, device: str, left: int, width: int):
    """The same rows inside wider ones, from column `left` on."""
    wide = np.zeros((len(array), width), array.dtype)
    wide[:, left : left + array.shape[1]] = array
    return ek.from_numpy(wide, device)[:, left : left + array.shape[1]]


def at_odd_addresses(array: np.ndarray, device: str):
    """Every row one element beyond a multiple of 16 bytes."""
    return in_wider_rows(array, device, 1, array.shape[1] // 16 * 16 + 32)


def at_odd_strides(array: np.ndarray, device: str):
    """The first row at such a multiple, the second, where its width is one, not."""
    return in_wider_rows(array, device, 0, array.shape[1] + 1)


PLACES = [on, at_odd_addresses, at_odd_strides]
