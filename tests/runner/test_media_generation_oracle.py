"""Generation with two images, a video and text beside transformers: greedy, float32, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from recorder import Recorder
from test_media_generation import IMAGE, PICTURES, VIDEO, film, load, prompt_of, text

import ernie_kernels as ek
from ernie_kernels import ops
from ernie_kernels.models.media_positions import POSITION_RULES, banks_of, types_of
from vl_checkpoint import write_vl_checkpoint

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS = 12
TOLERANCE = 1e-4
PROMPT = prompt_of(*text(0, 7), IMAGE, *text(1, 5), VIDEO, IMAGE, *text(2, 9))


@pytest.fixture(scope="module", params=["28b", "real_heads"])
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_vl_checkpoint(folder, shape=request.param, is_nested=True)
    theirs = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    return folder, theirs


def patches_of(llm, items) -> torch.Tensor:
    pixels = np.concatenate([item.pixels.reshape(-1) for item in items])
    grids = np.array([item.grid_thw for item in items])
    return torch.from_numpy(ops.image_patches(pixels, grids, llm._processor.levels).numpy())


# The rules of positions part behind a video of more frames than rows and columns.
@pytest.mark.parametrize(("num_frames", "rule"), [(4, "baidu"), (11, "transformers")])
def test_step_by_step(models, num_frames, rule):
    folder, theirs = models
    assert rule in POSITION_RULES
    media = {"image": PICTURES[:2], "video": [film(3, num_frames, 28, 56)]}
    params = ek.SamplingParams(max_tokens=STEPS, ignore_eos=True, seed=1)
    with load(folder, mm_processor_kwargs={"position_rule": rule}) as llm:
        (request,) = ek.llm.make_requests(
            None, [PROMPT], params, None, llm._limits,
            ek.llm.place_function(llm._media, None, [PROMPT], [media]),
        )  # fmt: skip
        with Recorder(llm) as recorder:
            (output,) = llm.generate(
                prompt_token_ids=[PROMPT], multi_modal_data=[media], params=params
            )
        items = request.media.items
        images, films = ([i for i in items if i.kind == kind] for kind in ("image", "video"))
        pixel_values, pixel_values_videos = patches_of(llm, images), patches_of(llm, films)
        ids = np.array(output.prompt_token_ids)
        tokens = llm.config.media_tokens
    types = types_of(ids, tokens)
    banks = np.where(banks_of(ids, tokens), 1, 0)
    with torch.no_grad():
        found = theirs.generate(
            torch.from_numpy(ids)[None],
            pixel_values=pixel_values,
            image_grid_thw=torch.tensor([i.grid_thw for i in images]),
            pixel_values_videos=pixel_values_videos,
            video_grid_thw=torch.tensor([i.grid_thw for i in films]),
            mm_token_type_ids=torch.from_numpy(types.astype(np.int64))[None],
            moe_mm_token_type_ids=torch.from_numpy(banks.astype(np.int64))[None],
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert found.sequences[0, len(ids) :].tolist() == output.outputs[0].token_ids
    for step, logits in enumerate(found.logits):
        own = np.frombuffer(recorder.logits[1, len(ids) + step], np.float32)
        assert np.abs(own - logits[0].numpy()).max() < TOLERANCE
