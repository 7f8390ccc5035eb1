"""Configurations of vision-language models: both spellings, and every contradiction."""

import logging
import math

import pytest
from config_file import ABSENT, load_changed, refuse_changed

from ernie_kernels.models.config import LayerPlan, load_config
from ernie_kernels.models.vision_config import MediaTokens, VisionConfig
from released_configs import ERNIE_21B, ERNIE_VL_28B, ERNIE_VL_424B, as_nested

NESTED_28B = as_nested(ERNIE_VL_28B)
TOWER = VisionConfig(
    depth=32,
    hidden_size=1280,
    num_heads=16,
    intermediate_size=5120,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-6,
    rope_theta=10000.0,
)


def load(folder, base=ERNIE_VL_28B, **changes):
    return load_changed(folder, base, **changes)


def refuse(folder, *words, base=ERNIE_VL_28B, **changes):
    refuse_changed(folder, base, *words, **changes)


def moe_layers(config):
    return [index for index, plan in enumerate(config.layers) if plan.mlp == "moe"]


# ------------------------------------------------------------------------------ released models


@pytest.mark.parametrize("base", [ERNIE_VL_28B, NESTED_28B], ids=["flat", "nested"])
def test_28b(tmp_path, caplog, base):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        config = load(tmp_path, base)
    assert not caplog.records
    assert config.architecture == "ernie4_5_vl_moe"
    moe = LayerPlan("moe", 1536, 64, 6, shared_intermediate_size=3072, vision_intermediate_size=512)
    assert config.layers == (LayerPlan("dense", 12288), *(moe,) * 27)
    assert moe.bank_widths == (1536, 512)
    assert config.layers[0].bank_widths == ()
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (64, 6, 2)
    assert (config.freq_allocation, config.rope_theta, config.head_dim) == (20, 500000.0, 128)
    assert config.vision == TOWER
    assert (TOWER.head_dim, TOWER.patch_values, TOWER.merged_size) == (80, 588, 5120)
    video = 103367 if "text_config" in base else 100295
    assert config.media_tokens == MediaTokens(100295, video, 101304, 101305, 101306, 101307)
    assert config.media_tokens.placeholders == {100295, video}
    assert config.media_tokens.around == {101304, 101305, 101306, 101307}
    assert hash(config)


@pytest.mark.parametrize("is_nested", [False, True])
def test_424b(tmp_path, caplog, is_nested):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        config = load(tmp_path, as_nested(ERNIE_VL_424B) if is_nested else ERNIE_VL_424B)
    assert not caplog.records
    moe = LayerPlan("moe", 3584, 64, 8, vision_intermediate_size=1536)
    assert config.layers == (*(LayerPlan("dense", 28672),) * 3, *(moe,) * 51)
    assert (config.tie_word_embeddings, config.num_shared_experts) == (False, 0)
    assert config.vision == TOWER


def test_a_text_model_has_no_vision(tmp_path):
    config = load(tmp_path, ERNIE_21B)
    assert (config.vision, config.media_tokens, config.freq_allocation) == (None, None, 0)
    assert config.layers[1].bank_widths == (1536,)


# ------------------------------------------------------------------------------------ spellings


