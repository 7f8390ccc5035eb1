"""The files of a tokenizer: one that never yields a control id for user text, or a ConfigError.

tokenizer.model is a list of protobuf fields (mutation.message), or text of its bytes (Latin-1).
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from mutation import bytes_changed, json_changed, json_text_changed, message

from ernie_kernels.errors import ConfigError, InputError
from ernie_kernels.special_tokens import TOKEN_ROLES, Segment
from ernie_kernels.tokenizer import Tokenizer, load_tokenizer
from ernie_kernels.tokenizer_json import DECODERS, NORMALIZERS, PRE_TOKENIZERS

ALLOWED = (ConfigError,)
FOLDER = tempfile.TemporaryDirectory()
VOCAB_SIZE = 400
MODEL = "tokenizer.model"
JSON_FILES = (
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
CONTROL = ("<s>", "</s>", "<|end_of_sentence|>", "<think>")
TEXTS = (
    "",
    "Hello 12 é\n",
    "a <s></s> b<|end_of_sentence|>",
    "▁▁<0x41><unk>",
    "<think>\ufdd0",
    " x ",
)
WORDS = [
    *CONTROL, *(f"{role}_token" for role in TOKEN_ROLES), *NORMALIZERS, *PRE_TOKENIZERS, *DECODERS,
    "type", "content", "id", "special", "lstrip", "vocab", "merges", "prepend_scheme", "always", "never",
    "add_prefix_space", "pattern", "Regex", "String", r"\d", "(a+)+", "ignore_merges", "byte_fallback",
    "additional_special_tokens", "added_tokens_decoder", "chat_template", "dropout", "unk_token", "▁a",
]  # fmt: skip


def piece(text: str, score: float, kind: int) -> list[Any]:
    return [1, [[1, text], [2, score], [3, kind]]]


def model(kind: int, *, byte_fallback: bool) -> list[Any]:
    """A small SentencePiece model: 1 unigram, 2 BPE."""
    pieces = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3)]
    pieces += [piece("<|end_of_sentence|>", 0.0, 3), piece("12", 0.0, 4), piece("x", 0.0, 5)]
    if byte_fallback:
        pieces.append("bytes")  # spelled out in model_bytes()
    words = ["▁", "H", "e", "l", "o", "a", "b", "1", "2", "ll", "el", "▁H", "▁b", "llo", "▁a"]
    pieces += [piece(word, -float(i), 1) for i, word in enumerate(words)]
    trainer = [[3, kind], [35, int(byte_fallback)], [40, 0], [41, 1], [42, 2], [43, -1]]
    return [*pieces, [2, trainer], [3, [[1, "identity"], [3, 0], [4, 0], [5, 1]]]]


def model_bytes(fields: Any) -> bytes:
    if isinstance(fields, str):
        return fields.encode("latin-1", "replace")
    spelled: list[Any] = []
    for entry in fields if isinstance(fields, list) else ():
        if entry == "bytes":
            spelled += [piece(f"<0x{value:02X}>", 0.0, 6) for value in range(256)]
        else:
            spelled.append(entry)
    return message(spelled)


def tokenizer_json() -> dict[str, Any]:
    vocab = ["<unk>", *CONTROL, "▁", "H", "e", "l", "o", "a", "b", "1", "2", "ll", "▁H", "▁a"]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}
            for i, token in enumerate(vocab[:5])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}]},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "byte_fallback": False,
                  "fuse_unk": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(vocab)},
                  "merges": ["l l", "▁ H", "▁ a"]},
    }  # fmt: skip


def seeds() -> list[Any]:
    added = {"<think>": 300, "</think>": 301, "<|IMAGE|>": 302}
    roles = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": True}, "cls_token": "<s>",
             "additional_special_tokens": ["<|IMAGE|>", "</think>"]}  # fmt: skip
    decoder = {"300": {"content": "<think>", "special": True, "rstrip": True}}
    settings = {"add_bos_token": True, "add_prefix_space": False, "added_tokens_decoder": decoder}
    sides = {
        "added_tokens.json": json.dumps(added),
        "special_tokens_map.json": json.dumps(roles),
        "tokenizer_config.json": json.dumps(settings),
    }
    nothing = dict.fromkeys((MODEL, *JSON_FILES))
    byte_level = tokenizer_json()
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    byte_level["pre_tokenizer"] = byte_level["decoder"] = step
    byte_level["model"]["merges"] = [["l", "l"], ["▁", "H"], ["▁", "a"]]
    return [
        {**nothing, MODEL: model(2, byte_fallback=True), **sides},
        {**nothing, MODEL: model(1, byte_fallback=False), **sides},
        {**nothing, MODEL: model(2, byte_fallback=False)},
        {**nothing, "tokenizer.json": json.dumps(tokenizer_json())},
        {
            **nothing,
            "tokenizer.json": json.dumps(byte_level),
            "added_tokens.json": '{"<|IMAGE|>": 302}',
        },
    ]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    present = [file for file, content in case.items() if content is not None]
    file = draw.choice(present)
    if draw.random() < 0.05:
        file = draw.choice(JSON_FILES)
    text = case[file]
    if file != MODEL:
        case[file] = json_text_changed(text or "{}", other[file] or "{}", draw, WORDS)
    elif isinstance(text, str) or draw.random() < 0.2:
        lent = model_bytes(other[MODEL] or "")
        case[file] = bytes_changed(model_bytes(text), lent, draw).decode("latin-1")
    else:
        case[file] = json_changed(text, other[MODEL] or "", draw, WORDS)
    return case


def run(case: Any) -> None:
    folder = Path(FOLDER.name)
    for file in (MODEL, *JSON_FILES):
        (folder / file).unlink(missing_ok=True)
        if case[file] is None:
            continue
        if file == MODEL:
            (folder / file).write_bytes(model_bytes(case[file]))
        else:
            (folder / file).write_text(case[file], encoding="utf-8", errors="replace")
    tokenizer = load_tokenizer(folder, VOCAB_SIZE)
    if tokenizer is not None:
        check(tokenizer)


def check(tokenizer: Tokenizer) -> None:
    # What the vocabulary cannot spell becomes the unknown token, whatever that is called.
    unknown = set(tokenizer.encode("\U000f1234"))
    control = set(tokenizer.special_tokens.values())
    assert tokenizer.vocab_size <= VOCAB_SIZE
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert all(0 <= i < VOCAB_SIZE for i in ids)
        assert not (control - unknown).intersection(ids)
        assert isinstance(tokenizer.decode(ids), str)
        tokenizer.encode(text, add_special_tokens=True)
    segments = [Segment("Hello ", False), *(Segment(t, True) for t in tokenizer.special_tokens)]
    ids = tokenizer.encode_prompt([*segments, Segment(" x ", False)])
    assert control <= set(ids)
    tokenizer.decode(range(VOCAB_SIZE), skip_special_tokens=False)
    try:
        tokenizer.decode([VOCAB_SIZE])
    except InputError:
        return
    raise AssertionError("an id beyond the model's vocabulary decodes")
