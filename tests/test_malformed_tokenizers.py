"""Row 32: tokenizer files that are damaged, contradictory or unsupported give ConfigErrors."""

from __future__ import annotations

import logging
import random

import pytest

from ernie_kernels.errors import ConfigError
from ernie_kernels.tokenizer import load_tokenizer
from tokenizer_files import (
    VOCAB_SIZE,
    sentencepiece_model,
    tokenizer_json,
    write_json,
    write_tokenizer,
)


def refuse(folder, match, vocab_size=VOCAB_SIZE):
    with pytest.raises(ConfigError, match=match) as caught:
        load_tokenizer(folder, vocab_size)
    assert len(str(caught.value).encode()) <= 512


def piece(content: bytes, kind: int = 1) -> bytes:
    message = b"\x0a" + bytes([len(content)]) + content + bytes([0x18, kind])
    return b"\x0a" + bytes([len(message)]) + message


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff", "tokenizer.model.*truncated or malformed"),
        (b"\xff" * 40, "tokenizer.model.*malformed"),
        (piece(b"a") + piece(b"b") + piece(b"a"), "piece 'a' has the ids 0 and 2"),
        (piece(b"\xff"), "piece 0: expected UTF-8"),
        (piece(b""), "piece 0: expected a non-empty text"),
        (piece(b"a", 9), "piece 0: expected a type 1..6, got 9"),
        (piece(b"<0xZZ>", 6), "byte piece 0: expected <0x00> to <0xFF>, got '<0xZZ>'"),
        (piece(b"<0x41>", 6), "expected all 256 byte pieces or none, got 1"),
        (piece(b"a") + b"\x12\x02\x18\x03", "expected a unigram or BPE model, got model type 3"),
        (piece(b"a"), "sentencepiece library refuses"),
    ],
)  # fmt: skip
def test_row_32_malformed_sentencepiece_model(tmp_path, data, match):
    (tmp_path / "tokenizer.model").write_bytes(data)
    refuse(tmp_path, match)


def test_row_32_more_pieces_than_vocab_size(tmp_path):
    refuse(write_tokenizer(tmp_path), "expected at most 600 pieces", vocab_size=600)


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("added_tokens.json", {"<x>": 3}, "id 3 belongs to both '<|end_of_sentence|>' and '<x>'"),
        ("added_tokens.json", {"<x>": VOCAB_SIZE}, f"'<x>' has the id {VOCAB_SIZE}"),
        ("added_tokens.json", {"</s>": 650}, "'</s>' has the ids 2 and 650"),
        ("added_tokens.json", {"<x>": -1}, "added_tokens.json: '<x>': expected an id >= 0, got -1"),
        ("added_tokens.json", {"<x>": True}, "expected an id >= 0, got true"),
        ("added_tokens.json", {"<x>": 650, "<y>": 650}, "id 650 belongs to both '<x>' and '<y>'"),
        ("added_tokens.json", {"": 650}, "expected a token of 1 to 256 characters"),
        ("added_tokens.json", [], "added_tokens.json.*expected a JSON object"),
        ("special_tokens_map.json", {"bos_token": 7}, "bos_token: expected a token, got 7"),
        ("special_tokens_map.json", {"bos_token": {}}, "bos_token: expected a token of 1"),
        ("special_tokens_map.json", {"additional_special_tokens": "x"}, "expected a list"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"-1": {"content": "x"}}}, "key '-1'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1_0": {"content": "x"}}}, "key '1_0'"),
        ("tokenizer_config.json", {"add_bos_token": "no"}, "add_bos_token: expected true or false"),
    ],
)  # fmt: skip
def test_row_32_contradictory_side_files(tmp_path, file, content, match):
    write_tokenizer(tmp_path)
    write_json(tmp_path / file, content)
    refuse(tmp_path, match)