@pytest.mark.parametrize(
    "name",
    [
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Ernie4_5_VL_MoeForConditionalGeneration",
        "Ernie4_5_VLMoEForConditionalGeneration",
    ],
)
@pytest.mark.parametrize("model_type", ["ernie4_5_vl_moe", "ernie4_5_moe_vl", ABSENT])
def test_spellings_of_the_class(tmp_path, name, model_type):
    config = load(tmp_path, architectures=[name], model_type=model_type)
    assert config == load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_num_experts": 64, "moe_k": [6, 6], "moe_num_shared_experts": [2]},
        {"moe_num_experts": ABSENT, "num_experts": [64, 64]},
        {"moe_layer_start_index": 1, "moe_layer_end_index": 27},
        {"moe_layer_start_index": [1, 5], "moe_layer_end_index": [3, 99]},
        {"moe_layer_end_index": [-1, 3]},
        {"moe_layer_end_index": ABSENT},
        {"rope_3d": ABSENT, "freq_allocation": ABSENT, "pixel_hidden_size": ABSENT},
        {"freq_allocation": ABSENT, "rope_scaling": {"mrope_section": [22, 22, 20]}},
        {"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 500000, "rope_type": "default"}},
        {"im_patch_id": ABSENT, "image_token_id": 100295},
        {"im_patch_id": ABSENT},
        {"moe_use_hard_gate": True, "multimodel_experts": True, "mm_vocab_size": 0},
        {"text_config": None},
        {"tower": {"embed_dim": ABSENT, "mlp_ratio": 4.0}},
        {"tower": {"hidden_size": ABSENT, "mlp_ratio": ABSENT, "in_channels": ABSENT}},
        {"tower": {"mlp_ratio": ABSENT, "intermediate_size": 5120, "patch_size": [14, 14]}},
        {"tower": {"num_heads": ABSENT, "num_attention_heads": 16, "spatial_merge_size": ABSENT}},
        {"tower": {"layer_norm_eps": 1e-6, "rope_parameters": {"rope_type": "axial"}}},
    ],
    ids=str,
)
def test_other_spellings_mean_the_same(tmp_path, caplog, changes):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        changed = load(tmp_path, **changes)
    assert not caplog.records
    assert changed == load(tmp_path)


def test_text_keys_may_be_in_both_places_where_they_agree(tmp_path):
    both = load(tmp_path, NESTED_28B, hidden_size=2560, rope_theta=500000.0, eos_token_id=2)
    assert both == load(tmp_path, NESTED_28B)
    # What trains or names a part is its own affair.
    different = load(tmp_path, NESTED_28B, initializer_range=0.5, text={"initializer_range": 0.02})
    assert different == both


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ([1, 1], [29, 28], range(1, 28)),
        ([4, 2], [7, 9], range(2, 10)),
        ([3], [5], range(3, 6)),
        (2, [-1, -1], range(2, 28)),
        ([28, 99], -1, []),
    ],
)
def test_which_layers_have_experts(tmp_path, starts, ends, expected):
    config = load(tmp_path, moe_layer_start_index=starts, moe_layer_end_index=ends)
    assert moe_layers(config) == list(expected)
    assert all(config.layers[index].bank_widths == (1536, 512) for index in expected)


