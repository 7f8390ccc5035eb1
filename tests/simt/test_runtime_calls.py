"""What the library asks of the CUDA runtime: an op allocates nothing, waits for nothing, and stays on
its caller's stream and device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from simt import control
from simt.op_cases import CASES, OnStream

pytestmark = pytest.mark.simt

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
# All that an op does: look after the current device, and start kernels.
OF_AN_OP = {
    "cudaGetDevice",
    "cudaSetDevice",
    "cudaFuncSetAttribute",
    "cudaLaunchKernel",
    "cudaGetLastError",
}
# What its wrapper adds: it takes an empty workspace, or one from the stream's pool.
OF_A_WORKSPACE = {"cudaGetDeviceCount"}
OF_THE_POOL = {"cudaMallocAsync", "cudaFreeAsync"}
ON_A_STREAM = {"cudaLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", *OF_THE_POOL}


@pytest.fixture
def stream() -> Iterator[control.Stream]:
    """The current stream of the library that OnStream plays."""
    stream = control.Stream()
    OnStream.current_stream = stream.handle
    yield stream
    OnStream.current_stream = 0
    stream.close()


def names_of(calls: list[dict[str, Any]]) -> list[str]:
    return [call["name"] for call in calls]


def allowed(name: str) -> set[str]:
    if CASES[name].allocates:
        return OF_AN_OP | OF_A_WORKSPACE | OF_THE_POOL
    with_workspace = name.startswith(("attention", "sample", "moe_sort", "moe_dispatch"))
    return OF_AN_OP | (OF_A_WORKSPACE if with_workspace else set())


def check_calls(name: str, calls: list[dict[str, Any]], stream: int) -> None:
    assert set(names_of(calls)) <= allowed(name)
    assert "cudaLaunchKernel" in names_of(calls)
    assert {call["stream"] for call in calls if call["name"] in ON_A_STREAM} == {stream}
    assert {call["error"] for call in calls} == {0}


# ----------------------------------------------------------------------------------------- ops


@pytest.mark.parametrize("name", CASES)
def test_op_only_launches(name):
    case = CASES[name]
    tensors = case.tensors()
    case.run(tensors)  # the first call of linear asks what the GPU is
    before = control.allocations()
    with control.recorded() as calls:
        case.run(tensors)
    check_calls(name, calls, 0)
    assert control.allocations() == before


@pytest.mark.parametrize("name", CASES)
def test_op_stays_on_its_caller_s_stream(name, stream):
    case = CASES[name]
    tensors, expected = case.tensors(), case.tensors()
    case.run(expected)
    borrowed = {key: OnStream(tensor) for key, tensor in tensors.items()}
    with control.recorded() as calls:
        case.run(borrowed)
    check_calls(name, calls, stream.handle)
    assert case.bits(tensors) == case.bits(expected)


def test_result_that_an_op_allocates_is_of_its_stream(stream):
    x = OnStream(ek.from_numpy(ARRAY, "cuda"))
    with control.recorded() as calls:
        out = ops.linear(x, x)
        out = ops.silu_and_mul(out[:, :2])
        out.numpy()
        del out
    on_a_stream = ON_A_STREAM | {"cudaStreamSynchronize"}
    used = [call for call in calls if call["name"] in on_a_stream]
    assert {call["stream"] for call in used} == {stream.handle}
    assert names_of(used).count("cudaMallocAsync") == 2
    assert names_of(used).count("cudaFreeAsync") == 2
    assert names_of(used).count("cudaStreamSynchronize") == 1


@pytest.mark.parametrize("own", ["x", "weight", "out"])
def test_streams_of_two_libraries_wait_for_each_other(own, stream):
    tensors = {
        "x": ek.from_numpy(ARRAY, "cuda"),
        "weight": ek.from_numpy(ARRAY[0].copy(), "cuda"),
        "out": ek.from_numpy(ARRAY, "cuda"),
    }
    with control.recorded() as calls:
        ops.rms_norm(**{k: t if k == own else OnStream(t) for k, t in tensors.items()})
    on, other = (0, stream.handle) if own == "out" else (stream.handle, 0)
    steps = {"cudaEventRecord", "cudaStreamWaitEvent", "cudaLaunchKernel"}
    assert [(call["name"], call["stream"]) for call in calls if call["name"] in steps] == [
        ("cudaEventRecord", other),
        ("cudaStreamWaitEvent", on),
        ("cudaLaunchKernel", on),
        ("cudaEventRecord", on),
        ("cudaStreamWaitEvent", other),
    ]


def test_streams_wait_for_an_op_that_failed_halfway(stream):
    x = ek.from_numpy(ARRAY, "cuda")
    gate_up, out = ek.empty([3, 2], "float32", "cuda"), ek.empty([3, 1], "float32", "cuda")
    with (
        control.recorded() as calls,
        control.failing("cudaLaunchKernel", nth=2, error=control.INVALID_VALUE),
        pytest.raises(ek.DeviceError, match=r"^linear_silu_and_mul: kernel launch failed"),
    ):
        ops.linear_silu_and_mul(OnStream(x), x[:2], gate_up=gate_up, out=OnStream(out))
    assert names_of(calls).count("cudaLaunchKernel") == 2
    last = [(c["name"], c["stream"]) for c in calls if c["name"].endswith(("Record", "Event"))]
    assert last[-2:] == [("cudaEventRecord", stream.handle), ("cudaStreamWaitEvent", 0)]


@pytest.mark.parametrize("borrowed", ["all", "written"])
@pytest.mark.parametrize("name", CASES)
def test_op_can_be_captured(name, borrowed, stream):
    """Weights and indices may be this library's own, made before the capture."""
    case = CASES[name]
    tensors, expected = case.tensors(), case.tensors()
    untouched = case.bits(tensors)
    case.run(expected)
    first = next(iter(case.arrays()))
    is_borrowed = {k: borrowed == "all" or k in case.written or k == first for k in tensors}
    arguments = {k: OnStream(t) if is_borrowed[k] else t for k, t in tensors.items()}
    before = control.allocations()
    with stream.captured():
        case.run(arguments)
    assert stream.graph is not None
    assert case.bits(tensors) == untouched
    with control.recorded() as calls:
        assert stream.replay() == 0
    assert names_of(calls) == ["cudaGraphLaunch"]
    assert case.bits(tensors) == case.bits(expected)
    stream.forget_graph()
    assert control.allocations() == before


