"""Makes each call of the CUDA runtime that an action does fail in turn, and looks at what is left."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ernie_kernels as ek
from simt import control

NAMES = {
    control.OUT_OF_MEMORY: "cudaErrorMemoryAllocation",
    control.NO_DEVICE: "cudaErrorNoDevice",
    control.INVALID_DEVICE: "cudaErrorInvalidDevice",
    control.NO_KERNEL_IMAGE: "cudaErrorNoKernelImageForDevice",
    control.LAUNCH_FAILURE: "cudaErrorLaunchFailure",
}
# What releases, restores or only asks: its failure alone loses nothing. All others must be told.
FORGIVEN = {
    "cudaDeviceGetAttribute",  # of a message
    "cudaEventDestroy",
    "cudaFree",
    "cudaFreeAsync",
    "cudaFreeHost",
    "cudaGetDevice",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaMemGetInfo",
    "cudaSetDevice",
    "cudaStreamDestroy",
    "cudaStreamIsCapturing",
}


@dataclass(frozen=True)
class Action:
    """Something that the library does, again and again with the same result.

    Attributes:
        prepare: makes what ``act`` needs; no call of it fails.
        act: the library's call.
        read: the result of ``act`` and what came of ``prepare``, as something to compare.
    """

    prepare: Callable[[], Any]
    act: Callable[[Any], Any]
    read: Callable[[Any, Any], Any]

    def run(self) -> Any:
        made = self.prepare()
        return self.read(made, self.act(made))


def check_every_failure(
    action: Action,
    *,
    errors: Iterable[int] = NAMES,
    from_then_on: Iterable[bool] = (False, True),
    runs_again_after: int = 1,
) -> None:
    """Every runtime call of ``action.act`` fails with every error, once, and with all after it.

    Then the right exception names the call, or the result is what it was without; nothing leaks;
    the device is the one that was current; and the next run gives the same result.

    Args:
        runs_again_after: so many failures comes that next run, where it takes long.
    """
    expected = action.run()
    made = action.prepare()
    with control.recorded() as calls:
        result = action.act(made)
    assert calls
    assert action.read(made, result) == expected
    del made, result
    tries = [
        (call["name"], nth, error, for_good)
        for error in errors
        for for_good in from_then_on
        for nth, call in enumerate(calls, start=1)
    ]
    for index, (name, nth, error, for_good) in enumerate(tries, start=1):
        before = control.allocations()
        where = f"call {nth}, {name}: {NAMES[error]}{' from then on' if for_good else ''}"
        lost = _check_failure(action, expected, (name, nth, error, for_good), where)
        _check_allocations(before, before + lost, where)
        if index % runs_again_after == 0 or index == len(tries):
            assert action.run() == expected, f"{where}: the next run differs"
            _check_allocations(before, before + lost, f"{where}, and the next run")


def _check_failure(
    action: Action, expected: Any, failure: tuple[str, int, int, bool], where: str
) -> int:
    """Returns how many allocations must be lost: those whose release was refused twice."""
    name, nth, error, for_good = failure
    made = action.prepare()
    refused: tuple[type[Exception], str] | None = None
    result = None
    with (
        control.recorded() as calls,
        control.failing(nth=nth, error=error, from_then_on=for_good) as has_failed,
    ):
        try:
            result = action.act(made)
        except ek.Error as exception:
            refused = type(exception), str(exception)
        assert has_failed(), where
    failed = [call["name"] for call in calls if call["error"] == error]
    assert failed[0] == name, where
    if refused is None:
        assert _may_be_silent(name, error, failed), f"{where}: not reported"
        assert action.read(made, result) == expected, where
    else:
        _check_exception(*refused, failed, error, where)
    assert control.current_device() == 0, where
    return failed.count("cudaFree") + failed.count("cudaFreeHost")


def _check_allocations(least: int, most: int, where: str) -> None:
    if control.allocations() > most:
        gc.collect()  # what refers to itself goes when Python comes to it
    assert least <= control.allocations() <= most, f"{where}: leaks"


def _may_be_silent(name: str, error: int, failed: list[str]) -> bool:
    # What is asked for twice: memory, and why there is no GPU.
    if name == "cudaGetDeviceCount" or (name, error) == ("cudaMallocAsync", control.OUT_OF_MEMORY):
        return len(failed) == 1
    return name in FORGIVEN and set(failed) <= FORGIVEN | {
        "cudaGetLastError",
        "cudaDeviceSynchronize",  # of a second try to release memory
    }


def _check_exception(
    kind: type[Exception], text: str, failed: list[str], error: int, where: str
) -> None:
    told = f"{where}: {kind.__name__}: {text}"
    assert len(text.encode()) <= 512, told
    if error == control.OUT_OF_MEMORY:
        assert kind is ek.OutOfMemoryError, told
        if "could not allocate" in text:
            assert {"cudaMallocAsync", "cudaHostAlloc"} & set(failed), told
            return
    else:
        assert kind is ek.DeviceError, told
    if error == control.NO_DEVICE and "cudaGetDeviceCount" in failed and "no usable" in text:
        return
    assert NAMES[error] in text, told
    if error != control.NO_KERNEL_IMAGE:  # which is the build's fault, not the call's
        names = {"kernel launch" if _is_launch(name) else name for name in failed}
        assert any(name in text for name in names), told


def _is_launch(name: str) -> bool:
    return name in ("cudaLaunchKernel", "cudaGetLastError")
