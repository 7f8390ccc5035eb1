"""What a decoding step asks of the CUDA runtime, and what is left when a call of it fails."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.requests import make_prompt_sequence
from ernie_kernels.runner.sampler import Sampler
from simt import control
from simt.every_failure import Action, check_every_failure
from simt.tiny_model import VOCAB_SIZE, load_tiny, write_tiny

pytestmark = pytest.mark.simt

PARAMS = ek.SamplingParams(temperature=0.8, seed=3)
GREEDY = ek.SamplingParams(temperature=0.0)
DEMANDING = replace(PARAMS, repetition_penalty=1.2, logprobs=3)
CAPTURE_UNSUPPORTED = 900
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
ALLOCATES = {"cudaMallocAsync", "cudaFreeAsync", "cudaMalloc", "cudaFree", "cudaHostAlloc",
             "cudaFreeHost"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def llm(folder):
    with load_tiny(folder, max_num_seqs=4) as model:
        yield model


def step_calls(llm: ek.LLM, params: list[ek.SamplingParams]) -> list[list[str]]:
    """Names of the runtime's calls of each of 5 steps after the prompts."""
    stream = llm.generate(
        prompt_token_ids=[[5, 6, 7]] * len(params),
        params=[replace(each, max_tokens=6, ignore_eos=True) for each in params],
        stream=True,
    )
    for _ in params:
        next(stream)
    steps = []
    for _ in range(5):
        with control.recorded() as calls:
            for _ in params:
                next(stream)
        steps.append([call["name"] for call in calls])
        assert {call["error"] for call in calls} == {0}
    assert next(stream, None) is None
    return steps


@pytest.mark.parametrize("params", [[PARAMS], [PARAMS, GREEDY, PARAMS], [DEMANDING, PARAMS]])
def test_a_step_is_one_graph_and_one_wait(llm, params):
    step_calls(llm, params)
    for calls in step_calls(llm, params):
        counts = Counter(calls)
        assert counts["cudaGraphLaunch"] == 1
        assert sum(counts[name] for name in WAITS) == 1
        assert not ALLOCATES & set(calls)
        # What the sampler needs, the tokens; and their past, and the logits that were asked for.
        is_demanding = DEMANDING in params
        assert counts["cudaMemcpyAsync"] == (4 if is_demanding else 2)
        assert counts["cudaLaunchKernel"] == (2 if is_demanding else 1)


def test_without_graphs_a_step_waits_as_often(folder, monkeypatch):
    monkeypatch.setenv("ERNIE_CUDA_GRAPHS", "0")
    with load_tiny(folder, max_num_seqs=4) as llm:
        step_calls(llm, [PARAMS])
        for calls in step_calls(llm, [PARAMS]):
            assert "cudaGraphLaunch" not in calls
            assert sum(name in WAITS for name in calls) == 1
            assert not ALLOCATES & set(calls)


def tokens_of(llm: ek.LLM, max_tokens: int = 5) -> list[int]:
    params = replace(PARAMS, max_tokens=max_tokens, ignore_eos=True)
    return llm.generate(prompt_token_ids=[[1, 2, 3]], params=params)[0].outputs[0].token_ids


def test_a_gpu_that_cannot_capture(llm, folder, caplog):
    expected = tokens_of(llm)
    with (
        load_tiny(folder) as other,
        control.failing("cudaStreamBeginCapture", error=CAPTURE_UNSUPPORTED) as has_failed,
        caplog.at_level(logging.WARNING, "ernie_kernels"),
    ):
        assert tokens_of(other) == expected
        assert has_failed()
        with control.recorded() as calls:
            assert tokens_of(other) == expected
    assert "cudaStreamBeginCapture" not in [call["name"] for call in calls]
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "decoding without CUDA graphs: graph: cudaStreamBeginCapture failed: "
        "cudaErrorStreamCaptureUnsupported"
    )


@pytest.mark.parametrize("steps_before", [1, 2], ids=["capture", "replay"])
@pytest.mark.parametrize(
    ("error", "from_then_on"), [(control.OUT_OF_MEMORY, False), (control.LAUNCH_FAILURE, True)]
)
def test_every_failure_of_a_step(folder, steps_before, error, from_then_on):
    """The first step of a size runs kernel by kernel, the second makes the graph."""
    sequence = make_prompt_sequence(0, np.array([4, 5]), np.empty((2, VOCAB_SIZE), np.float32))
    sequence.params = PARAMS
    before = control.allocations()

    def prepare() -> tuple[ek.LLM, Sampler, list[TokenSpan]]:
        llm = load_tiny(folder)
        runner, sampler = llm._engine._runner, llm._engine._sampler
        spans = [TokenSpan(np.array([4 + at]), at, np.array([1], np.int32), 1) for at in range(3)]
        for span in spans[:steps_before]:
            sampler(runner.decode([span]), [sequence])
        return llm, sampler, spans[steps_before : steps_before + 1]

    def act(made: tuple) -> list[int]:
        llm, sampler, spans = made
        return sampler(llm._engine._runner.decode(spans), [sequence])[0]

    def read(made: tuple, tokens: list[int]) -> tuple:
        llm, sampler, spans = made
        repeated = sampler(llm._engine._runner.decode(spans), [sequence])[0]
        assert repeated == tokens
        return tokens, llm._engine._runner.decode(spans).numpy().tobytes()

    action = Action(prepare, act, read)
    check_every_failure(action, errors=[error], from_then_on=[from_then_on], runs_again_after=16)
    assert control.allocations() == before


def calls_of_a_step(runner: ModelRunner, span: TokenSpan) -> list[str]:
    with control.recorded() as calls:
        runner.decode([span])
    return [call["name"] for call in calls]


def test_a_step_after_one_that_came_to_no_end_waits_first(llm):
    """What was queued for that one may still be read."""
    runner, transfers = llm._engine._runner, llm._engine._sampler._transfers
    span = TokenSpan(np.array([4]), 0, np.array([1], np.int32), 1)
    for _ in range(2):
        runner.decode([span])
        transfers.wait()
    with control.failing("cudaGraphLaunch"), pytest.raises(ek.DeviceError, match="cudaGraphLaunch"):
        runner.decode([span])
    waiting = calls_of_a_step(runner, span)
    assert waiting.index("cudaStreamSynchronize") < waiting.index("cudaGraphLaunch")
    transfers.wait()
    assert not WAITS & set(calls_of_a_step(runner, span))
