"""``verify`` of vision-language models: passes what is right, names what is not."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import media_arguments, ops
from ernie_kernels.models import media_positions
from ernie_kernels.verify import media
from ernie_kernels.verify.check import verify, verify_loaded
from ernie_kernels.verify.float64_vision import Float64Vision
from ernie_kernels.verify.media import Layout, Picture, Prompt, media_prompt
from ernie_kernels.verify.vision_shape import MediaIds
from tiny_checkpoint import in_shards
from vl_checkpoint import VL_SHAPES, vl_to_paddle, vl_to_saved, write_vl_checkpoint

DTYPES = ["float32", "bfloat16"]
LAYER = 2  # with experts in the shape that is corrupted


# ---------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", VL_SHAPES)
def test_random_models_pass(tmp_path, device, shape, dtype):
    config, _ = write_vl_checkpoint(tmp_path, dtype=dtype, seed=3, shape=shape)
    promised = []
    report = verify(
        tmp_path, device=device, progress=lambda stages, count: (promised.append(count), stages)[1]
    )
    assert report.failures == []
    assert promised == [len(report.stages)]
    assert report.pictures == (
        "an image of 112 x 84 pixels",
        "a video of 8 x 28 x 56 pixels",
    )
    layers = [f"layer {index}" for index in range(config["num_hidden_layers"])]
    assert [stage.name for stage in report.stages] == [
        "patches", "block 0", "block 1", "resampler", "embedding", *layers, "head",
    ]  # fmt: skip
    if dtype == "float32" and device == "cpu":
        assert report.logits.mean_kl < 1e-10
        assert max(stage.relative_error for stage in report.stages) < 1e-5


@pytest.mark.parametrize(
    "quantization",
    ["wint8", "w8a8", "wint4", {"dense_quant_type": "wint4", "moe_quant_type": "w8a8"}],
    ids=str,
)
def test_quantised_models_pass(tmp_path, quantization):
    """Tower and resampler stay as they are."""
    write_vl_checkpoint(tmp_path, dtype="bfloat16")
    report = verify(tmp_path, device="cpu", quantization=quantization)
    assert report.failures == []


@pytest.mark.parametrize(
    ("is_nested", "stored"),
    [(False, dict), (False, vl_to_paddle), (True, vl_to_saved)],
    ids=["baidu", "paddle", "transformers"],
)
def test_every_layout_is_read(tmp_path, is_nested, stored):
    """A square router too, whose matrix could lie either way."""
    _, weights = write_vl_checkpoint(
        tmp_path, is_nested=is_nested, moe_num_experts=[64, 64], moe_k=6
    )
    (tmp_path / "model.safetensors").unlink()
    safetensors_bytes.save_sharded(tmp_path, in_shards(stored(weights)))
    assert verify(tmp_path, device="cpu").failures == []


@pytest.mark.parametrize("options", [
    {"position_rule": "transformers"},
    {"bank_rule": "fastdeploy"},
    {"image_mean": (0.1, 0.2, 0.3)},
])  # fmt: skip
def test_models_loaded_with_options_pass(tmp_path, options):
    """The placeholder's id is low, so that by the rule of ids much of the text asks for vision."""
    ids = {"im_patch_id": 90, "video_token_id": 91}
    write_vl_checkpoint(tmp_path, **ids)
    assert verify(tmp_path, device="cpu", mm_processor_kwargs=options).failures == []


def test_one_placeholder_for_images_and_videos_passes(tmp_path):
    write_vl_checkpoint(tmp_path, video_token_id=None)
    assert verify(tmp_path, device="cpu").failures == []


def test_files_of_the_other_convention_are_the_same_model(tmp_path):
    """transformers has an id for videos, Baidu that of images."""
    one, other = tmp_path / "one", tmp_path / "other"
    write_vl_checkpoint(one)
    write_vl_checkpoint(other, video_token_id=None)
    assert verify(one, reference=other, device="cpu").failures == []
    assert verify(other, reference=one, device="cpu").failures == []
    write_vl_checkpoint(other, image_start_token_id=196)
    with pytest.raises(ek.ConfigError, match="image_start_token_id is 192 in the model and 196"):
        verify(one, reference=other, device="cpu")


