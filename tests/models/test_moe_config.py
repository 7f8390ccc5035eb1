import logging
import math

import pytest
from config_file import ABSENT, load_changed, refuse_changed

from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config import LayerPlan, load_config
from ernie_kernels.models.config_reader import EXPERT_RANGES
from released_configs import ERNIE_0_3B, ERNIE_21B, ERNIE_300B

RULE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
DENSE_21B = LayerPlan("dense", 12288)
MOE_21B = LayerPlan("moe", 1536, num_experts=64, top_k=6, shared_intermediate_size=3072)


def load(folder, base=ERNIE_21B, **changes):
    return load_changed(folder, base, **changes)


def refuse(folder, *words, **changes):
    refuse_changed(folder, ERNIE_21B, *words, **changes)


def moe_layers(config):
    return [index for index, plan in enumerate(config.layers) if plan.mlp == "moe"]


# ------------------------------------------------------------------------------ released models


def test_layers_of_0_3b(tmp_path):
    config = load(tmp_path, ERNIE_0_3B)
    assert config.layers == (LayerPlan("dense", 3072),) * 18
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (0, 0, 0)
    assert (config.moe_intermediate_size, config.correction_bias) == (0, False)
    assert config.num_nextn_predict_layers == 0


def test_layers_of_21b(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        config = load(tmp_path)
    assert not caplog.records
    assert config.architecture == "ernie4_5_moe"
    assert config.layers == (DENSE_21B, *(MOE_21B,) * 27)
    assert (config.num_experts, config.top_k, config.num_shared_experts) == (64, 6, 2)
    assert (config.moe_intermediate_size, config.intermediate_size) == (1536, 12288)
    assert (config.norm_min, config.correction_bias) == (1e-12, True)
    assert (config.num_nextn_predict_layers, config.head_dim) == (1, 128)
    assert hash(config)


def test_layers_of_300b(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        config = load(tmp_path, ERNIE_300B)
    assert not caplog.records
    moe = LayerPlan("moe", 3584, num_experts=64, top_k=8, shared_intermediate_size=0)
    assert config.layers == (*(LayerPlan("dense", 28672),) * 3, *(moe,) * 51)
    assert (config.num_shared_experts, config.tie_word_embeddings) == (0, False)


# ------------------------------------------------------------------------------------ spellings


@pytest.mark.parametrize("name", ["Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"])
def test_both_spellings_of_the_class(tmp_path, name):
    assert load(tmp_path, architectures=[name], model_type=ABSENT).architecture == "ernie4_5_moe"


def test_model_type_alone(tmp_path):
    assert load(tmp_path, architectures=ABSENT).architecture == "ernie4_5_moe"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"moe_layer_end_index": -1}, range(1, 28)),
        ({"moe_layer_end_index": ABSENT}, range(1, 28)),
        ({"moe_layer_end_index": 29}, range(1, 28)),  # beyond the last layer
        ({"moe_layer_end_index": 3}, range(1, 4)),
        ({"moe_layer_start_index": 0}, range(28)),
        ({"moe_layer_start_index": 27}, [27]),
        ({"moe_layer_start_index": 28, "moe_layer_end_index": -1}, []),
        ({"moe_layer_interval": ABSENT}, range(1, 28)),
        ({"moe_layer_interval": 2}, range(1, 28, 2)),  # layers 1, 3, ...: l + 1 is a multiple
        ({"moe_layer_interval": 3, "moe_layer_start_index": 3}, range(5, 28, 3)),
        ({"moe_layer_start_index": [1], "moe_layer_end_index": [29]}, range(1, 28)),
        ({"num_hidden_layers": 1}, []),
    ],
)
def test_which_layers_have_experts(tmp_path, changes, expected):
    config = load(tmp_path, **changes)
    assert moe_layers(config) == list(expected)
    sizes = (64, 6, 1536, 2) if expected else (0, 0, 0, 0)
    assert sizes == (
        config.num_experts,
        config.top_k,
        config.moe_intermediate_size,
        config.num_shared_experts,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_num_experts": [64], "moe_k": [6], "moe_intermediate_size": [1536]},
        {"moe_num_experts": ABSENT, "num_experts": 64, "moe_k": ABSENT, "num_experts_per_tok": 6},
        {"num_experts": 64, "num_experts_per_tok": 6},
        {"moe_use_aux_free": ABSENT},
        {"moe_use_aux_free": ABSENT, "use_aux_free": True},
        {"moe_gate_act": "softmax", "moe_norm_gate_logits": True, "moe_gate": "topk"},
        {"moe_gate": "topk_fused", "moe_capacity": [64, 64, 64], "moe_group_experts": False},
        {"moe_norm_min": 1e-12, "output_router_logits": False, "router_aux_loss_coef": 0.001},
        {"mlp_layer_types": ["dense"] + ["sparse"] * 27},
        {"mlp_layer_types": ["dense"] + ["sparse"] * 27, **dict.fromkeys(RULE, ABSENT)},
    ],
)
def test_other_spellings_mean_the_same(tmp_path, caplog, changes):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        changed = load(tmp_path, **changes)
    assert not caplog.records
    assert changed == load(tmp_path)


