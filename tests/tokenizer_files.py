"""Small tokenizers, trained on the spot in the manner of ERNIE-4.5's: what tests put in a folder."""

from __future__ import annotations

import functools
import io
import json
import textwrap
from pathlib import Path

import sentencepiece

CONTROL = ("<|end_of_sentence|>", "<|begin_of_sentence|>")
MODEL_PIECES = 640
ADDED = {"<|IMAGE_START|>": MODEL_PIECES, "<|IMAGE_END|>": MODEL_PIECES + 1}
ADDED |= {"<|IMAGE_PLACEHOLDER|>": MODEL_PIECES + 2}
ADDED |= {"<think>": MODEL_PIECES + 3, "</think>": MODEL_PIECES + 4}
VOCAB_SIZE = MODEL_PIECES + 20  # rows of the model: more than the tokenizer has entries


@functools.cache
def sentencepiece_model(*, dummy_prefix: bool = False, extra_whitespaces: bool = True) -> bytes:
    """BPE with byte fallback, single digits, runs of spaces as pieces, identity normaliser."""
    corpus = [*textwrap.__doc__.splitlines(), *Path(textwrap.__file__).read_text().splitlines()]
    corpus += ["User: Hello there\nAssistant: Nice to meet you."] * 30
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=MODEL_PIECES,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=not extra_whitespaces,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        control_symbols=list(CONTROL),
        user_defined_symbols=[*"0123456789", "▁▁", "▁▁▁", "<mask:1>"],
        minloglevel=2,
    )
    return model.getvalue()


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_tokenizer(folder: Path, **options: bool) -> Path:
    """A folder as ERNIE-4.5 checkpoints have it, without weights."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(**options))
    write_json(folder / "added_tokens.json", ADDED)
    write_json(
        folder / "special_tokens_map.json",
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": {"content": "<unk>", "lstrip": False},
            "cls_token": CONTROL[1],
            "sep_token": CONTROL[0],
            "mask_token": "<mask:1>",
            "additional_special_tokens": [token for token in ADDED if "IMAGE" in token],
        },
    )
    return folder


def tokenizer_json(*, byte_level: bool = False) -> dict:
    """A ``tokenizer.json`` of the same kind, as the tokenizers library writes it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=not byte_level, unk_token="<unk>"))
    special = ["<unk>", "<s>", "</s>", *CONTROL]
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special += [f"<0x{value:02X}>" for value in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(Path(textwrap.__file__).read_text().splitlines(), trainer)
    data = json.loads(tokenizer.to_str())
    # The trainer marks all of these special; bytes are ordinary entries of the vocabulary.
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return data