@pytest.mark.parametrize(
    ("head_dim", "time"), [(128, 20), (128, 64), (16, 4), (16, 8), (12, 2), (66, 1)]
)
def test_pairs_of_time(tmp_path, head_dim, time):
    assert load(tmp_path, head_dim=head_dim, freq_allocation=time).freq_allocation == time
    pairs = (head_dim // 2 - time) // 2
    rope = {"mrope_section": [pairs, pairs, time], "rope_type": "default"}
    text = {"head_dim": head_dim, "rope_parameters": rope}
    assert load(tmp_path, NESTED_28B, text=text).freq_allocation == time


def test_activation_and_eps_of_the_tower(tmp_path):
    tower = load(
        tmp_path, tower={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "mlp_ratio": 2.5}
    ).vision
    assert (tower.hidden_act, tower.layer_norm_eps) == ("gelu", 1e-5)
    assert tower.intermediate_size == 3200


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("key", ["depth", "hidden_size", "num_heads"])
def test_row_26_missing_key_of_the_tower(tmp_path, key):
    tower = {key: ABSENT, "embed_dim": ABSENT}
    refuse(tmp_path, f"config.json: vision_config: {key}: missing", tower=tower)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("vision_config: expected an object, got null",), {"vision_config": ABSENT}),
        (("vision_config: expected an object, got a list",), {"vision_config": []}),
        (("text_config: expected an object or null, got 'x'",), {"text_config": "x"}),
        (("moe_intermediate_size: expected a list of two", "got 1536"),
         {"moe_intermediate_size": 1536}),
        (("moe_intermediate_size: expected a list of two", "got a list"),
         {"moe_intermediate_size": [1536]}),
        (("moe_intermediate_size: expected an integer", "got true"),
         {"moe_intermediate_size": [1536, True]}),
        (("moe_num_experts: expected an integer, or a list of two",),
         {"moe_num_experts": [64, 64, 64]}),
        (("moe_num_experts: expected an integer, or a list of two",), {"moe_num_experts": []}),
        (("moe_layer_end_index: expected an integer", "got '3'"), {"moe_layer_end_index": [1, "3"]}),
        (("moe_layer_start_index: missing",), {"moe_layer_start_index": ABSENT}),
        (("moe_num_experts: missing",), {"moe_num_experts": ABSENT}),
        (("rope_3d: expected true or false, got 1",), {"rope_3d": 1}),
        (("rope_scaling: mrope_section: expected a list of three integers",),
         {"rope_scaling": {"mrope_section": [22, 42]}}),
        (("rope_scaling: mrope_section: expected a list of three", "got a list"),
         {"rope_scaling": {"mrope_section": [22, 22, True]}}),
        (("image_token_id: expected one token id", "got a list"),
         {"im_patch_id": ABSENT, "image_token_id": [5]}),
        (("vision_config: mlp_ratio: expected a finite number",), {"tower": {"mlp_ratio": "4"}}),
        (("vision_config: depth: expected an integer 1..1024, got 32.0",),
         {"tower": {"depth": 32.0}}),
    ],
    ids=str,
)  # fmt: skip
def test_row_26_wrong_type(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


@pytest.mark.parametrize("value", [0, -1, 1025, 2**31, 10**400])
@pytest.mark.parametrize("key", ["depth", "num_heads"])
def test_row_27_dimension_out_of_range(tmp_path, key, value):
    refuse(tmp_path, f"vision_config: {key}: expected an integer 1..1024", tower={key: value})


@pytest.mark.parametrize("ratio", [1e-3, 1 / 3, 1e30, 2**20])
def test_row_27_width_out_of_range(tmp_path, ratio):
    refuse(tmp_path, "intermediate_size: expected an integer 1..", tower={"mlp_ratio": ratio})


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("'hidden_size' is 2048 but 2560 in text_config",),
         {"base": NESTED_28B, "hidden_size": 2048}),
        (("'moe_k' is 8 but 6 in text_config",), {"base": NESTED_28B, "moe_k": 8}),
        (("im_patch_id and image_token_id differ",), {"image_token_id": 100296}),
        (("two of them are the same",), {"image_start_token_id": 100295}),
        (("two of them are the same",), {"image_start_token_id": 7, "video_end_token_id": 7}),
        (("freq_allocation and mrope_section differ", "18 and 20"),
         {"rope_scaling": {"mrope_section": [23, 23, 18]}}),
        (("mrope_section is [20, 24, 20]", "head_dim/2=64"),
         {"rope_scaling": {"mrope_section": [20, 24, 20]}}),
        (("mrope_section is [22, 22, 22]",), {"rope_scaling": {"mrope_section": [22, 22, 22]}}),
        (("freq_allocation=20 with head_dim=16: expected at most head_dim/2=8",), {"head_dim": 16}),
        (("freq_allocation=21 with head_dim=128", "even number"), {"freq_allocation": 21}),
        (("moe_num_experts: expected the same number for both banks, got 64 and 32",),
         {"moe_num_experts": [64, 32]}),
        (("moe_k: expected the same number for both banks, got 6 and 8",), {"moe_k": [6, 8]}),
        (("pixel_hidden_size is 1024 but hidden_size of vision_config is 1280",),
         {"pixel_hidden_size": 1024}),
        (("vision_config: embed_dim and hidden_size differ",), {"tower": {"embed_dim": 1024}}),
        (("intermediate_size=5000 is not hidden_size=1280 times mlp_ratio=4.0",),
         {"tower": {"intermediate_size": 5000}}),
        (("hidden_size=1280 with num_heads=3",), {"tower": {"num_heads": 3}}),
        (("hidden_size=1280 with num_heads=640", "a multiple of 4"), {"tower": {"num_heads": 640}}),
        (("hidden_size=1280 with num_heads=4", "up to 256"), {"tower": {"num_heads": 4}}),
        (("moe_layer_end_index=2 is before moe_layer_start_index=5",),
         {"moe_layer_start_index": [5, 6], "moe_layer_end_index": [1, 2]}),
        (("rope_theta is 500000.0 but the nested rope_theta is 10000.0",),
         {"rope_scaling": {"rope_theta": 10000}}),
    ],
    ids=str,
)  # fmt: skip
def test_row_28_contradiction(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


def test_row_28_token_ids_beyond_the_vocabulary(tmp_path):
    refuse(tmp_path, "image_token_id: expected token ids", vocab_size=1000)
    small = {"vocab_size": 1000, "im_patch_id": 7}
    refuse(tmp_path, "image_start_token_id: missing", "vocab_size=1000", **small)


def test_row_29_more_choices_than_experts(tmp_path):
    refuse(tmp_path, "moe_k=6 is more than moe_num_experts=5", moe_num_experts=[5, 5])


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("rope_3d: expected true",), {"rope_3d": False}),
        (("spatial_conv_size: expected 2",), {"spatial_conv_size": 3}),
        (("temporal_conv_size: expected 2",), {"temporal_conv_size": 1}),
        (("use_temporal_conv: expected true",), {"use_temporal_conv": False}),
        (("mm_vocab_size: expected 0",), {"mm_vocab_size": 16384}),
        (("use_bias: expected false",), {"use_bias": True}),
        (("vision_config: patch_size: expected 14", "got 16"), {"tower": {"patch_size": 16}}),
        (("vision_config: patch_size: expected 14", "got a list"),
         {"tower": {"patch_size": [14, 16]}}),
        (("vision_config: in_channels: expected 3",), {"tower": {"in_channels": 4}}),
        (("vision_config: spatial_merge_size: expected 2",), {"tower": {"spatial_merge_size": 1}}),
        (("vision_config: temporal_merge_size: expected 2",), {"tower": {"temporal_merge_size": 4}}),
        (("vision_config: hidden_act: expected one of quick_gelu, gelu", "'relu'"),
         {"tower": {"hidden_act": "relu"}}),
        (("vision_config: rope_parameters: rope_type: expected one of axial, default",),
         {"tower": {"rope_parameters": {"rope_type": "yarn"}}}),
        (("rope_scaling: rope_type: expected one of default",),
         {"rope_scaling": {"rope_type": "yarn"}}),
        (("'mrope_other'",), {"mrope_other": 1}),
        (("vision_config: quantization_config",), {"tower": {"quantization_config": {"a": 1}}}),
    ],
    ids=str,
)  # fmt: skip
def test_row_30_unsupported_value(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1.0, 1e-50])
@pytest.mark.parametrize("key", ["rms_norm_eps", "mlp_ratio", "rope_theta"])
def test_row_31_numbers_of_the_tower(tmp_path, key, value):
    refuse(tmp_path, f"{key}: expected a finite number > 0", tower={key: value})