def test_a_model_too_short_for_the_prompt_is_refused(tmp_path):
    write_vl_checkpoint(tmp_path)
    with pytest.raises(ek.LimitError, match="has 38 tokens, more than max_model_len=32"):
        verify(tmp_path, device="cpu", max_model_len=32)


def test_another_models_files_are_refused(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_vl_checkpoint(one)
    write_vl_checkpoint(other, vision_config={**VL_SHAPES["28b"]["vision_config"], "depth": 3})
    with pytest.raises(ek.ConfigError, match=r"vision_config.depth is 2 in the model and 3 in"):
        verify(one, reference=other, device="cpu")
    write_vl_checkpoint(other, moe_intermediate_size=[24, 24])
    with pytest.raises(ek.ConfigError, match=r"moe_intermediate_size is \[\[24, 16\]\]"):
        verify(one, reference=other, device="cpu")


# ------------------------------------------------------------------------------- float64's own rules


IDS = MediaIds(190, 191, 192, 193, 194, 195)


def test_positions_by_hand():
    """Two tokens, a video of three pairs of frames of one row and two columns, and two more."""
    video = Picture("video", np.zeros((6, 28, 56, 3), np.uint8), 2)
    prompt = Prompt(np.zeros(10, np.int64), (video,))
    time, row, column = media.positions(prompt, "baidu").tolist()
    assert time == [0, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    assert row == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert column == [0, 1, 2, 3, 2, 3, 2, 3, 5, 6]
    assert media.positions(prompt, "transformers")[:, 8:].tolist() == [[4, 5]] * 3


def test_the_rules_are_the_engines():
    """Two ways of writing them down."""
    prompt = media_prompt(np.arange(64), IDS)
    types = np.zeros(len(prompt.ids), np.int64)
    for kind, picture in enumerate(prompt.pictures, 1):
        types[picture.first : picture.stop] = kind
    grids = [[picture.grid] for picture in prompt.pictures]
    behind = []
    for rule in media_positions.POSITION_RULES:
        expected, _ = media_positions.token_positions(types, *grids, rule=rule)
        layout = Layout.of([prompt], rule)
        np.testing.assert_array_equal(layout.positions, expected)
        behind.append(expected[0, -1])
    assert behind[0] != behind[1]
    for picture in prompt.pictures:
        places = media_positions.patch_positions([picture.grid])
        np.testing.assert_array_equal(media.patch_positions(picture).T, places)


# ------------------------------------------------------------------ corrupted in the model's memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    # Of bounds that are wide. Banks of one width: one can stand in the other's place.
    write_vl_checkpoint(folder, dtype="bfloat16", moe_intermediate_size=[24, 24])
    return folder


def failures_after(folder, change=lambda model: None) -> list[str]:
    """Of parts: what is wrong of the logits is left out."""
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        change(llm.model)
        failures = verify_loaded(llm, folder).failures
    return [failure for failure in failures if ": " in failure]


def flip(array: np.ndarray, *index: int) -> None:
    assert array[index] != 0
    array[index] = -array[index]


def first_of(layer) -> np.ndarray:
    """The first panel of a packed weight, of one dimension."""
    return layer.weight.tensor.numpy()[0].reshape(-1)


def block(model):
    return model.visual.tower.blocks[1]


def moe(model):
    return model.model.layers[LAYER].mlp


WRONG = {
    "block 1: attn.qkv, queries weights": lambda m: flip(first_of(block(m).qkv), 0),
    "block 1: attn.qkv, keys weights": lambda m: flip(block(m).qkv.bias.numpy(), 32),
    "block 1: attn.qkv, values weights": lambda m: flip(block(m).qkv.bias.numpy(), 95),
    "block 1: attn.proj weights": lambda m: drop_bias(block(m).proj),
    "block 1: norm1": lambda m: flip(block(m).norm1.bias.numpy(), 3),
    "block 1: norm2": lambda m: flip(block(m).norm2.weight.numpy(), 3),
    "block 1: norm2 near eps": lambda m: setattr(block(m).norm2, "eps", 1e-5),
    "block 1: mlp.fc1 weights": lambda m: drop_bias(block(m).fc1),
    "block 1: mlp.fc1 and quick_gelu": lambda m: setattr(block(m).fc1, "activation", "gelu"),
    "block 1: mlp.fc2 weights": lambda m: flip(first_of(block(m).fc2), 0),
    "patches: levels of pixels": lambda m: flip(m.visual.tower.levels.numpy(), 1, 200),
    "patches: patch_embed.proj weights": lambda m: flip(
        m.visual.tower.patch_embed.tensor.numpy()[0].reshape(-1), 0
    ),
    "resampler: ln": lambda m: flip(m.visual.tower.norm.bias.numpy(), 0),
    "resampler: spatial_linear.0 weights": lambda m: drop_bias(resampler(m).spatial_linear.fc1),
    "resampler: spatial_linear.3": lambda m: flip(
        resampler(m).spatial_linear.norm.weight.numpy(), 1
    ),
    "resampler: temporal_linear.0 and gelu": lambda m: setattr(
        resampler(m).temporal_linear.fc1, "activation", "quick_gelu"
    ),
    "resampler: temporal_linear.2 weights": lambda m: drop_bias(resampler(m).temporal_linear.fc2),
    "resampler: mlp weights": lambda m: drop_bias(resampler(m).mlp),
    "resampler: after_norm near eps": lambda m: setattr(resampler(m).after_norm, "eps", 1e-6),
    "layer 2: router weights": lambda m: moe(m).router.gates.reverse(),
    "layer 2: vision router weights": lambda m: moe(m).router.gates.reverse(),
    "layer 2: vision correction bias": lambda m: flip(moe(m).router.correction_bias.numpy(), 13),
    "layer 2: experts.": lambda m: moe(m).down_projs.reverse(),
}  # fmt: skip


def resampler(model):
    return model.visual.resampler


def drop_bias(layer) -> None:
    layer.bias = None


@pytest.mark.parametrize("part", WRONG)
def test_what_is_wrong_is_named(folder, part):
    failures = failures_after(folder, WRONG[part])
    end = "" if part.endswith(".") else ":"
    assert any(failure.startswith(f"{part}{end}") for failure in failures)
    stages = {failure.split(":")[0] for failure in failures}
    assert stages == {part.split(":")[0]}


def test_swapped_banks_of_experts_are_found(folder):
    def swap(model) -> None:
        moe(model).gate_up_projs.reverse()
        moe(model).down_projs.reverse()

    failures = failures_after(folder, swap)
    assert any("gate_proj weights" in failure for failure in failures)
    assert all(failure.startswith("layer 2: experts.") for failure in failures)


# --------------------------------------------------------------------------------- wrong in the code


def test_interleaved_pairs_in_the_tower_are_found(folder, monkeypatch):
    """The decoder's pairing where the tower's is wanted."""

    def interleaved(query, key, table):
        cos, sin = (half[:, None] for half in np.split(table.numpy(), 2, axis=1))
        for tensor in (query, key):
            x = tensor.numpy()
            even, odd = x[..., 0::2].astype(np.float32), x[..., 1::2].astype(np.float32)
            x[..., 0::2], x[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin

    monkeypatch.setattr(ops, "rope_2d", interleaved)
    failures = failures_after(folder)
    assert failures[0].startswith("block 0: attn.qkv, queries and 2-D RoPE:")


def test_attention_across_frames_is_found(folder, monkeypatch):
    attend = ops.varlen_attention

    def across(query, key, value, *, cu_seqlens, max_seqlen, out):
        whole = ek.from_numpy(np.array([0, len(query)], np.int32))
        attend(query, key, value, cu_seqlens=whole, max_seqlen=len(query), out=out)

    monkeypatch.setattr(ops, "varlen_attention", across)
    assert failures_after(folder)[0].startswith("block 0: attention within a frame:")


def test_frames_merged_in_another_order_are_found(folder, monkeypatch):
    merge = ops.temporal_merge

    def later_first(x, grid_thw, **options):
        out = merge(x, grid_thw, **options)
        halves = out.numpy()
        half = halves.shape[1] // 2
        halves[...] = np.concatenate([halves[:, half:], halves[:, :half]], axis=1)
        return out

    monkeypatch.setattr(ops, "temporal_merge", later_first)
    assert failures_after(folder)[0].startswith("resampler: rows of temporal_linear:")


def test_patches_in_another_order_are_found(folder, monkeypatch):
    embed = ops.patch_embed

    def turned(*arguments, **options):
        out = embed(*arguments, **options)
        rows = out.numpy()
        rows[...] = rows.reshape(-1, 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        return out

    monkeypatch.setattr(ops, "patch_embed", turned)
    assert failures_after(folder)[0].startswith("patches: patch_embed:")


def test_features_in_other_rows_are_found(folder, monkeypatch):
    scatter = ops.scatter_rows

    def reversed_rows(x, rows, out):
        scatter(x, ek.from_numpy(rows.numpy()[::-1].copy()), out)

    monkeypatch.setattr(ops, "scatter_rows", reversed_rows)
    assert failures_after(folder)[0].startswith("embedding: rows of the prompts:")


def test_permuted_rows_of_positions_are_found(folder, monkeypatch):
    table = ops.mrope_table

    def permuted(positions, *arguments, **options):
        rows = np.ascontiguousarray(positions.numpy()[[1, 2, 0]])
        return table(ek.from_numpy(rows), *arguments, **options)

    monkeypatch.setattr(ops, "mrope_table", permuted)
    assert failures_after(folder)[0].startswith("layer 0: q_proj and RoPE:")


def test_the_other_rule_of_positions_is_found(folder, monkeypatch):
    place = media_arguments.token_positions

    def other_rule(types, images, videos, *, rule, where):
        return place(types, images, videos, rule="transformers", where=where)

    monkeypatch.setattr(media_arguments, "token_positions", other_rule)
    assert failures_after(folder)[0].startswith("embedding: positions:")


def test_marks_around_media_sent_to_the_text_experts_are_found(folder, monkeypatch):
    def placeholders_alone(ids, tokens):
        return np.isin(ids, list(tokens.placeholders)).astype(np.uint8)

    monkeypatch.setattr(media_arguments, "banks_of", placeholders_alone)
    failures = failures_after(folder)
    assert failures[0].startswith("embedding: banks of experts:")
    assert any(failure.startswith("layer 1: choice of vision experts:") for failure in failures)


def test_one_bank_for_all_is_found(folder, monkeypatch):
    monkeypatch.setattr(
        media_arguments, "banks_of", lambda ids, tokens: np.zeros(len(ids), np.uint8)
    )
    assert failures_after(folder)[0].startswith("embedding: banks of experts:")


def test_lost_preprocessor_values_are_found(tmp_path):
    """A converted checkpoint without the file, against the one that it was made from."""
    one, other = tmp_path / "one", tmp_path / "other"
    for each in (one, other):
        write_vl_checkpoint(each)
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (other / "preprocessor_config.json").write_text(json.dumps(values))
    assert verify(other, device="cpu").failures == []
    failures = verify(one, reference=other, device="cpu").failures
    assert failures[0].startswith("patches: levels of pixels:")


def test_what_the_tower_makes_elsewhere_is_held_against_its_parts(folder, monkeypatch):
    """A mistake that is not in any part, but in how they are put together."""
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        encode = llm.model.visual_features
        monkeypatch.setattr(llm.model, "visual_features", lambda items: encode(items[::-1]))
        failures = verify_loaded(llm, folder).failures
    assert failures[0].startswith("resampler: features:")


def test_the_twin_rounds_and_the_exact_model_does_not():
    """Of the same tower, the twin's rows are all bfloat16."""
    from ernie_kernels.verify.stored_weights import Matrix
    from ernie_kernels.verify.twin import Twin
    from ernie_kernels.verify.vision_shape import VisionShape

    rng = np.random.default_rng(0)
    picture = Picture("image", np.zeros((1, 28, 28, 3), np.uint8), 0)
    shape = VisionShape(1, 8, 1, 16, "quick_gelu", 1e-6, 10000.0)
    tower = Float64Vision(shape, [picture], 1e-5, Twin(exists=True))
    patches, weight = rng.standard_normal((4, 588)), rng.standard_normal((8, 588))
    tower.embed(patches, Matrix(weight, None))
    np.testing.assert_allclose(tower.hidden, patches @ weight.T)
    assert not np.array_equal(tower.hidden, tower.hidden.astype(ml_dtypes.bfloat16))
