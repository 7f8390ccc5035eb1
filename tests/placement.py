"""Arrays where kernels do not expect them, at odd addresses or backwards; and arrays as bits."""

from __future__ import annotations

import ctypes

import numpy as np

import ernie_kernels as ek

from reference import on


def bits(x) -> np.ndarray:
    x = np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.numpy())
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


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
    ]


class Backwards:
    """The rows of a tensor, the last one first: no slice of a Tensor can be that."""

    def __init__(self, tensor: ek.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def numpy(self) -> np.ndarray:
        return self.tensor.numpy()[::-1]

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **_):
        capsule = self.tensor.__dlpack__()
        pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
        pointer_of.restype = ctypes.c_void_p
        pointer_of.argtypes = [ctypes.py_object, ctypes.c_char_p]
        view = DLTensor.from_address(pointer_of(capsule, b"dltensor"))
        step = view.strides[0]
        view.data += (max(view.shape[0], 1) - 1) * step * self.tensor.dtype.itemsize
        view.strides[0] = -step
        return capsule


def backwards(array: np.ndarray, device: str):
    """The same rows, each below the one before it."""
    reverse = array[::-1].copy()
    return reverse[::-1] if device == "cpu" else Backwards(ek.from_numpy(reverse, device))


PLACES = [on, at_odd_addresses, at_odd_strides, backwards]
