import json
import logging
import math

import pytest
from config_file import ABSENT, load_changed, refuse_changed

from ernie_kernels.errors import ConfigError
from ernie_kernels.models.config import LayerPlan, load_config
from ernie_kernels.models.config_reader import SIZE_RANGES

# The dense 0.3B model, reduced in layers.
BASE = {
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def load(folder, **changes):
    return load_changed(folder, BASE, **changes)


def refuse(folder, *words, **changes):
    refuse_changed(folder, BASE, *words, **changes)


# ------------------------------------------------------------------------------- what is accepted


def test_dense_config(tmp_path):
    config = load(tmp_path)
    assert config.architecture == "ernie4_5"
    assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (1024, 128, 2)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 500000.0)
    assert config.layers == (LayerPlan("dense", 3072),) * 2
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), 0)
    assert config.dtype == "bfloat16"
    assert hash(config)  # frozen all the way down


@pytest.mark.parametrize("name", ["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"])
@pytest.mark.parametrize("model_type", ["ernie4_5", "ernie", ABSENT])
def test_both_spellings_of_the_class(tmp_path, name, model_type):
    config = load(tmp_path, architectures=[name], model_type=model_type)
    assert config.architecture == "ernie4_5"


def test_model_type_alone(tmp_path):
    assert load(tmp_path, architectures=ABSENT).architecture == "ernie4_5"


def test_documented_defaults(tmp_path):
    optional = (
        "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "tie_word_embeddings", "use_bias", "torch_dtype", "bos_token_id", "eos_token_id",
        "pad_token_id",
    )  # fmt: skip
    config = load(tmp_path, **dict.fromkeys(optional, ABSENT))
    assert (config.hidden_act, config.max_position_embeddings) == ("silu", 131072)
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 500000.0)
    assert (config.tie_word_embeddings, config.use_bias, config.dtype) == (True, False, None)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (), None)


@pytest.mark.parametrize("head_dim", [ABSENT, None])
def test_head_dim_from_hidden_size_only_when_absent(tmp_path, head_dim):
    assert load(tmp_path, head_dim=head_dim).head_dim == 64
    assert load(tmp_path, hidden_size=1000, head_dim=6).head_dim == 6  # 1000 is no multiple of 16


def test_null_key_value_heads_means_no_grouping(tmp_path):
    assert load(tmp_path, num_key_value_heads=None).num_key_value_heads == 16


def test_use_bias(tmp_path):
    assert load(tmp_path, use_bias=True).use_bias is True


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 10000.0},
        {"rope_theta": ABSENT, "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},
        {"rope_theta": 10000, "rope_parameters": {"rope_theta": 10000.0}},
        {"rope_theta": 10000, "rope_scaling": None},
        {"rope_theta": 10000, "rope_scaling": {"type": "default"}},
    ],
)
def test_spellings_of_rope_theta(tmp_path, changes):
    assert load(tmp_path, **changes).rope_theta == 10000.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_spellings_of_dtype(tmp_path, dtype):
    assert load(tmp_path, torch_dtype=dtype).dtype == dtype
    assert load(tmp_path, torch_dtype=ABSENT, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(
    ("config_eos", "generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 5, 2], None, (2, 5)),
        (2, {"eos_token_id": [7, 2]}, (7, 2)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {}, (2,)),
        (None, {}, ()),
        (ABSENT, {"eos_token_id": 3}, (3,)),
    ],
)
def test_eos_from_generation_config_then_config(tmp_path, config_eos, generation, expected):
    assert load(tmp_path, generation=generation, eos_token_id=config_eos).eos_token_ids == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"compression_ratio": 1.0},
        {"compression_ratio": 1},
        {"use_rmsnorm": True},
        {"rope_3d": False},
        {"sliding_window": None},
        {"quantization_config": None},
        {"layer_types": ["full_attention", "full_attention"]},
        {"moe_num_experts": 0},
        {"_name_or_path": "x", "transformers_version": "5.0", "use_cache": False},
    ],
)
def test_neutral_keys_pass_silently(tmp_path, caplog, changes):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        load(tmp_path, **changes)
    assert not caplog.records


