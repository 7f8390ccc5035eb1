"""Generation with images and videos on a GPU: the CPU's logits, and graphs only where they may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from recorder import Recorder
from test_media_generation import (
    CONFIG,
    FILM,
    IMAGE,
    PICTURES,
    PROMPTS,
    load,
    prompt_of,
    text,
)

import ernie_kernels as ek
from ernie_kernels import _core
from ernie_kernels.models.media_positions import BANK_RULES, BANKS_BY_ROLE, POSITION_RULES
from ernie_kernels.runner import decode_graph
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.model_runner import ModelRunner
from vl_chat_checkpoint import write_vl_chat_checkpoint
from vl_checkpoint import write_vl_checkpoint

pytestmark = pytest.mark.cuda

PARAMS = [
    ek.SamplingParams(max_tokens=5, ignore_eos=True, seed=0),
    ek.SamplingParams(max_tokens=6, ignore_eos=True, seed=1, temperature=0.9),
    ek.SamplingParams(max_tokens=3, ignore_eos=True, seed=2, repetition_penalty=1.3),
]
CHOSEN = [PROMPTS[4], PROMPTS[3], PROMPTS[1]]  # a video, text alone, an image


class Step(NamedTuple):
    is_decoding: bool  # by the steps that become graphs
    spans: list[TokenSpan]


@pytest.fixture
def steps(monkeypatch) -> list[Step]:
    seen: list[Step] = []
    decode, run = ModelRunner.decode, ModelRunner.run

    def watched_decode(runner, spans):
        logits = decode(runner, spans)
        if logits is not None:
            seen.append(Step(True, list(spans)))
        return logits

    def watched_run(runner, spans):
        seen.append(Step(False, list(spans)))
        return run(runner, spans)

    monkeypatch.setattr(ModelRunner, "decode", watched_decode)
    monkeypatch.setattr(ModelRunner, "run", watched_run)
    return seen


@pytest.fixture
def launches(monkeypatch) -> list[None]:
    """One for each launch of a graph."""
    seen: list[None] = []

    class Watched(_core.Graph):
        def launch(self) -> None:
            super().launch()
            seen.append(None)

    monkeypatch.setattr(decode_graph, "Graph", Watched)
    return seen


@pytest.fixture
def batch_invariant() -> Iterator[None]:
    _core.set_batch_invariant(True)
    yield
    _core.set_batch_invariant(False)


def answers(llm: ek.LLM) -> tuple[list[list[int]], dict]:
    """Tokens and logits of all steps."""
    with Recorder(llm) as recorder:
        outputs = llm.generate(
            prompt_token_ids=[ids for ids, _ in CHOSEN],
            multi_modal_data=[media for _, media in CHOSEN],
            params=PARAMS,
        )
    llm._engine.check()
    return [output.outputs[0].token_ids for output in outputs], recorder.logits


def is_in_media_prompt(span: TokenSpan) -> bool:
    return span.media is not None and span.start < len(span.media.plan.banks)


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_logits_are_those_of_the_cpu(tmp_path, rule, steps):
    write_vl_checkpoint(tmp_path, num_hidden_layers=2)
    made = []
    for device in ("cpu", "cuda"):
        with load(tmp_path, device, mm_processor_kwargs={"position_rule": rule}) as llm:
            made.append(answers(llm))
    (of_cpu, expected), (of_cuda, got) = made
    assert of_cuda == of_cpu
    assert got.keys() == expected.keys()
    for key, row in expected.items():
        difference = np.frombuffer(row, np.float32) - np.frombuffer(got[key], np.float32)
        assert np.abs(difference).max() < 1e-4, key
    assert any(s.position_delta for step in steps if step.is_decoding for s in step.spans)


@pytest.mark.parametrize("quantization", [None, "wint8", "wint4"])
def test_graphs_are_for_what_follows_media(tmp_path, monkeypatch, steps, launches, quantization):
    write_vl_checkpoint(tmp_path, dtype="bfloat16", num_hidden_layers=2)

    def made() -> tuple[list[list[int]], dict]:
        with load(tmp_path, "cuda", quantization=quantization) as llm:
            return answers(llm)

    expected = made()
    decoded = [step for step in steps if step.is_decoding]
    # The first step of each size is kernel by kernel.
    sizes = {decode_graph.rows_for(len(step.spans), 8) for step in decoded}
    assert len(launches) == len(decoded) - len(sizes) >= 2
    assert not any(is_in_media_prompt(span) for step in decoded for span in step.spans)
    read = [span for step in steps if not step.is_decoding for span in step.spans]
    assert sum(map(is_in_media_prompt, read)) >= 2
    before = len(launches)
    monkeypatch.setenv("ERNIE_CUDA_GRAPHS", "0")
    assert made() == expected
    assert len(launches) == before


@pytest.mark.usefixtures("batch_invariant")
def test_the_last_token_of_a_picture_alone_in_a_step(tmp_path, steps):
    """A prefix hit leaves one token, as decoding has it: it asks the vision experts all the same."""
    write_vl_checkpoint(tmp_path, num_hidden_layers=2)
    media = {"image": PICTURES[0]}  # 12 tokens, one before them and one behind
    ids = prompt_of(*text(0, 33 - 14), IMAGE)

    def logits(llm: ek.LLM) -> dict:
        with Recorder(llm) as recorder:
            llm.generate(prompt_token_ids=[ids], multi_modal_data=[media], params=PARAMS[0])
        return recorder.logits

    with load(tmp_path, "cuda") as llm:
        expected = logits(llm)
        steps.clear()
        assert logits(llm) == expected
        assert llm.stats()["prefix_hit_tokens"] == 32
    first, *others = steps
    assert [(span.start, len(span.token_ids)) for span in first.spans] == [(32, 1)]
    assert not first.is_decoding
    assert all(step.is_decoding for step in others)


class Forced(Recorder):
    """Chooses these tokens, one after the other, whatever the logits are."""

    def __init__(self, llm: ek.LLM, tokens: list[int]) -> None:
        super().__init__(llm)
        self._tokens = iter(tokens)

    def __call__(self, logits, sequences, positions):
        _, logprobs = super().__call__(logits, sequences, positions)
        return [next(self._tokens)], logprobs


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("rule", BANK_RULES)
def test_generated_ids_that_ask_the_vision_experts(tmp_path, steps, rule):
    """By Baidu's rule those from the image placeholder on do, and no graph has them."""
    write_vl_checkpoint(tmp_path, num_hidden_layers=2)
    first = CONFIG["video_end_token_id"] + 1  # after all that have a meaning
    prompt, tokens = text(0, 3), [7, first, 8, 9, first + 1, first + 2, 10]
    params = ek.SamplingParams(max_tokens=len(tokens), ignore_eos=True, seed=0)
    with load(tmp_path, "cuda", mm_processor_kwargs={"bank_rule": rule}) as llm:
        with Forced(llm, tokens) as recorder:
            llm.generate(prompt_token_ids=[prompt], params=params)
        decoding = [token < first or rule == BANKS_BY_ROLE for token in tokens[:-1]]
        assert [step.is_decoding for step in steps[1:]] == decoding
        # What was decoded token by token is what is read at once.
        (whole,) = llm.forward([[*prompt, *tokens[:-1]]])
    for index, logits in enumerate(whole[len(prompt) - 1 :]):
        assert logits.tobytes() == recorder.logits[0, len(prompt) + index], index


def test_chat(tmp_path):
    """Pictures, a film and text in messages; features stay on the device."""
    write_vl_chat_checkpoint(tmp_path, num_hidden_layers=2)
    parts: list[Any] = [
        {"type": "image", "image": PICTURES[0]},
        {"type": "text", "text": "ab"},
        {"type": "video", "video": FILM},
    ]
    told = []
    for device in ("cpu", "cuda"):
        with load(tmp_path, device) as llm:
            for content in (parts, "ab", parts[:2]):
                message = {"role": "user", "content": content}
                output = llm.chat([message], PARAMS[0])
                told.append((output.prompt_token_ids, output.outputs[0].token_ids))
            features = llm._engine._features
            assert features.num_encoded == 1 + 3
            places = {each.rows.device.split(":")[0] for each in features._recent.values()}
            assert places == {device}
    assert told[:3] == told[3:]
