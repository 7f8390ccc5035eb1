"""Vision-language models against themselves: what must not change a bit, and what must change much."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ernie_kernels._core import from_numpy

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import _core, ops
from ernie_kernels.models import ernie_vl
from ernie_kernels.models.media_positions import IMAGE, VIDEO
from ernie_kernels.models.vision_tower import FrameBatch
from ernie_kernels.vision.settings import VisionSettings
from media_prompt import media_prompt, together, visual_item
from simt import control
from tiny_checkpoint import make_weights
from vl_checkpoint import VL_SHAPES, text_config, vl_to_paddle, vl_to_saved, write_vl_checkpoint

MEDIA = (
    (IMAGE, (1, 4, 6)),
    (VIDEO, control.smaller((12, 4, 4), (6, 2, 2))),
    (IMAGE, (1, 2, 2)),
)


def load(folder, **changes) -> ek.LLM:
    return ek.LLM.from_pretrained(folder, **{"device": "cpu", "max_model_len": 512, **changes})


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def llm(request, dtype, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vl")
    write_vl_checkpoint(folder, dtype=dtype)
    _core.set_batch_invariant(request.param != "cpu")  # as the CPU always is
    with load(folder, device=request.param) as model:
        yield model
    _core.set_batch_invariant(False)


@pytest.fixture
def prompts(rng):
    config = VL_SHAPES["28b"]
    return [
        media_prompt(rng, config, *MEDIA),
        media_prompt(rng, config, text=21),
        media_prompt(rng, config, MEDIA[1], text=1),
        media_prompt(rng, config, *MEDIA[::2], text=2),
    ]


# ------------------------------------------------------------------------- the same, bit for bit


def test_prompts_alone_and_together(llm, prompts):
    both = llm.forward([p.ids for p in prompts], **together(prompts))
    for prompt, logits in zip(prompts, both, strict=True):
        (alone,) = llm.forward([prompt.ids], **prompt.arguments())
        assert np.array_equal(alone, logits)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_prompt_in_chunks(tmp_path, rng, monkeypatch, num_threads):
    """Steps that end within an image give the bits of one step."""
    write_vl_checkpoint(tmp_path)
    prompt = media_prompt(rng, VL_SHAPES["28b"], *MEDIA)
    with load(tmp_path, num_threads=num_threads) as model:
        (whole,) = model.forward([prompt.ids], **prompt.arguments())
    monkeypatch.setattr("ernie_kernels.load_model.MAX_TOKENS_PER_STEP", 7)
    with load(tmp_path, max_num_seqs=2) as model:
        (chunked,) = model.forward([prompt.ids], **prompt.arguments())
    assert np.array_equal(chunked, whole)


def test_arrays_may_be_left_out(llm, prompts):
    """Types of tokens and their experts follow from the ids."""
    arguments = together(prompts)
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
        del arguments[name]
    ids = [p.ids for p in prompts]
    for a, b in zip(
        llm.forward(ids, **arguments), llm.forward(ids, **together(prompts)), strict=True
    ):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("shape", ["28b", "real_heads"])
def test_text_is_that_of_the_text_model(tmp_path, rng, shape):
    """With the text bank and ordinary positions, a model of text alone has the same bits."""
    config, _ = write_vl_checkpoint(tmp_path / "vl", shape=shape)
    text = {**text_config(config), "torch_dtype": "float32"}
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "config.json").write_text(json.dumps(text))
    safetensors_bytes.save(tmp_path / "text" / "model.safetensors", make_weights(text, "float32"))
    ids = [rng.integers(0, 180, count).tolist() for count in (1, 50)]
    with load(tmp_path / "vl") as vl, load(tmp_path / "text") as reference:
        expected = reference.forward(ids)
        for found, logits in zip(vl.forward(ids), expected, strict=True):
            assert np.array_equal(found, logits)
        # Beside images too.
        prompt = media_prompt(rng, config, *MEDIA)
        arguments = prompt.arguments()
        found = vl.forward([*ids, prompt.ids], pixel_values=arguments["pixel_values"], **{
            name: arguments[name] for name in ("image_grid_thw", "pixel_values_videos", "video_grid_thw")
        })  # fmt: skip
        for each, logits in zip(found, expected, strict=False):
            assert np.array_equal(each, logits)


@pytest.mark.parametrize("layout", [vl_to_paddle, vl_to_saved])
@pytest.mark.parametrize("is_nested", [False, True])
def test_every_layout(tmp_path, rng, layout, is_nested):
    config, weights = write_vl_checkpoint(tmp_path / "one")
    prompt = media_prompt(rng, config, *MEDIA[:2])
    with load(tmp_path / "one") as model:
        (expected,) = model.forward([prompt.ids], **prompt.arguments())
    write_vl_checkpoint(tmp_path / "two", is_nested=is_nested)
    safetensors_bytes.save(tmp_path / "two" / "model.safetensors", layout(weights))
    with load(tmp_path / "two") as model:
        (found,) = model.forward([prompt.ids], **prompt.arguments())
    assert np.array_equal(found, expected)


def test_features_do_not_depend_on_the_pieces(llm, rng, monkeypatch):
    items = [
        visual_item(rng, "image", (1, 8, 4)),
        visual_item(rng, "video", (6, 4, 6)),
        visual_item(rng, "image", (1, 4, 4)),
    ]
    whole = llm.model.visual_features(items)
    assert whole.shape == (sum(item.num_tokens for item in items), 64)
    for size in (1, 60, 200):
        monkeypatch.setattr(ernie_vl, "PATCHES_PER_PIECE", size)
        monkeypatch.setattr("ernie_kernels.models.vision_tower.MLP_ROWS", size)
        assert np.array_equal(llm.model.visual_features(items).numpy(), whole.numpy())
    first = items[0].num_tokens
    alone = llm.model.visual_features(items[1:])
    assert np.array_equal(alone.numpy(), whole.numpy()[first:])


@pytest.mark.parametrize(("kind", "grid"), [("image", (1, 6, 8)), ("video", (4, 4, 6))])
def test_pixels_are_their_patches(llm, rng, kind, grid):
    """To the bit: rescaled and normalised in the tower, or before it."""
    item = visual_item(rng, kind, grid)
    grid = np.array([item.grid_thw], np.int64)
    levels = from_numpy(VisionSettings().levels())
    cut = ops.image_patches(from_numpy(item.pixels.reshape(-1)), from_numpy(grid), levels)
    patches = replace(item, pixels=None, patches=cut.numpy())
    features = [llm.model.visual_features([each]).numpy() for each in (item, patches)]
    assert np.array_equal(*features)


def test_no_items(llm):
    assert llm.model.visual_features([]).shape == (0, 64)


# --------------------------------------------------------------------------- what must be seen


def _whole_videos(cls, grids, vision, device):
    batch = FRAMES(grids, vision, device)
    sizes = np.cumsum([0, *(t * h * w for t, h, w in grids)], dtype=np.int32)
    longest = int(np.diff(sizes).max())
    return replace(batch, cu_seqlens=from_numpy(sizes, device), max_seqlen=longest)


FRAMES = FrameBatch.of


def _permuted(op, order):
    def call(positions, *rest, **options):
        turned = from_numpy(np.ascontiguousarray(positions.numpy()[list(order)]))
        return op(turned, *rest, **options)

    return call


def _exchanged(x, grid_thw, **options):
    """The second frame before the first."""
    merged = ops_temporal_merge(x, grid_thw, **options).numpy()
    return from_numpy(np.ascontiguousarray(np.roll(merged, merged.shape[1] // 2, axis=1)))


ops_temporal_merge = ops.temporal_merge


def _bias_rows(llm):
    for layer in llm.model.model.layers[1:]:
        router = layer.mlp.router
        bias = router.correction_bias.numpy().reshape(2, -1)[::-1]
        router.correction_bias = from_numpy(np.ascontiguousarray(bias).reshape(-1))


def _gates(llm):
    for layer in llm.model.model.layers[1:]:
        layer.mlp.router.gates.reverse()


def _activation(llm):
    for block in llm.model.visual.tower.blocks:
        block.fc1.activation = "gelu"


CONTROLS = {
    "time and rows exchanged": lambda m, llm: m.setattr(
        ops, "mrope_table", _permuted(ops.mrope_table, (1, 0, 2))
    ),
    "rows and columns exchanged": lambda m, llm: m.setattr(
        ops, "mrope_table", _permuted(ops.mrope_table, (0, 2, 1))
    ),
    "rows and columns of patches exchanged": lambda m, llm: m.setattr(
        ops, "rope_2d_table", _permuted(ops.rope_2d_table, (1, 0))
    ),
    "attention over a whole video": lambda m, llm: m.setattr(
        FrameBatch, "of", classmethod(_whole_videos)
    ),
    "frames exchanged": lambda m, llm: m.setattr(ops, "temporal_merge", _exchanged),
    "biases of the other bank": lambda m, llm: _bias_rows(llm),
    "gates of the other bank": lambda m, llm: _gates(llm),
    "another gelu in the tower": lambda m, llm: _activation(llm),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_wrong_model_is_beyond_the_tolerance(tmp_path, rng, monkeypatch, control):
    """What transformers' logits are held to within 1e-4 of shows each of these."""
    config, _ = write_vl_checkpoint(tmp_path)
    prompt = media_prompt(rng, config, *MEDIA)
    with load(tmp_path) as model:
        (right,) = model.forward([prompt.ids], **prompt.arguments())
        CONTROLS[control](monkeypatch, model)
        model._engine._features.clear()  # made before something went wrong
        (wrong,) = model.forward([prompt.ids], **prompt.arguments())
    assert np.abs(wrong - right).max() > 1e-3