def test_unknown_keys_give_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        load(tmp_path, colour="red", **{"line\nbreak": 1})
    assert [record.getMessage() for record in caplog.records] == [
        "config.json: 2 unknown keys ignored: 'colour', 'line\\nbreak'"
    ]


def test_auto_map_is_warned_of_and_never_imported(tmp_path, caplog):
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('imported')")
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        load(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert "auto_map names Python code" in caplog.text


# --------------------------------------------------------------------- row 26: missing, wrong type


REQUIRED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_row_26_missing_key(tmp_path, key):
    refuse(tmp_path, f"{key}: missing", **{key: ABSENT})


@pytest.mark.parametrize("key", SIZE_RANGES)
@pytest.mark.parametrize(
    ("value", "got"), [(True, "true"), ("64", "'64'"), (64.0, "64.0"), ([64], "a list")]
)
def test_row_26_size_of_the_wrong_type(tmp_path, key, value, got):
    refuse(tmp_path, f"{key}: expected an integer", f"got {got}", **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("rms_norm_eps", "1e-5", "'1e-5'"),
        ("rms_norm_eps", True, "true"),
        ("rope_theta", [1], "a list"),
        ("tie_word_embeddings", 1, "1"),
        ("use_bias", "false", "'false'"),
        ("hidden_act", 3, "3"),
        ("torch_dtype", 16, "16"),
        ("architectures", "Ernie4_5ForCausalLM", "'Ernie4_5ForCausalLM'"),
        ("architectures", [], "a list"),
        ("model_type", 4, "4"),
        ("rope_scaling", "linear", "'linear'"),
        ("bos_token_id", True, "true"),
        ("bos_token_id", [1], "a list"),
        ("eos_token_id", [2, "x"], "'x'"),
    ],
)
def test_row_26_wrong_type(tmp_path, key, value, got):
    refuse(tmp_path, f"{key}: expected", f"got {got}", **{key: value})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON at line 1, column 1"),
        (b"{", "not valid JSON"),
        (b"[]", "expected a JSON object at the top"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"x": {"b": 1, "b": 1}}', "key 'b' occurs twice"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nesting of at most 64"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nesting of at most 64"),
        (b'{"a": "\xff"}', "ill-formed byte at offset 7"),
        (b'{"a": ' + b"1" * 5000 + b"}", "thousands of digits"),
        (b" " * (32 << 20) + b"{}", "at most 33554432 bytes"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_row_26_malformed_file(tmp_path, file, content, words):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"'{file}': .*{words}"):
        load_config(tmp_path)


def test_row_26_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"'config.json': is missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"'config.json': is not a regular file"):
        load_config(tmp_path)


# ---------------------------------------------------------------------------- row 27: dimensions


@pytest.mark.parametrize("key", SIZE_RANGES)
@pytest.mark.parametrize("value", [0, -1, 2**31 - 1, 2**31, 2**63, 10**400])
def test_row_27_dimension_out_of_range(tmp_path, key, value):
    low, high = SIZE_RANGES[key]
    got = str(value) if value < 2**64 else "an integer of 1329 bits"
    refuse(tmp_path, f"{key}: expected an integer {low}..{high}, got {got}", **{key: value})


@pytest.mark.parametrize("key", SIZE_RANGES)
def test_row_27_dimension_one_is_never_a_crash(tmp_path, key):
    if key in ("vocab_size", "head_dim", "num_attention_heads"):
        refuse(tmp_path, key, **{key: 1})  # against the token ids, the pairs, the kv heads
    else:
        assert getattr(load(tmp_path, **{key: 1}), key) == 1


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-1, 103424, 2**63])
def test_row_36_token_id_out_of_range(tmp_path, key, value):
    refuse(
        tmp_path,
        f"{key}: expected token ids >= 0 and below vocab_size=103424, got {value}",
        **{key: value},
    )


def test_row_36_token_id_of_generation_config(tmp_path):
    with pytest.raises(ConfigError, match=r"generation_config.json: eos_token_id: .* got 103424"):
        load(tmp_path, generation={"eos_token_id": [2, 103424]})


