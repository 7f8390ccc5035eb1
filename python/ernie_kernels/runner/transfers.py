"""Copies between the host and a GPU that are queued one after the other and waited for together.

On the CPU the same classes copy at once, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ernie_kernels import _core
from ernie_kernels._core import Tensor, empty

# Of each array within an upload; what any of their types wants.
ALIGNMENT = 16


class Transfers:
    """A device, and how often all that was queued on it has been waited for."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.num_waits = 0

    def wait(self) -> None:
        """Until everything that was queued is done. On the CPU it is."""
        _core.synchronize(self.device)
        self.num_waits += 1


class Upload:
    """Arrays of one step that go to the device in one copy.

    Args:
        fields: type and shape of each.

    Attributes:
        tensors: where they are on the device.
    """

    def __init__(
        self, transfers: Transfers, fields: Mapping[str, tuple[type, tuple[int, ...]]]
    ) -> None:
        self._transfers = transfers
        self._filled_after = -1  # so many waits
        places, end = {}, 0
        for name, (dtype, shape) in fields.items():
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            places[name] = slice(end, end + nbytes)
            end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        self._host = _core.empty_pinned([end], "uint8", transfers.device)
        is_cpu = transfers.device == "cpu"
        self._device = self._host if is_cpu else empty([end], "uint8", transfers.device)
        memory = self._host.numpy()
        memory[:] = 0
        self._arrays: dict[str, np.ndarray] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, (dtype, shape) in fields.items():
            place = places[name]
            self._arrays[name] = memory[place].view(dtype).reshape(shape)
            elements = _core.view_as(self._device[place], np.dtype(dtype).name)
            self.tensors[name] = elements.reshape(*shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """The host's side, to be filled before :meth:`send`.

        Waits if what it was last filled with may still be on its way: a step was interrupted.
        """
        if self._filled_after == self._transfers.num_waits:
            self._transfers.wait()
        self._filled_after = self._transfers.num_waits
        return self._arrays

    def send(self) -> None:
        """Queue the copy. What is queued after it finds the arrays in :attr:`tensors`."""
        if self._device is not self._host:
            _core.queue_copy(self._device, self._host)


class Download:
    """An array that rows of the device's tensors are copied to.

    Attributes:
        array: what has been queued is there after the next wait.
    """

    def __init__(self, transfers: Transfers, dtype: str, shape: tuple[int, ...]) -> None:
        self._host = _core.empty_pinned(shape, dtype, transfers.device)
        self.array = self._host.numpy()

    def __len__(self) -> int:
        return len(self.array)

    def queue(self, rows: Tensor, first: int = 0) -> None:
        """Queue the copy of ``rows`` to ``array[first:]``."""
        _core.queue_copy(self._host[first : first + len(rows)], rows)
