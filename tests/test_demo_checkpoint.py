"""The shipped demo checkpoint: complete, small, shaped like the family, and better than a bigram."""

import json
import struct
from pathlib import Path

import pytest
import sentencepiece

DEMO = Path(__file__).parent.parent / "python" / "ernie_kernels" / "demo"
MEGABYTE = 1_000_000


def read_json(name):
    return json.loads((DEMO / name).read_text(encoding="utf-8"))


def read_tensor_table():
    with (DEMO / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return table


@pytest.fixture(scope="module")
def processor():
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


def test_whole_folder_fits_in_four_megabytes():
    files = [path for path in DEMO.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model"} <= {
        path.name for path in files
    }
    assert sum(path.stat().st_size for path in files) <= 4 * MEGABYTE


def test_config_describes_a_small_member_of_the_family():
    config = read_json("config.json")
    assert config["model_type"] == "ernie4_5"
    assert config["tie_word_embeddings"]
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (0, 1, 2)
    assert config["rope_parameters"]["rope_theta"] == 500000
    assert config["rms_norm_eps"] == 1e-5
    # As in ERNIE-4.5-0.3B, head_dim must be read, not derived.
    assert config["head_dim"] != config["hidden_size"] / config["num_attention_heads"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def test_weights_are_the_bfloat16_tensors_that_the_config_asks_for():
    config, table = read_json("config.json"), read_tensor_table()
    hidden, width = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "input_layernorm": [hidden],
        "post_attention_layernorm": [hidden],
        "self_attn.q_proj": [query, hidden],
        "self_attn.k_proj": [key_value, hidden],
        "self_attn.v_proj": [key_value, hidden],
        "self_attn.o_proj": [hidden, query],
        "mlp.gate_proj": [width, hidden],
        "mlp.up_proj": [width, hidden],
        "mlp.down_proj": [hidden, width],
    }
    expected = {
        "model.embed_tokens.weight": [config["vocab_size"], hidden],
        "model.norm.weight": [hidden],
    }
    for index in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            expected[f"model.layers.{index}.{name}.weight"] = shape
    assert {name: entry["shape"] for name, entry in table.items()} == expected
    assert {entry["dtype"] for entry in table.values()} == {"BF16"}


def test_tokenizer_numbers_its_pieces_as_the_family_does(processor):
    size = processor.get_piece_size()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    assert size == read_json("config.json")["vocab_size"]
    assert pieces[:13] == ["<unk>", "<s>", "</s>", *"0123456789"]
    assert pieces[13:269] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert pieces[-2:] == ["<|end_of_sentence|>", "<|begin_of_sentence|>"]
    assert processor.is_control(size - 1)
    assert processor.is_control(size - 2)


@pytest.mark.parametrize(
    "text", ["  two  spaces ", "def f(a=10):\n\treturn é", "naïve 日本 \U0001f600", "</s>", " "]
)
def test_tokenizer_loses_nothing(processor, text):
    assert processor.decode(processor.encode(text)) == text


def test_tokenizer_splits_digits_and_adds_no_space(processor):
    assert processor.encode("2025") == [5, 3, 5, 8]
    assert processor.encode("\n") == [23]
    # What a user types is text, never a control token.
    assert processor.encode("<|end_of_sentence|></s>").count(2) == 0
    assert max(processor.encode("<|begin_of_sentence|>")) < processor.get_piece_size() - 2


def test_held_out_loss_is_well_below_the_bigram_model():
    held_out = read_json("training.json")["held_out"]
    assert held_out["loss_nats_per_token"] <= 0.7 * held_out["bigram_loss_nats_per_token"]