# ----------------------------------------------------------------------------- row 28: relations


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("hidden_size=1000", "num_attention_heads=16"), {"hidden_size": 1000, "head_dim": ABSENT}),
        (("num_attention_heads=16", "num_key_value_heads=3"), {"num_key_value_heads": 3}),
        (("num_attention_heads=16", "num_key_value_heads=32"), {"num_key_value_heads": 32}),
        (("head_dim=7", "even"), {"head_dim": 7}),
        (("rope_theta is 500000.0", "10000.0"), {"rope_parameters": {"rope_theta": 10000.0}}),
        (("dtype and torch_dtype differ",), {"dtype": "float32"}),
        (("'ernie4_5_moe'", "another model"), {"model_type": "ernie4_5_moe"}),
        (("head_dim", "got 1024"), {"num_attention_heads": 1, "num_key_value_heads": 1,
                                    "head_dim": ABSENT}),
    ],
)  # fmt: skip
def test_row_28_contradiction(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


# ------------------------------------------------------------- row 30: what would change the result


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("architectures", "Ernie4_5_ForCausalLM", "'LlamaForCausalLM'"),
         {"architectures": ["LlamaForCausalLM"]}),
        (("model_type", "ernie4_5", "'llama'"), {"architectures": ABSENT, "model_type": "llama"}),
        (("architectures: missing",), {"architectures": ABSENT, "model_type": ABSENT}),
        (("hidden_act: expected one of silu, got 'gelu'",), {"hidden_act": "gelu"}),
        (("rope_scaling: rope_type", "default", "'yarn'"), {"rope_scaling": {"rope_type": "yarn"}}),
        (("rope_parameters: rope_type", "'linear'"), {"rope_parameters": {"rope_type": "linear"}}),
        (("rope_parameters: 'factor'", "got 2.0"), {"rope_parameters": {"factor": 2.0}}),
        (("partial_rotary_factor", "0.5"), {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        (("quantization_config: expected null", "'gptq'"),
         {"quantization_config": {"quant_method": "gptq"}}),
        (("quantization: expected null", "'wint4'"), {"quantization": "wint4"}),
        (("'quantize_everything'",), {"quantize_everything": 1}),
        (("compression_ratio: expected 1", "got 2.0"), {"compression_ratio": 2.0}),
        (("compression_ratio", "got true"), {"compression_ratio": True}),
        (("sliding_window: expected null", "got 4096"), {"sliding_window": 4096}),
        (("layer_types", "'sliding_attention'"), {"layer_types": ["sliding_attention"]}),
        (("rope_3d: expected false", "got true"), {"rope_3d": True}),
        (("moe_num_experts: expected 0", "got 64"), {"moe_num_experts": 64}),
        (("use_rmsnorm", "got false"), {"use_rmsnorm": False}),
        (("torch_dtype: expected one of bfloat16", "'int8'"), {"torch_dtype": "int8"}),
    ],
)  # fmt: skip
def test_row_30_unsupported_value(tmp_path, words, changes):
    refuse(tmp_path, *words, **changes)


# ------------------------------------------------------------------ row 31: not finite, not positive


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, 0.0, -1e-5, 1e-50, 10**60])
def test_row_31_number_not_usable(tmp_path, key, value):
    refuse(tmp_path, f"{key}: expected a finite number > 0", **{key: value})


def test_row_31_nested_theta(tmp_path):
    refuse(
        tmp_path,
        "rope_parameters: rope_theta: expected a finite number > 0",
        "got inf",
        rope_parameters={"rope_theta": math.inf},
    )


@pytest.mark.oracle
def test_config_written_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = transformers.Ernie4_5Config(num_hidden_layers=3, use_bias=True)
    reference.save_pretrained(tmp_path)
    config = load_config(tmp_path)
    for key in (*SIZE_RANGES, "rms_norm_eps", "tie_word_embeddings", "use_bias", "hidden_act"):
        assert getattr(config, key) == getattr(reference, key)
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
