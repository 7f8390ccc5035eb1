"""Every call of the CUDA runtime fails in turn, once and for good: the right error, no leak, and the
next call gives the same bits."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from op_calls import NO_OPS
from simt import control
from simt.every_failure import Action, check_every_failure
from simt.op_cases import CASES, CPU_ONLY, OnStream
from simt.tiny_model import load_tiny, write_tiny

pytestmark = pytest.mark.simt

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def on_cuda(array: np.ndarray = ARRAY) -> ek.Tensor:
    return ek.from_numpy(array, "cuda")


def bytes_of(tensor: ek.Tensor) -> bytes:
    return tensor.numpy().tobytes()


# ----------------------------------------------------------------------------------------- ops


@pytest.mark.parametrize("name", CASES)
def test_op(name):
    case = CASES[name]
    check_every_failure(Action(case.tensors, case.run, lambda tensors, _: case.bits(tensors)))


def test_every_op_has_a_case():
    called = {case.call.__name__ for case in CASES.values()}
    ops_of_cuda = {name for name in ops.__all__ if not inspect.isclass(getattr(ops, name))}
    ops_of_cuda -= {name.replace(" and ", "_and_") for name in CPU_ONLY}
    assert called == ops_of_cuda - NO_OPS


ALLOCATING = {
    "rms_norm": lambda x: ops.rms_norm(x, x[0]),
    "linear": lambda x: ops.linear(x, x, dtype="float32"),
    "linear_silu_and_mul": lambda x: ops.linear_silu_and_mul(x, x[:2]),
    "sample": lambda x: ops.sample(
        x, temperature=1.0, top_k=2, top_p=0.9, min_p=0.1, seed=7, position=3
    ),
}


@pytest.mark.parametrize("name", ALLOCATING)
def test_op_that_allocates_its_result(name):
    action = Action(on_cuda, ALLOCATING[name], lambda _, out: bytes_of(out))
    check_every_failure(action, errors=(control.OUT_OF_MEMORY, control.LAUNCH_FAILURE))


def test_rope_that_makes_its_table():
    def prepare() -> list[ek.Tensor]:
        return [on_cuda(ARRAY.reshape(3, 2, 2)), on_cuda(ARRAY.reshape(3, 1, 4)[:, :, :2].copy())]

    def act(tensors: list[ek.Tensor]) -> None:
        ops.rope(*tensors, on_cuda(np.arange(3)), theta=10.0)

    check_every_failure(Action(prepare, act, lambda tensors, _: [*map(bytes_of, tensors)]))


def test_op_on_tensors_of_two_streams():
    def act(x: ek.Tensor) -> ek.Tensor:
        return ops.rms_norm(OnStream(x), x[0])

    stream = control.Stream()
    OnStream.current_stream = stream.handle
    try:
        check_every_failure(Action(on_cuda, act, lambda _, out: bytes_of(out)))
    finally:
        OnStream.current_stream = 0
        stream.close()


# -------------------------------------------------------------------------------------- tensors


def test_to_the_gpu():
    check_every_failure(Action(lambda: ARRAY, on_cuda, lambda _, tensor: bytes_of(tensor)))


def test_to_the_gpu_from_the_cpu_s_tensor():
    check_every_failure(
        Action(lambda: ek.from_numpy(ARRAY), lambda t: t.to("cuda"), lambda _, t: bytes_of(t))
    )


@pytest.mark.parametrize("read", [ek.Tensor.numpy, np.asarray, lambda t: t.to("cpu").numpy()])
def test_to_the_host(read):
    check_every_failure(Action(on_cuda, read, lambda _, array: array.tobytes()))


def test_empty():
    check_every_failure(
        Action(lambda: None, lambda _: ek.empty([3, 4], "float32", "cuda"), lambda _, t: t.shape)
    )


def test_release():
    check_every_failure(Action(lambda: [on_cuda()], list.clear, lambda tensors, _: tensors))


def test_release_after_the_stream_is_gone():
    before = control.allocations()
    stream = control.Stream()
    OnStream.current_stream = stream.handle
    try:
        out = ops.rms_norm(OnStream(on_cuda()), on_cuda(ARRAY[0]))
    finally:
        OnStream.current_stream = 0
    stream.close()
    del out
    assert control.allocations() == before


def test_dlpack_export_to_another_stream():
    stream = control.Stream()
    try:
        check_every_failure(
            Action(
                on_cuda,
                lambda tensor: tensor.__dlpack__(max_version=(1, 1), stream=stream.handle),
                lambda tensor, _: bytes_of(tensor),
            )
        )
    finally:
        stream.close()


@pytest.mark.parametrize("options", [{"copy": True}, {"dl_device": (1, 0)}])
def test_dlpack_export_of_a_copy(options):
    def read(tensor: ek.Tensor, capsule: Any) -> str:
        return repr(capsule).split()[2]  # its name

    check_every_failure(
        Action(on_cuda, lambda t: t.__dlpack__(max_version=(1, 1), **options), read)
    )


def test_dlpack_import():
    stream = control.Stream()
    OnStream.current_stream = stream.handle
    try:
        check_every_failure(
            Action(lambda: OnStream(on_cuda()), on_cuda, lambda _, tensor: bytes_of(tensor))
        )
    finally:
        OnStream.current_stream = 0
        stream.close()


def test_memory_that_is_short_for_good():
    with control.failing(
        "cudaMallocAsync", error=control.OUT_OF_MEMORY, from_then_on=True
    ) as has_failed:
        with pytest.raises(
            ek.OutOfMemoryError, match="cuda:0: could not allocate 48 bytes"
        ) as info:
            on_cuda()
        assert has_failed()
    assert "bytes are free" in str(info.value)
    assert bytes_of(on_cuda()) == ARRAY.tobytes()


# What a device is asked but once: each try takes a device that nothing has used yet.
@pytest.mark.parametrize("name", ["cudaDeviceGetDefaultMemPool", "cudaMemPoolSetAttribute"])
def test_first_allocation_of_a_device(name):
    device = {"cudaDeviceGetDefaultMemPool": "cuda:11", "cudaMemPoolSetAttribute": "cuda:12"}[name]
    with control.devices(16):
        with (
            control.failing(name, error=control.INVALID_DEVICE),
            pytest.raises(ek.DeviceError, match=f"{name}.* failed: cudaErrorInvalidDevice"),
        ):
            ek.from_numpy(ARRAY, device)
        assert control.current_device() == 0
        with control.recorded() as calls:
            assert bytes_of(ek.from_numpy(ARRAY, device)) == ARRAY.tobytes()
        assert name in [call["name"] for call in calls]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_first_linear_of_a_device(nth):
    with control.devices(16):
        x = ek.from_numpy(ARRAY, f"cuda:{12 + nth}")  # one that no other test makes known
        with (
            control.failing("cudaDeviceGetAttribute", nth=nth),
            pytest.raises(ek.DeviceError, match=r"linear: cudaDeviceGetAttribute\(.* failed: cuda"),
        ):
            ops.linear(x, x)
        assert control.current_device() == 0
        assert bytes_of(ops.linear(x, x)) == bytes_of(ops.linear(on_cuda(), on_cuda()))


# ---------------------------------------------------------------------------------------- model

PROMPTS = [[1, 2, 3]]
PARAMS = ek.SamplingParams(temperature=0.8, seed=3, max_tokens=2, repetition_penalty=1.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("checkpoint"))


def answers(llm: ek.LLM) -> list[Any]:
    params = replace(PARAMS, max_tokens=1)
    requests = llm.generate(prompt_token_ids=PROMPTS, params=params)
    return [output.token_ids for request in requests for output in request.outputs]


def streamed(llm: ek.LLM) -> list[Any]:
    stream = llm.generate(prompt_token_ids=PROMPTS, params=PARAMS, stream=True)
    return [(chunk.request_index, chunk.token_ids) for chunk in stream]


def all_logits(llm: ek.LLM) -> list[bytes]:
    return [logits.tobytes() for logits in llm.forward(PROMPTS)]


# Which error it is makes no difference to Python, only its class: one of each.
@pytest.mark.parametrize(
    ("call", "error", "from_then_on"),
    [
        (answers, control.OUT_OF_MEMORY, False),
        (streamed, control.LAUNCH_FAILURE, True),
        (all_logits, control.OUT_OF_MEMORY, True),
        (all_logits, control.LAUNCH_FAILURE, False),
    ],
)
def test_model(folder, call, error, from_then_on):
    def read(llm: ek.LLM, result: Any) -> Any:
        stats = llm.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return result

    with load_tiny(folder) as llm:
        for _ in range(2):  # until its graphs are made
            call(llm)

        def prepare() -> ek.LLM:
            # After a step that failed the next one waits: then the calls are not those recorded.
            llm._engine._sampler._transfers.wait()
            return llm

        action = Action(prepare, call, read)
        check_every_failure(
            action, errors=[error], from_then_on=[from_then_on], runs_again_after=16
        )


@pytest.mark.parametrize(
    ("error", "from_then_on"), [(control.OUT_OF_MEMORY, False), (control.LAUNCH_FAILURE, True)]
)
def test_loading(folder, error, from_then_on):
    action = Action(lambda: folder, load_tiny, lambda _, llm: llm.stats()["num_free_blocks"])
    check_every_failure(action, errors=[error], from_then_on=[from_then_on], runs_again_after=16)


def test_loaded_model_is_released(folder):
    before = control.allocations()
    with load_tiny(folder) as llm:
        assert control.allocations() > before
        all_logits(llm)
    del llm
    assert control.allocations() == before
