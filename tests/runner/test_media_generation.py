"""Generation with images and videos: the same bits however a prompt is cut up, shared or held up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from recorder import Recorder, fill_taken_blocks_with_nan

import ernie_kernels as ek
from ernie_kernels import _core
from simt import control
from vl_checkpoint import VL_SHAPES, write_vl_checkpoint

CONFIG = VL_SHAPES["28b"]
IMAGE, VIDEO = CONFIG["im_patch_id"], CONFIG["video_token_id"]
STARTS = {IMAGE: CONFIG["image_start_token_id"], VIDEO: CONFIG["video_start_token_id"]}
BLOCK = 32
# The smallest that the processor makes: an image of 56 x 56, a video of frames of 28 x 28.
OPTIONS = {
    "image_min_pixels": 28 * 28,
    "image_max_pixels": 200 * 200,
    "video_min_pixels": 28 * 28,
    "video_max_pixels": 60 * 60,
    "draw_timestamps": False,
}


def load(folder: Path, device: str = "cpu", **changes: Any) -> ek.LLM:
    options = {**OPTIONS, **changes.pop("mm_processor_kwargs", {})}
    llm = ek.LLM.from_pretrained(
        folder,
        device=device,
        **{"max_model_len": 512, "max_num_seqs": 8, "mm_processor_kwargs": options, **changes},
    )
    fill_taken_blocks_with_nan(llm)
    return llm


class Model(NamedTuple):
    folder: Path
    device: str

    def load(self, **changes: Any) -> ek.LLM:
        return load(self.folder, self.device, **changes)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def model(request, dtype, tmp_path_factory):
    path = tmp_path_factory.mktemp(dtype)
    write_vl_checkpoint(path, dtype=dtype, num_hidden_layers=control.smaller(4, 2))
    _core.set_batch_invariant(request.param != "cpu")  # as the CPU always is
    yield Model(path, request.param)
    _core.set_batch_invariant(False)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def film(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def prompt_of(*parts: int) -> list[int]:
    """Token ids; a placeholder stands between the ids around it."""
    ids: list[int] = []
    for part in parts:
        ids += [part] if part not in STARTS else [STARTS[part], part, STARTS[part] + 1]
    return ids


def text(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 180, count).tolist()


PICTURES = [picture(0, 84, 112), picture(1, 140, 140), picture(2, 28, 28)]
FILM = film(3, 5, 28, 56)
# Some begin alike, up to a picture or behind it; two are alike but for the picture.
PROMPTS: list[tuple[list[int], dict[str, Any] | None]] = [
    (prompt_of(*text(0, 9), IMAGE, *text(1, 40), IMAGE, VIDEO, *text(2, 8)),
     {"image": PICTURES[:2], "video": [FILM]}),
    (prompt_of(*text(0, 9), IMAGE, *text(1, 40)), {"image": PICTURES[0]}),
    (prompt_of(*text(0, 9), IMAGE, *text(1, 40)), {"image": PICTURES[0][::-1]}),
    (text(0, 70), None),
    (prompt_of(VIDEO, *text(4, 3)), {"video": FILM}),
    (prompt_of(*text(0, 60), IMAGE, IMAGE, *text(5, 2)), {"image": [PICTURES[1], PICTURES[2]]}),
]  # fmt: skip
COUNT = len(PROMPTS)


def params_of(index: int) -> ek.SamplingParams:
    return ek.SamplingParams(
        max_tokens=4 + index % 3 * control.smaller(14, 2),
        ignore_eos=True,
        seed=index,
        temperature=float(index % 2),
    )


def logits_of(llm: ek.LLM, chosen: list[int], *, at_once: int = COUNT) -> dict:
    """Logits of every step, given to the model so many prompts at a time."""
    with Recorder(llm) as recorder:
        for first in range(0, len(chosen), at_once):
            some = chosen[first : first + at_once]
            llm.generate(
                prompt_token_ids=[PROMPTS[i][0] for i in some],
                multi_modal_data=[PROMPTS[i][1] for i in some],
                params=[params_of(i) for i in some],
            )
    llm._engine.check()
    return recorder.logits


@pytest.fixture(scope="module")
def alone(model):
    logits = {}
    for index in range(COUNT):
        with model.load() as llm:
            logits |= logits_of(llm, [index])
            assert llm.stats()["prefix_hit_tokens"] == 0
    assert len(logits) == sum(params_of(i).max_tokens for i in range(COUNT))
    return logits


def test_together(model, alone):
    with model.load() as llm:
        assert logits_of(llm, [*range(COUNT)]) == alone


def test_two_at_a_time_from_the_last(model, alone):
    with model.load() as llm:
        assert logits_of(llm, [*reversed(range(COUNT))], at_once=2) == alone


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_nine_at_once_with_threads(model, alone, threads):
    """Those that choose the likeliest token are there twice, with other seeds, which say nothing then."""
    twice = [i for i in range(COUNT) if params_of(i).temperature == 0]
    again = {i + 100: replace(params_of(i), seed=i + 100) for i in twice}
    chosen, params = [*range(COUNT), *twice], [*map(params_of, range(COUNT)), *again.values()]
    expected = alone | {(i + 100, n): row for (i, n), row in alone.items() if i in twice}
    before = _core.num_threads()
    try:
        with (
            model.load(num_threads=threads, max_num_seqs=len(chosen)) as llm,
            Recorder(llm) as recorder,
        ):
            llm.generate(
                prompt_token_ids=[PROMPTS[i][0] for i in chosen],
                multi_modal_data=[PROMPTS[i][1] for i in chosen],
                params=params,
            )
        assert len(chosen) == 9
        assert recorder.logits == expected
    finally:
        _core.set_num_threads(before)


@pytest.mark.parametrize("tokens", [8, 37])
def test_in_chunks_that_end_within_a_picture(model, alone, tokens):
    with model.load() as llm:
        llm._engine._scheduler._max_tokens_per_step = tokens
        assert logits_of(llm, [*range(COUNT)]) == alone


def test_after_prefix_hits(model, alone):
    with model.load() as llm:
        logits_of(llm, [*range(COUNT)])
        before = llm.stats()["prefix_hit_tokens"]
        assert logits_of(llm, [*range(COUNT)]) == alone
        assert llm.stats()["prefix_hit_tokens"] - before >= 5 * BLOCK


def test_after_preemption(model, alone):
    with model.load() as probe:
        per_block = probe.stats()["kv_cache_bytes"] // probe.stats()["num_blocks"]
    # Both prompts fit, and one answer: the second starts anew when the first one grows.
    with model.load(max_model_len=160, kv_cache_memory=5 * per_block) as llm:
        expected = {key: value for key, value in alone.items() if key[0] in (1, 2)}
        assert logits_of(llm, [1, 2]) == expected
        assert llm.stats()["preemptions"] > 0


def test_several_answers_read_their_prompt_once(model):
    ids, media = PROMPTS[0]
    params = ek.SamplingParams(max_tokens=6, n=3, temperature=1.0, seed=1, ignore_eos=True)
    with model.load() as llm:
        (output,) = llm.generate(prompt_token_ids=[ids], multi_modal_data=[media], params=params)
        assert llm._engine._features.num_encoded == 2 + 3  # images, pairs of frames
        assert len({tuple(answer.token_ids) for answer in output.outputs}) > 1
    with model.load() as llm:
        (alone,) = llm.generate(
            prompt_token_ids=[ids], multi_modal_data=[media],
            params=ek.SamplingParams(max_tokens=6, temperature=1.0, seed=1, ignore_eos=True),
        )  # fmt: skip
    assert alone.outputs[0].token_ids == output.outputs[0].token_ids