def test_layer_types_alone_decide(tmp_path):
    kinds = ["sparse", "dense"] * 14
    config = load(tmp_path, mlp_layer_types=kinds, **dict.fromkeys(RULE, ABSENT))
    assert moe_layers(config) == list(range(0, 28, 2))


@pytest.mark.parametrize("count", [None, ABSENT, 0])
def test_no_shared_experts(tmp_path, count):
    config = load(tmp_path, moe_num_shared_experts=count)
    assert config.num_shared_experts == config.layers[1].shared_intermediate_size == 0


def test_norm_min(tmp_path):
    assert load(tmp_path, moe_norm_min=1e-6).norm_min == 1e-6


@pytest.mark.parametrize("base", [ERNIE_0_3B, ERNIE_21B])
@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "multi_token_pred_depth"])
def test_prediction_modules(tmp_path, base, key):
    config = load(tmp_path, {**base, "num_nextn_predict_layers": None, key: 1})
    assert config.num_nextn_predict_layers == 1


# ------------------------------------------------------------------------------------- refusals


REQUIRED = ("moe_num_experts", "moe_k", "moe_intermediate_size", "moe_layer_start_index")


@pytest.mark.parametrize("key", REQUIRED)
def test_row_26_missing_key(tmp_path, key):
    refuse(tmp_path, f"{key}: missing", **{key: ABSENT})


@pytest.mark.parametrize("key", EXPERT_RANGES)
@pytest.mark.parametrize(
    ("value", "got"), [(True, "true"), ("64", "'64'"), (64.0, "64.0"), ([6, 6], "a list")]
)
def test_row_26_size_of_the_wrong_type(tmp_path, key, value, got):
    refuse(tmp_path, f"{key}: expected an integer", f"got {got}", **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("moe_norm_min", "1e-12", "'1e-12'"),
        ("moe_use_aux_free", 1, "1"),
        ("moe_gate_act", 3, "3"),
        ("mlp_layer_types", "sparse", "'sparse'"),
        ("mlp_layer_types", [], "0 entries"),
        ("mlp_layer_types", ["dense"] * 27, "27 entries"),
        ("mlp_layer_types", [["dense"]] * 28, "a list"),
        ("mlp_layer_types", ["full"] * 28, "'full'"),
    ],
)
def test_row_26_wrong_type(tmp_path, key, value, got):
    refuse(tmp_path, f"{key}: expected", f"got {got}", **{key: value})


@pytest.mark.parametrize("key", EXPERT_RANGES)
@pytest.mark.parametrize("value", [-2, 2**31 - 1, 2**31, 2**63, 10**400])
def test_row_27_dimension_out_of_range(tmp_path, key, value):
    low, high = EXPERT_RANGES[key]
    got = str(value) if value < 2**64 else "an integer of 1329 bits"
    refuse(tmp_path, f"{key}: expected an integer {low}..{high}, got {got}", **{key: value})


@pytest.mark.parametrize("key", ["moe_num_experts", "moe_k", "moe_intermediate_size"])
def test_row_29_zero(tmp_path, key):
    refuse(tmp_path, f"{key}: expected an integer 1..", "got 0", **{key: 0})


@pytest.mark.parametrize(("experts", "top_k"), [(64, 65), (1, 2), (5, 4096)])
def test_row_29_more_choices_than_experts(tmp_path, experts, top_k):
    words = (f"moe_k={top_k}", f"moe_num_experts={experts}")
    refuse(tmp_path, *words, moe_num_experts=experts, moe_k=top_k)


