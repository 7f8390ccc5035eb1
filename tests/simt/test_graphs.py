"""CUDA graphs: what is kept, what is refused, and what is left when something fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops
from ernie_kernels.runner.transfers import Download, Transfers, Upload
from simt import control
from simt.every_failure import Action, check_every_failure

cuda, simt = pytest.mark.cuda, pytest.mark.simt

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
CAPTURE_UNSUPPORTED = 900


class Norm:
    """A copy from the host, two ops and a copy back, over memory of its own."""

    def __init__(self) -> None:
        self.transfers = Transfers("cuda:0")
        self.upload = Upload(self.transfers, {"x": (np.float32, (3, 4))})
        self.result = Download(self.transfers, "float32", (3, 4))
        self.weight = ek.from_numpy(ARRAY[1].copy(), "cuda")
        self.out = ek.empty([3, 4], "float32", "cuda")

    def queue(self) -> None:
        self.upload.send()
        x = self.upload.tensors["x"]
        ops.rms_norm(x, self.weight, out=self.out)
        ops.add_rms_norm(x, self.out, self.weight, out=x)
        self.result.queue(x)

    def run_eagerly(self, array: np.ndarray) -> bytes:
        return self.run(array, self.queue)

    def run(self, array: np.ndarray, do: Callable[[], None]) -> bytes:
        self.upload.arrays()["x"][...] = array
        do()
        self.transfers.wait()
        return self.result.array.tobytes()


@cuda
def test_a_graph_repeats_with_what_lies_in_its_memory():
    norm = Norm()
    expected = [norm.run_eagerly(ARRAY + i) for i in range(3)]
    assert len(set(expected)) == 3
    norm.result.array[...] = 0
    graph = _core.Graph("cuda", norm.queue)
    assert not norm.result.array.any()
    assert [norm.run(ARRAY + i, graph.launch) for i in range(3)] == expected


@cuda
def test_a_graph_is_launched_from_any_thread():
    norm = Norm()
    expected = norm.run_eagerly(ARRAY)
    graph = _core.Graph("cuda:0", norm.queue)
    results = []
    thread = threading.Thread(target=lambda: results.append(norm.run(ARRAY, graph.launch)))
    thread.start()
    thread.join()
    assert results == [expected]


@cuda
def test_other_threads_are_not_captured():
    norm = Norm()
    expected = norm.run_eagerly(ARRAY)
    results = []

    def record() -> None:
        # Which also allocates, and waits.
        thread = threading.Thread(target=lambda: results.append(Norm().run_eagerly(ARRAY)))
        thread.start()
        thread.join()
        norm.queue()

    graph = _core.Graph("cuda", record)
    assert results == [expected]
    assert norm.run(ARRAY, graph.launch) == expected


REFUSED = {
    "allocates": (lambda norm: ek.from_numpy(ARRAY, "cuda"), "a call that allocates memory"),
    "empty": (lambda norm: ek.empty([1], "int8", "cuda"), "a call that allocates memory"),
    "result": (lambda norm: ops.rms_norm(norm.out, norm.weight), "a call that allocates memory"),
    "pinned": (
        lambda norm: Download(norm.transfers, "int8", (1,)),
        "a call that allocates memory",
    ),
    "reads": (lambda norm: norm.out.numpy(), "a call that waits for the GPU"),
    "waits": (lambda norm: norm.transfers.wait(), "a call that waits for the GPU"),
    "memory": (lambda norm: _core.device_memory("cuda"), "a call that waits for the GPU"),
    "launches": (lambda norm: norm.graph.launch(), "a call that launches a graph"),
}


@cuda
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_repeat_is_refused(name):
    call, words = REFUSED[name]
    norm = Norm()
    norm.graph = _core.Graph("cuda", norm.queue)

    def record() -> None:
        norm.queue()
        call(norm)

    with pytest.raises(ek.UnsupportedError, match=f"^graph: expected .*cuda:0.* got {words}$"):
        _core.Graph("cuda", record)
    expected = norm.run_eagerly(ARRAY)
    assert norm.run(ARRAY, _core.Graph("cuda", norm.queue).launch) == expected


@cuda
def test_an_exception_ends_the_capture():
    norm = Norm()

    def record() -> None:
        norm.queue()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _core.Graph("cuda", record)
    assert norm.run_eagerly(ARRAY) == norm.run(ARRAY, _core.Graph("cuda", norm.queue).launch)


@cuda
def test_one_capture_at_a_time():
    with pytest.raises(ek.ArgumentError, match="expected one capture at a time in a thread"):
        _core.Graph("cuda", lambda: _core.Graph("cuda", lambda: None))


def test_no_graphs_on_the_cpu():
    with pytest.raises(
        ek.ArgumentError, match=r"^Graph: device: expected cuda or cuda:N, got cpu$"
    ):
        _core.Graph("cpu", lambda: None)
    with pytest.raises(TypeError):
        _core.Graph("cpu", None)


def test_no_graphs_without_a_gpu():
    if ek.device_count():
        pytest.skip("there is a GPU")
    with pytest.raises(ek.DeviceError):
        _core.Graph("cuda", lambda: None)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=cuda)])
def test_transfers(device):
    transfers = Transfers(device)
    upload = Upload(
        transfers, {"a": (np.int64, (3,)), "b": (np.int32, (2, 5)), "c": (np.int8, (0,))}
    )
    values = np.arange(10, dtype=np.int32).reshape(2, 5)
    upload.arrays()["a"][...] = [7, 8, -9]
    upload.arrays()["b"][...] = values
    upload.send()
    assert upload.tensors["a"].numpy().tolist() == [7, 8, -9]
    assert upload.tensors["b"].numpy().tolist() == values.tolist()
    assert upload.tensors["c"].shape == (0,)
    download = Download(transfers, "int32", (3, 5))
    download.array[...] = -1
    download.queue(upload.tensors["b"], first=1)
    transfers.wait()
    assert download.array.tolist() == [[-1] * 5, *values.tolist()]
    with pytest.raises(ek.ArgumentError, match="queue_copy: from: expected shape"):
        download.queue(upload.tensors["b"], first=2)


def test_an_upload_is_not_overwritten_while_it_may_be_on_its_way():
    transfers = Transfers("cpu")
    upload = Upload(transfers, {"a": (np.int64, (3,))})
    upload.arrays()
    assert transfers.num_waits == 0
    upload.arrays()  # of a step that came to no end
    assert transfers.num_waits == 1
    transfers.wait()
    upload.arrays()
    assert transfers.num_waits == 2


# ------------------------------------------------------------------------------- on the machine


@simt
def test_a_step_is_one_call():
    norm = Norm()
    norm.run_eagerly(ARRAY)
    graph = _core.Graph("cuda", norm.queue)
    norm.upload.arrays()
    with control.recorded() as calls:
        graph.launch()
        norm.transfers.wait()
    names = [call["name"] for call in calls]
    assert names == ["cudaGetDevice", "cudaGraphLaunch", "cudaGetDevice", "cudaStreamSynchronize"]
    assert {call["stream"] for call in calls} == {0}


@simt
def test_every_failure_of_a_capture():
    def act(norm: Norm) -> _core.Graph:
        return _core.Graph("cuda", norm.queue)

    check_every_failure(Action(Norm, act, lambda norm, graph: norm.run(ARRAY, graph.launch)))


@simt
def test_every_failure_of_a_launch():
    def prepare() -> tuple[Norm, _core.Graph]:
        norm = Norm()
        norm.upload.arrays()["x"][...] = ARRAY
        return norm, _core.Graph("cuda", norm.queue)

    def act(made: tuple[Norm, _core.Graph]) -> None:
        norm, graph = made
        graph.launch()
        norm.transfers.wait()

    check_every_failure(Action(prepare, act, lambda made, _: made[0].result.array.tobytes()))


@simt
def test_every_failure_of_pinned_memory():
    def act(transfers: Transfers) -> Download:
        return Download(transfers, "int8", (5,))

    check_every_failure(
        Action(lambda: Transfers("cuda:0"), act, lambda _, download: download.array.shape)
    )


@simt
def test_every_failure_of_asking_for_the_memory():
    check_every_failure(
        Action(lambda: None, lambda _: _core.device_memory("cuda"), lambda _, memory: len(memory))
    )


@simt
@pytest.mark.parametrize(
    "call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"]
)
def test_a_gpu_that_cannot_capture(call):
    norm = Norm()
    before = control.allocations()
    with (
        control.failing(call, error=CAPTURE_UNSUPPORTED),
        pytest.raises(ek.UnsupportedError, match=f"^graph: {call} failed: cudaErrorStreamCapture"),
    ):
        _core.Graph("cuda", norm.queue)
    assert control.allocations() == before
    assert norm.run_eagerly(ARRAY) == norm.run(ARRAY, _core.Graph("cuda", norm.queue).launch)


@simt
def test_a_graph_whose_memory_is_gone_fails():
    norm = Norm()
    graph = _core.Graph("cuda", norm.queue)
    norm.upload.arrays()["x"][...] = ARRAY
    norm.out = None
    with pytest.raises(ek.DeviceError, match=r"cudaGraphLaunch failed.* which has been freed"):
        graph.launch()
    norm.upload = None
    with pytest.raises(ek.DeviceError, match="cudaGraphLaunch failed: cudaErrorInvalidValue"):
        graph.launch()


@simt
def test_memory_in_reach_of_the_gpu_is_that_which_it_says():
    free, total = _core.device_memory("cuda")
    tensor = ek.empty([1 << 20], "uint8", "cuda")
    assert _core.device_memory("cuda") == (free - tensor.nbytes, total)
    del tensor
    assert _core.device_memory("cuda") == (free, total)
