"""What images ask of the CUDA runtime, and what is left when a call of it fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.vision.item import VisualItem
from media_prompt import visual_item
from simt import control
from simt.every_failure import Action, check_every_failure
from vl_checkpoint import VL_SHAPES, write_vl_checkpoint

pytestmark = pytest.mark.simt

CONFIG = VL_SHAPES["28b"]
PARAMS = ek.SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
IDS = [3, CONFIG["image_start_token_id"], CONFIG["im_patch_id"], CONFIG["image_end_token_id"], 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vl")
    tower = {**CONFIG["vision_config"], "depth": 1, "hidden_size": 8, "num_heads": 1}
    write_vl_checkpoint(
        path,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        moe_num_experts=[3, 3],
        moe_k=2,
        moe_intermediate_size=[8, 12],
        moe_num_shared_experts=None,
        moe_layer_start_index=[0, 0],
        vision_config=tower,
    )
    return path


def load(folder) -> ek.LLM:
    options = {"image_min_pixels": 28 * 28, "image_max_pixels": 56 * 56}
    return ek.LLM.from_pretrained(
        folder,
        device="cuda",
        max_model_len=64,
        max_num_seqs=2,
        kv_cache_memory=1 << 18,
        mm_processor_kwargs=options,
    )


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (28, 56, 3), np.uint8)


def stream_of(llm: ek.LLM, *seeds: int) -> Any:
    """An answer to a prompt that shows so many pictures."""
    ids = [*IDS[:1], *(IDS[1:-1] * len(seeds)), *IDS[-1:]]
    media = {"image": [picture(seed) for seed in seeds]} if seeds else None
    return llm.generate(
        prompt_token_ids=[ids], multi_modal_data=[media], params=PARAMS, stream=True
    )


def calls_of_each_token(stream: Any) -> list[list[str]]:
    steps = []
    while True:
        with control.recorded() as calls:
            if next(stream, None) is None:
                return steps
        assert {call["error"] for call in calls} == {0}
        steps.append([call["name"] for call in calls])


def num_waits(calls: list[str]) -> int:
    return sum(name in WAITS for name in calls)


def test_a_prompt_with_known_pictures_waits_for_its_uploads_alone(folder):
    """Positions, experts and rows of features go up before the first kernel; the features are there.

    Pictures that are not known wait for what is uploaded to encode them, and no more.
    """
    with load(folder) as llm:
        for _ in range(2):
            list(stream_of(llm, 1, 2))
            list(stream_of(llm))
        llm._engine._block_manager._hashes = [None] * llm.stats()["num_blocks"]
        encoded = llm._engine._features.num_encoded
        with_media, text = (calls_of_each_token(stream_of(llm, *seeds)) for seeds in ((1, 2), ()))
        assert llm._engine._features.num_encoded == encoded == 2
        others = calls_of_each_token(stream_of(llm, 3, 4))
    # Of all rows and of the last one: its own experts are text.
    assert num_waits(with_media[0]) == num_waits(text[0]) + len(["positions", "banks", "rows"])
    # What is seen for the first time: pixels of each picture, and the frames of all.
    assert num_waits(others[0]) == num_waits(with_media[0]) + 2 + 2
    for first, *decoding in (with_media, text):
        launches = first[first.index("cudaLaunchKernel") :]
        assert num_waits(launches) == 1
        assert [num_waits(calls) for calls in decoding] == [1, 1]
        assert [Counter(calls)["cudaGraphLaunch"] for calls in decoding] == [1, 1]


def test_encoding_waits_for_uploads_alone(folder):
    rng = np.random.default_rng(0)
    items = [visual_item(rng, "image", (1, 4, 4)), visual_item(rng, "video", (4, 2, 2))]
    with load(folder) as llm:
        llm.model.visual_features(items)
        with control.recorded() as calls:
            llm.model.visual_features(items)
    names = [call["name"] for call in calls]
    waits = [index for index, name in enumerate(names) if name in WAITS]
    # Pixels of each frame at most; positions of patches and bounds of frames, of all together.
    assert 2 < len(waits) <= 1 + 4 + 2
    assert all("cudaMemcpyAsync" in names[index - 3 : index] for index in waits)


def bits_of(features: ek.Tensor) -> bytes:
    return features.numpy().tobytes()


@pytest.mark.parametrize(
    ("error", "from_then_on"), [(control.OUT_OF_MEMORY, False), (control.LAUNCH_FAILURE, True)]
)
def test_every_failure_of_encoding(folder, error, from_then_on):
    items: list[VisualItem] = [visual_item(np.random.default_rng(0), "image", (1, 2, 4))]
    with load(folder) as llm:
        action = Action(
            lambda: items, llm.model.visual_features, lambda _, features: bits_of(features)
        )
        check_every_failure(action, errors=[error], from_then_on=[from_then_on], runs_again_after=8)


def test_every_failure_of_a_prompt_with_a_picture(folder):
    params = replace(PARAMS, max_tokens=1)

    def prepare() -> ek.LLM:
        # After a step that failed the next one waits: then the calls are not those recorded.
        llm._engine._sampler._transfers.wait()
        return llm

    def act(llm: ek.LLM) -> list[int]:
        media = [{"image": picture(1)}]
        (output,) = llm.generate(prompt_token_ids=[IDS], multi_modal_data=media, params=params)
        return output.outputs[0].token_ids

    def read(llm: ek.LLM, tokens: list[int]) -> list[int]:
        stats = llm.stats()
        assert stats["num_free_blocks"] == stats["num_blocks"]
        return tokens

    with load(folder) as llm:
        llm._engine._features._max_bytes = 0  # each time anew, and nothing stays
        for _ in range(2):
            act(llm)
        check_every_failure(
            Action(prepare, act, read),
            errors=[control.OUT_OF_MEMORY],
            from_then_on=[False],
            runs_again_after=16,
        )


def test_a_loaded_model_and_its_features_are_released(folder):
    before = control.allocations()
    with load(folder) as llm:
        list(stream_of(llm, 1))
        assert len(llm._engine._features._recent) == 1
    del llm
    assert control.allocations() == before
