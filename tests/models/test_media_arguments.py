"""Images and videos of ``LLM.forward``: what is refused, by name, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.models.media_positions import IMAGE, VIDEO
from media_prompt import MediaPrompt, media_prompt, together
from tiny_checkpoint import write_checkpoint
from vl_checkpoint import VL_SHAPES, write_vl_checkpoint

MEDIA = ((IMAGE, (1, 4, 6)), (VIDEO, (4, 2, 4)), (IMAGE, (1, 2, 2)))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vl")
    write_vl_checkpoint(folder)
    with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=256) as model:
        yield model


@pytest.fixture
def prompt(rng) -> MediaPrompt:
    return media_prompt(rng, VL_SHAPES["28b"], *MEDIA)


def refuse(llm, prompts: list[MediaPrompt], error, message: str, **changes) -> None:
    """The call is refused, and the next good one gives what it gave before."""
    arguments = together(prompts)
    ids = [p.ids for p in prompts]
    expected = llm.forward(ids, **arguments)
    stats = llm.stats()
    for name, value in changes.items():
        arguments.pop(name, None)
        if name == "prompt_token_ids":
            ids = value
        elif value is not ABSENT:
            arguments[name] = value
    with pytest.raises(error, match=message) as caught:
        llm.forward(ids, **arguments)
    assert len(str(caught.value).encode()) <= 512
    assert llm.stats() == stats
    again = llm.forward([p.ids for p in prompts], **together(prompts))
    assert all(map(np.array_equal, again, expected))


ABSENT = object()


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ek.ArgumentError, "image_grid_thw: missing beside pixel_values", {"image_grid_thw": ABSENT}),
        (ek.ArgumentError, "pixel_values: missing beside image_grid_thw", {"pixel_values": ABSENT}),
        (ek.ArgumentError, "pixel_values_videos: missing", {"pixel_values_videos": ABSENT}),
        (TypeError, "pixel_values: expected an array, got object", {"pixel_values": object()}),
        (TypeError, "pixel_values: expected an array, got list", {"pixel_values": [[1], [1, 2]]}),
        (ek.ArgumentError, "pixel_values: expected float32", {"pixel_values": np.zeros((28, 588))}),
        (ek.ArgumentError, "pixel_values: expected float32", {"pixel_values": np.zeros(3, np.float32)}),
        (ek.ArgumentError, "image_grid_thw: expected integers", {"image_grid_thw": [1, 4, 6]}),
        (ek.ArgumentError, "image_grid_thw: expected integers", {"image_grid_thw": [[1.0, 4, 6]]}),
        (ek.InputError, "image_grid_thw: names 24 patches, pixel_values holds 28",
         {"image_grid_thw": [[1, 4, 6]]}),
        (ek.InputError, "image_grid_thw: image 1: expected 1 frame and even rows",
         {"image_grid_thw": [[1, 4, 6], [1, 1, 4]]}),
        (ek.InputError, "image_grid_thw: image 0: .* got \\[-1, 4, 6\\]",
         {"image_grid_thw": [[-1, 4, 6], [1, 2, 2]]}),
        (ek.InputError, "video_grid_thw: video 0: expected even frames",
         {"video_grid_thw": [[1, 4, 8]]}),
        (TypeError, "mm_token_type_ids: expected a list", {"mm_token_type_ids": 3}),
        (TypeError, "mm_token_type_ids: expected a list", {"mm_token_type_ids": "0"}),
        (TypeError, r"mm_token_type_ids\[0\]: expected an array", {"mm_token_type_ids": [object()]}),
        (ek.ArgumentError, r"moe_mm_token_type_ids\[0\]: expected integers of one dimension",
         {"moe_mm_token_type_ids": [[0.5]]}),
        (ek.ArgumentError, r"moe_mm_token_type_ids\[0\]: expected integers of one dimension",
         {"moe_mm_token_type_ids": [3]}),
        (ek.InputError, "mm_token_type_ids: expected an entry for each of 1 prompts, got 2",
         {"mm_token_type_ids": [[0], [0]]}),
        (ek.InputError, r"mm_token_type_ids\[0\]: expected one for each of \d+ tokens, got 1",
         {"mm_token_type_ids": [[0]]}),
        (ek.ArgumentError, "position_rule: expected one of baidu, transformers",
         {"position_rule": "vllm"}),
        (TypeError, "position_rule: expected str", {"position_rule": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_row_43_arrays(llm, prompt, error, message, changes):
    refuse(llm, [prompt], error, message, **changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_videos"])
def test_row_44_values_that_are_not_finite(llm, prompt, name, value):
    patches = prompt.arguments()[name].copy()
    patches[3, 500] = value
    kind = "video" if "videos" in name else "image"
    message = f"{name}: {kind} 0: 1 values are not finite, the first in row 3"
    refuse(llm, [prompt], ek.InputError, message, **{name: patches})


def changed(values: list[int], position: int, value: int) -> list[list[int]]:
    return [[*values[:position], value, *values[position + 1 :]]]


def test_row_39_types_of_tokens(llm, prompt):
    first = prompt.ids.index(190)
    cases = {
        "mm_token_type_ids": [
            (first, 3, "expected 0 .text., 1 .image. or 2 .video., got 3"),
            (first, 0, "expected no placeholder of an image or video in text, got id 190"),
            (0, 1, "expected the image placeholder 190"),
            (first, 2, "5 video placeholders; .* video_grid_thw gives 1 videos of 4 tokens"),
        ],
        "moe_mm_token_type_ids": [(0, -1, "expected 0 .text., 1 .image. or 2 .video., got -1")],
    }
    for name, all_of_name in cases.items():
        values = prompt.types if name == "mm_token_type_ids" else prompt.banks
        for position, value, message in all_of_name:
            wrong = {name: changed(values, position, value)}
            refuse(llm, [prompt], ek.InputError, message, **wrong)


def test_row_39_placeholders_are_not_as_many_as_features(llm, prompt, rng):
    ids = prompt.ids
    first = ids.index(190)
    by_ids = {"mm_token_type_ids": ABSENT, "moe_mm_token_type_ids": ABSENT}
    fewer = [*ids[:first], *ids[first + 1 :]]
    message = (
        "6 image placeholders; expected as many .* gives 1 images of 6 tokens|image 0 has 6 tokens"
    )
    refuse(llm, [prompt], ek.InputError, message, prompt_token_ids=[fewer], **by_ids)
    more = [*ids[:first], 190, *ids[first:]]
    refuse(llm, [prompt], ek.InputError, "8 image placeholders", prompt_token_ids=[more], **by_ids)
    none = [i for i in ids if i not in (190, 191)]
    refuse(llm, [prompt], ek.InputError, "2 images were given, 0 have tokens in the prompts",
           prompt_token_ids=[none], **by_ids)  # fmt: skip
    nothing = dict.fromkeys(("pixel_values", "image_grid_thw"), ABSENT)
    refuse(llm, [prompt], ek.InputError, "7 image placeholders; .* 0 images of 0 tokens, and no more",
           **by_ids, **nothing)  # fmt: skip


def test_row_39_two_images_with_other_text_between(llm, prompt):
    """As many placeholders as there are features, but not where the images are."""
    ids = prompt.ids.copy()
    last = len(ids) - 1 - ids[::-1].index(190)
    ids[last], ids[0] = ids[0], ids[last]
    by_ids = {"mm_token_type_ids": ABSENT, "moe_mm_token_type_ids": ABSENT}
    message = r"prompt_token_ids\[0\]: image 0 has 6 tokens, .* from position 0 on, got 1"
    refuse(llm, [prompt], ek.InputError, message, prompt_token_ids=[ids], **by_ids)


def test_media_go_to_the_prompts_in_order(llm, rng):
    prompts = [media_prompt(rng, VL_SHAPES["28b"], each) for each in MEDIA]
    swapped = [prompts[2], prompts[1], prompts[0]]
    arguments = together(prompts)
    refuse(llm, prompts, ek.InputError, r"mm_token_type_ids\[0\]: 1 image placeholders; .* 6",
           prompt_token_ids=[p.ids for p in swapped],
           mm_token_type_ids=[p.types for p in swapped],
           moe_mm_token_type_ids=[p.banks for p in swapped])  # fmt: skip
    assert len(llm.forward([p.ids for p in prompts], **arguments)) == 3


@pytest.mark.parametrize(
    "name", ["pixel_values", "image_grid_thw", "video_grid_thw", "mm_token_type_ids"]
)
def test_a_model_of_text_refuses_media(tmp_path, name):
    write_checkpoint(tmp_path)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", max_model_len=64) as model:
        with pytest.raises(ek.ArgumentError, match=f"forward: {name}: this model is of text alone"):
            model.forward([[1, 2]], **{name: np.zeros((1, 3))})
        assert len(model.forward([[1, 2]], position_rule="transformers")) == 1


def test_a_model_of_text_has_no_features(tmp_path):
    write_checkpoint(tmp_path)
    message = "visual_features: this model is of text alone"
    with (
        ek.LLM.from_pretrained(tmp_path, device="cpu", max_model_len=64) as model,
        pytest.raises(ek.UnsupportedError, match=message),
    ):
        model.model.visual_features([])


def test_no_guesses_ahead(tmp_path):
    write_vl_checkpoint(tmp_path)
    with pytest.raises(
        ek.UnsupportedError,
        match="speculative_config: not for a vision-language model: no released one",
    ):
        ek.LLM.from_pretrained(
            tmp_path,
            device="cpu",
            speculative_config={"method": "mtp", "num_speculative_tokens": 1},
        )


@pytest.mark.oracle
def test_arrays_of_torch(llm, prompt):
    torch = pytest.importorskip("torch")
    arguments = prompt.arguments()
    theirs = {name: torch.as_tensor(np.array(value)) for name, value in arguments.items()}
    (expected,) = llm.forward([prompt.ids], **arguments)
    assert np.array_equal(llm.forward([prompt.ids], **theirs)[0], expected)