def test_names_in_messages_are_escaped_and_cut(tmp_path):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "added_tokens.json", {"\x1b[31m" + "ü" * 200: -1})
    refuse(tmp_path, r"'\\x1b\[31m(\\xfc)+\\?x?f?\.\.\.': expected an id")


def test_declared_token_without_an_id_is_told_once(tmp_path, caplog):
    write_tokenizer(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"extra_special_tokens": {"x": "<nowhere>"}})
    with caplog.at_level(logging.WARNING, logger="ernie_kernels"):
        assert load_tokenizer(tmp_path, VOCAB_SIZE) is not None
    assert [record.getMessage() for record in caplog.records] == [
        "tokenizer: 1 special tokens are declared but have no id: '<nowhere>'"
    ]


def changed(path: str, value: object) -> dict:
    data = tokenizer_json()
    *parents, last = path.split(".")
    target = data
    for key in parents:
        target = target[key]
    target[last] = value
    return data


def split_by(pattern: str) -> dict:
    pattern = {"Regex": pattern}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("model.type", "Unigram", "model.type: expected BPE, got 'Unigram'"),
        ("model", None, "model.type: expected BPE, got null"),
        ("model.merges", {}, "expected a vocab object and a merges list"),
        ("model.merges", ["a b c"], "model.merges: expected pairs, got 'a b c'"),
        ("model.merges", [["zz", "qq"]], "tokenizers library refuses"),
        ("model.vocab", {"a": 1, "b": 1}, "id 1 belongs to both 'a' and 'b'"),
        ("model.vocab", {"a": "1"}, "'a': expected an id, got '1'"),
        ("model.vocab", {"\ud800": 1}, r"'\\ud800' has a lone surrogate"),
        ("added_tokens", [{"id": 9999, "content": "<x>"}], "'<x>' has the id 9999"),
        ("added_tokens", [{"id": 5, "content": "<s>"}], "'<s>' has the ids 1 and 5"),
        ("decoder", None, "decoder: missing"),
        ("decoder", {"type": "WordPiece"}, "decoder: expected one of .* got 'WordPiece'"),
        ("normalizer", {"type": "Precompiled"}, "normalizer: expected one of .* got 'Precompiled'"),
        ("pre_tokenizer", split_by("(a+)+$"), r"unsupported regular expression '\(a\+\)\+\$'"),
        ("pre_tokenizer", split_by("((("), r"unsupported regular expression '\(\(\('"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [split_by(r"\s+(?!\S)")]},
            "unsupported regular expression",
        ),
        (
            "pre_tokenizer",
            {"type": "Sequence", "x": [], "pretokenizers": [split_by("(a+)+$")]},
            "unsupported regular expression",
        ),
        ("normalizer", {"type": "Sequence", "normalizers": [], "x": [{"id": 0}]}, "with a type"),
        ("pre_tokenizer", split_by(["a"]), "unsupported regular expression a list"),
    ],
)
def test_row_32_unsupported_tokenizer_json(tmp_path, path, value, match):
    write_json(tmp_path / "tokenizer.json", changed(path, value))
    refuse(tmp_path, match, vocab_size=800)


def test_tokenizer_json_with_a_safe_regex_loads(tmp_path):
    write_json(tmp_path / "tokenizer.json", changed("pre_tokenizer", split_by(r"\d")))
    assert load_tokenizer(tmp_path, 800).decode([1, 2]) == ""


def test_damaged_files_give_config_errors_only(tmp_path):
    model = sentencepiece_model()
    damage = random.Random(1)
    for _ in range(60):
        data = bytearray(model)
        for _ in range(damage.randint(1, 4)):
            data[damage.randrange(len(data))] = damage.randrange(256)
        if damage.random() < 0.3:
            del data[damage.randrange(len(data)) :]
        (tmp_path / "tokenizer.model").write_bytes(data)
        try:
            tokenizer = load_tokenizer(tmp_path, VOCAB_SIZE)
            tokenizer.decode(tokenizer.encode("Hello 12 é"))
        except ConfigError:
            continue