def test_a_text_model_refuses_lists_and_positions_of_vision(tmp_path):
    refuse(tmp_path, "moe_k: expected an integer", base=ERNIE_21B, moe_k=[6, 6])
    refuse(tmp_path, "rope_3d: expected false", base=ERNIE_21B, rope_3d=True)
    section = {"mrope_section": [22, 22, 20]}
    refuse(tmp_path, "mrope_section", base=ERNIE_21B, rope_scaling=section)


# --------------------------------------------------------------------------------- transformers


@pytest.mark.oracle
def test_config_written_by_transformers(tmp_path, caplog):
    transformers = pytest.importorskip("transformers")
    reference = transformers.Ernie4_5_VLMoeConfig()
    reference.architectures = ["Ernie4_5_VLMoeForConditionalGeneration"]
    reference.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        config = load_config(tmp_path)
    assert not caplog.records
    expected = load(tmp_path, NESTED_28B)
    assert config.layers == expected.layers
    assert (config.vision, config.media_tokens) == (expected.vision, expected.media_tokens)
    assert (config.freq_allocation, config.rope_theta) == (20, 500000.0)


@pytest.mark.oracle
def test_tiny_config_written_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]}
    reference = transformers.Ernie4_5_VLMoeConfig(
        text_config={
            "num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rope_parameters": rope, "moe_num_experts": 8, "moe_k": 3,
            "moe_intermediate_size": [24, 16], "mlp_layer_types": ["dense", "sparse", "dense"],
        },
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48},
        tie_word_embeddings=False,
    )  # fmt: skip
    reference.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    assert moe_layers(config) == [1]
    assert config.layers[1] == LayerPlan("moe", 24, 8, 3, 48, vision_intermediate_size=16)
    assert (config.freq_allocation, config.tie_word_embeddings) == (2, False)
    assert (config.vision.depth, config.vision.intermediate_size) == (2, 48)