SYNC = """
import sys
import numpy as np
from simt import control
control.load()
import ernie_kernels as ek
from ernie_kernels import ops
x = ek.from_numpy(np.ones((2, 8), np.float32), "cuda")
weight = ek.from_numpy(np.ones(8, np.float32), "cuda")
with control.recorded() as calls:
    ops.rms_norm(x, weight, out=x)
    ops.silu_and_mul(x)
print([call["name"] for call in calls].count("cudaStreamSynchronize"))
for error in control.LAUNCH_FAILURE, control.OUT_OF_MEMORY, control.NO_KERNEL_IMAGE:
    with control.failing("cudaStreamSynchronize", error=error):
        try:
            ops.rms_norm(x, weight, out=x)
        except ek.Error as error:
            print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(("value", "count"), [("1", "2"), ("0", "0"), ("", "0")])
def test_sync_names_the_op(value, count):
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, "ERNIE_CUDA_SYNC": value}
    done = subprocess.run(
        [sys.executable, "-c", SYNC], env=env, capture_output=True, text=True, check=True
    )
    found, *errors = done.stdout.splitlines()
    assert found == count
    if value != "1":
        assert errors == []
        return
    call = "rms_norm: cudaStreamSynchronize(stream_of(stream)) failed: cudaError"
    assert errors[0].startswith(f"DeviceError: {call}LaunchFailure")
    assert errors[1].startswith(f"OutOfMemoryError: {call}MemoryAllocation")
    assert errors[2].startswith("DeviceError: rms_norm: cuda:0: compute capability 9.0")


# ------------------------------------------------------------------------------------- devices


def test_no_such_device():
    for make in (lambda: ek.from_numpy(ARRAY, "cuda:1"), lambda: ek.empty([1], "int32", "cuda:1")):
        with pytest.raises(ek.DeviceError, match="expected cuda:0 to cuda:0, got cuda:1"):
            make()
    with pytest.raises(ek.DeviceError, match="cuda:1 needed, 1 GPUs found"):
        ek.LLM.from_pretrained(device="cuda:1")
    assert control.current_device() == 0


@pytest.mark.parametrize("name", CASES)
def test_tensors_of_a_device_that_is_not_there(name):
    case = CASES[name]
    tensors = {key: OnStream(tensor, device_index=1) for key, tensor in case.tensors().items()}
    with control.recorded() as calls, pytest.raises(ek.DeviceError):
        case.run(tensors)
    assert "cudaLaunchKernel" not in names_of(calls)
    assert control.current_device() == 0


@pytest.mark.parametrize("name", CASES)
def test_tensors_of_two_devices(name):
    case = CASES[name]
    with control.devices(2):
        tensors = case.tensors()
        for odd in tensors:
            mixed = dict(tensors)
            mixed[odd] = ek.from_numpy(case.arrays()[odd], "cuda:1")
            with (
                control.recorded() as calls,
                pytest.raises(ek.ArgumentError, match=r"device cuda:\d like the other arguments"),
            ):
                case.run(mixed)
            # The table that rope makes by itself is nobody else's.
            assert name == "rope" or "cudaLaunchKernel" not in names_of(calls)


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_op_runs_on_the_device_of_its_tensors(name, current):
    case = CASES[name]
    with control.devices(2):
        expected, tensors = case.tensors(), {}
        case.run(expected)
        for key, array in case.arrays().items():
            tensors[key] = ek.from_numpy(array, "cuda:1")
        control.set_current_device(current)
        with control.recorded() as calls:
            case.run(tensors)
        assert {c["device"] for c in calls if c["name"] == "cudaLaunchKernel"} == {1}
        assert control.current_device() == current
        assert case.bits(tensors) == case.bits(expected)
        assert control.current_device() == current


def test_device_is_restored_after_an_exception():
    with control.devices(2):
        x = ek.from_numpy(ARRAY, "cuda:1")
        for name, act in {
            "cudaLaunchKernel": lambda: ops.rms_norm(x, x[0]),
            "cudaMemcpyAsync": x.numpy,
            "cudaMallocAsync": lambda: ek.empty([1], "int8", "cuda:1"),
            "cudaStreamSynchronize": lambda: ek.from_numpy(ARRAY, "cuda:1"),
        }.items():
            message = "kernel launch" if name == "cudaLaunchKernel" else name
            with control.failing(name), pytest.raises(ek.DeviceError, match=message):
                act()
            assert control.current_device() == 0
        assert x.numpy().tobytes() == ARRAY.tobytes()


def test_copy_between_devices_waits_for_both():
    with control.devices(2):
        x = ek.from_numpy(ARRAY, "cuda")
        with control.recorded() as calls:
            y = x.to("cuda:1")
        assert y.device == "cuda:1"
        assert y.numpy().tobytes() == ARRAY.tobytes()
        steps = {"cudaMemcpyAsync", "cudaStreamSynchronize"}
        assert [(c["name"], c["device"]) for c in calls if c["name"] in steps] == [
            ("cudaMemcpyAsync", 0),
            ("cudaStreamSynchronize", 0),
            ("cudaMemcpyAsync", 1),
            ("cudaStreamSynchronize", 1),
        ]
        assert control.current_device() == 0


def test_copy_on_a_device_waits_for_the_stream_of_its_source(stream):
    x = OnStream(ek.from_numpy(ARRAY, "cuda"))
    with control.recorded() as calls:
        assert ek.from_numpy(x, "cuda").numpy().tobytes() == ARRAY.tobytes()
    steps = {"cudaEventRecord", "cudaStreamWaitEvent", "cudaMemcpyAsync"}
    assert [(c["name"], c["stream"]) for c in calls if c["name"] in steps][:3] == [
        ("cudaEventRecord", stream.handle),
        ("cudaStreamWaitEvent", 0),
        ("cudaMemcpyAsync", 0),
    ]
