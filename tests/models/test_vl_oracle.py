"""Vision-language models beside transformers, in float32."""

from __future__ import annotations

import numpy as np
import pytest
from ernie_kernels._core import empty

import ernie_kernels as ek
from ernie_kernels.models.media_positions import IMAGE, POSITION_RULES, VIDEO, token_positions
from ernie_kernels.models.vision_tower import FrameBatch, TowerBuffers
from ernie_kernels.vision.processor import VisionProcessor
from media_prompt import MediaPrompt, media_prompt, patches, together
from vl_checkpoint import VL_SHAPES, write_vl_checkpoint

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
# The video has more frames than rows and columns: the rules of positions part behind it.
MEDIA = ((IMAGE, (1, 4, 6)), (VIDEO, (12, 4, 4)), (IMAGE, (1, 2, 2)))


@pytest.fixture(scope="module", params=VL_SHAPES)
def models(request, tmp_path_factory):
    """The flat configuration, ours and theirs."""
    folder = tmp_path_factory.mktemp(request.param)
    config, _ = write_vl_checkpoint(folder, shape=request.param, is_nested=True)
    theirs = transformers.Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=512) as ours:
        yield config, ours, theirs


def logits_of(model, prompt: MediaPrompt, rule: str = "transformers") -> np.ndarray:
    arguments = {
        name: torch.as_tensor(np.array(value)) for name, value in prompt.arguments().items()
    }
    if rule == "baidu":
        positions, _ = token_positions(
            np.array(prompt.types), prompt.images, prompt.videos, rule=rule
        )
        arguments["position_ids"] = torch.from_numpy(positions)[:, None]
    with torch.no_grad():
        return model(torch.tensor([prompt.ids]), **arguments).logits[0].numpy()


def worst(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("rule", POSITION_RULES)
def test_two_images_a_video_and_text(models, rng, rule):
    config, ours, theirs = models
    prompt = media_prompt(rng, config, *MEDIA)
    (logits,) = ours.forward([prompt.ids], **prompt.arguments(), position_rule=rule)
    assert np.abs(logits).max() > 0.5
    assert worst(logits, logits_of(theirs, prompt, rule)) < TOLERANCE


def test_text_alone(models, rng):
    config, ours, theirs = models
    prompt = media_prompt(rng, config, text=40)
    (logits,) = ours.forward([prompt.ids])
    assert worst(logits, logits_of(theirs, prompt)) < TOLERANCE


def test_several_prompts_at_once(models, rng):
    config, ours, theirs = models
    prompts = [
        media_prompt(rng, config, *MEDIA[:2]),
        media_prompt(rng, config, text=9),
        media_prompt(rng, config, *MEDIA[2:], *MEDIA[:1], text=2),
    ]
    found = ours.forward(
        [p.ids for p in prompts], **together(prompts), position_rule="transformers"
    )
    for logits, prompt in zip(found, prompts, strict=True):
        assert worst(logits, logits_of(theirs, prompt)) < TOLERANCE


def test_tower(models, rng):
    _, ours, theirs = models
    vision, tower = ours.config.vision, ours.model.visual.tower
    grids = [(2, 4, 6), (4, 6, 4), (2, 2, 2)]
    x = patches(rng, grids)
    buffers = TowerBuffers.make(vision, len(x), "float32", "cpu")
    items = VisionProcessor().from_patches("video", x, np.array(grids))
    begin = 0
    for item in items:
        frames, h, w = item.grid_thw
        for frame in range(frames):
            tower.embed(item, frame, slice(0, h), buffers.residual[begin : begin + h * w])
            begin += h * w
    for _ in tower.slices(FrameBatch.of(grids, vision, "cpu"), buffers, 1000):
        pass
    found = buffers.hidden_states.numpy()
    with torch.no_grad():
        expected = theirs.model.vision_tower(torch.from_numpy(x), torch.tensor(grids))
    assert worst(found, expected.last_hidden_state.numpy()) < TOLERANCE


def test_resampler(models, rng):
    config, ours, theirs = models
    grids = [(1, 4, 6), (4, 6, 4), (1, 2, 2)]
    count = sum(t * h * w for t, h, w in grids)
    x = rng.standard_normal((count, ours.config.vision.hidden_size)).astype(np.float32)
    out = empty([6 + 12 + 1, config["hidden_size"]], "float32")
    buffers = TowerBuffers.make(ours.config.vision, count, "float32", "cpu")
    buffers.hidden_states.numpy()[:] = x
    for _ in ours.model.visual.resampler.slices(grids, buffers, 1000, out=out):
        pass
    with torch.no_grad():
        expected = theirs.model.resampler_model(torch.from_numpy(x), torch.tensor(grids))
    assert worst(out.numpy(), expected.numpy()) < TOLERANCE