@pytest.mark.parametrize("experts", [1, 6, 4096])
def test_all_experts_may_be_chosen(tmp_path, experts):
    assert load(tmp_path, moe_num_experts=experts, moe_k=experts).top_k == experts


@pytest.mark.parametrize(
    ("key", "value"),
    [("n_group", 8), ("topk_group", 4), ("moe_group_experts", True), ("moe_use_hard_gate", True)],
)
def test_row_29_groups(tmp_path, key, value):
    refuse(tmp_path, f"{key}: expected", "null", **{key: value})


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("moe_layer_end_index=2", "moe_layer_start_index=5"),
         {"moe_layer_start_index": 5, "moe_layer_end_index": 2}),
        (("layer 0 is sparse by mlp_layer_types but dense by moe_layer_start_index",),
         {"mlp_layer_types": ["sparse"] * 28}),
        (("layer 27 is dense by mlp_layer_types but sparse",),
         {"mlp_layer_types": ["dense"] + ["sparse"] * 26 + ["dense"]}),
        (("moe_layer_start_index: missing",),
         {"mlp_layer_types": ["sparse"] * 28, "moe_layer_start_index": ABSENT}),
        (("num_experts and moe_num_experts differ",), {"num_experts": 32}),
        (("num_experts_per_tok and moe_k differ",), {"num_experts_per_tok": 8}),
        (("use_aux_free and moe_use_aux_free differ",), {"use_aux_free": False}),
        (("num_nextn_predict_layers and multi_token_pred_depth differ",),
         {"multi_token_pred_depth": 2}),
        (("architectures is 'Ernie4_5_MoeForCausalLM'", "model_type is 'ernie4_5'"),
         {"model_type": "ernie4_5"}),
    ],
)  # fmt: skip
def test_row_28_contradiction(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("moe_use_aux_free: expected true", "got false"), {"moe_use_aux_free": False}),
        (("moe_use_aux_free: expected true",), {"moe_use_aux_free": ABSENT, "use_aux_free": False}),
        (("moe_gate_act: expected one of softmax, got 'sigmoid'",), {"moe_gate_act": "sigmoid"}),
        (("scoring_func: expected 'softmax'", "'sigmoid'"), {"scoring_func": "sigmoid"}),
        (("moe_gate: expected 'topk'", "'hash'"), {"moe_gate": "hash"}),
        (("moe_norm_gate_logits: expected true",), {"moe_norm_gate_logits": False}),
        (("norm_topk_prob: expected true",), {"norm_topk_prob": False}),
        (("routed_scaling_factor: expected 1", "2.5"), {"routed_scaling_factor": 2.5}),
        (("use_bias: expected false",), {"use_bias": True}),
        (("moe_quant_type: expected null", "'w4a8'"), {"moe_quant_type": "w4a8"}),
        (("'moe_surprise'", "no such key in an ernie4_5_moe checkpoint"), {"moe_surprise": 1}),
    ],
)  # fmt: skip
def test_row_30_unsupported_value(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1e-12, 1e-50])
def test_row_31_norm_min(tmp_path, value):
    refuse(tmp_path, "moe_norm_min: expected a finite number > 0", moe_norm_min=value)


@pytest.mark.parametrize(
    "changes", [{"moe_k": 6}, {"moe_layer_interval": 1}, {"mlp_layer_types": ["dense"] * 18}]
)
def test_a_dense_model_has_no_expert_keys(tmp_path, changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        load(tmp_path, ERNIE_0_3B, **changes)


# --------------------------------------------------------------------------------- transformers


@pytest.mark.oracle
@pytest.mark.parametrize("end", [-1, 5])
def test_config_written_by_transformers(tmp_path, end):
    transformers = pytest.importorskip("transformers")
    reference = transformers.Ernie4_5_MoeConfig(num_hidden_layers=9, moe_layer_end_index=end)
    reference.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    names = {"num_experts": "moe_num_experts", "top_k": "moe_k", "norm_min": "moe_norm_min",
             "num_shared_experts": "moe_num_shared_experts"}  # fmt: skip
    for ours, theirs in names.items():
        assert getattr(config, ours) == getattr(reference, theirs)
    assert moe_layers(config) == list(range(1, 9 if end == -1 else end + 1))