@pytest.mark.parametrize(
    ("control", "change"),
    [
        ("start and end to the text bank", lambda p: replace(p, banks=p.types)),
        ("all to the text bank", lambda p: replace(p, banks=[0] * len(p.ids))),
        ("banks exchanged", lambda p: replace(p, banks=[int(not b) for b in p.banks])),
        ("images exchanged", lambda p: replace(p, image_patches=p.image_patches[::-1].copy())),
    ],
)
def test_a_wrong_prompt_is_beyond_the_tolerance(llm, prompts, control, change):
    (right,) = llm.forward([prompts[0].ids], **prompts[0].arguments())
    changed = change(prompts[0])
    (wrong,) = llm.forward([changed.ids], **changed.arguments())
    assert np.abs(wrong - right).max() > 1e-2, control


def test_cached_blocks_of_an_image_are_not_those_of_its_ids(llm, prompts):
    """What was read with one picture is not found with another, and ids alone are refused."""
    prompt = prompts[0]
    other = replace(prompt, image_patches=-prompt.image_patches)
    first, second, again = (
        llm.forward([p.ids], **p.arguments())[0] for p in (prompt, other, prompt)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    greedy = ek.SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    text = [i for p in prompts for i in p.ids if i < 180][:40]
    llm.forward([text])
    before = llm.stats()["prefix_hit_tokens"]
    llm.generate(prompt_token_ids=[text], params=greedy)
    assert llm.stats()["prefix_hit_tokens"] > before
    with pytest.raises(ek.InputError, match="image placeholders, 0 images given"):
        llm.generate(prompt_token_ids=[prompt.ids], params=greedy)
