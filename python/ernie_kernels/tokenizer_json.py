"""Reading ``tokenizer.json``, the format of the ``tokenizers`` library, as far as it is safe.

The library compiles regular expressions from the file and runs them, backtracking, on user text;
and it panics (a BaseException) on some files. So the file is checked first: a BPE model, known
normalisers, pre-tokenisers and decoders, and no regular expression outside a short list of
linear-time ones. Control tokens are taken out of what the library gets: it cannot produce them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ConfigError
from ernie_kernels.sentencepiece_model import SPACE_SYMBOL, byte_value
from ernie_kernels.special_tokens import DeclaredTokens, check_token

JSON_FILE = "tokenizer.json"

# Single character classes and their plain runs: no alternation, no nested repeat, no look-around.
SAFE_PATTERNS = frozenset(
    {r"\d", r"[0-9]", r"\p{N}", r"\d{1,3}", r"\p{N}{1,3}", r"\s", r"\s+", r"\n", " ", " +", " {2,}"}
)
NORMALIZERS = ("Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Strip", "Lowercase")
PRE_TOKENIZERS = ("Sequence", "Metaspace", "ByteLevel", "Digits", "Split", "WhitespaceSplit")
DECODERS = ("Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "ByteLevel")


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """The checked content of a ``tokenizer.json``."""

    data: dict[str, Any]
    vocab: dict[str, int]  # of the BPE model
    is_byte_level: bool  # tokens spell bytes as visible characters (the GPT-2 table)
    has_prefix: bool  # a space is put before the text, and taken off when decoding

    def encoder(
        self, control: Collection[str], *, dummy_prefix: bool
    ) -> Callable[[str], list[int]]:
        """A function from text to ids that never yields the id of a token in ``control``."""
        model = dict(self.data["model"])
        # A merge that spells out a control token would be a second way to it.
        model["merges"] = [
            pair for pair in model.get("merges", []) if "".join(_merge(pair)) not in control
        ]
        if model.get("ignore_merges") and not control.isdisjoint(self.vocab):  # type: ignore[attr-defined]
            raise ConfigError(
                f"{quoted(JSON_FILE)}: model.ignore_merges: expected false where the vocabulary "
                "holds special tokens"
            )
        data = {
            **self.data,
            "model": model,
            "added_tokens": [
                token
                for token in self.data.get("added_tokens") or []
                if token["content"] not in control
            ],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        if not dummy_prefix:
            data["normalizer"] = _without_prefix(data.get("normalizer"))
            data["pre_tokenizer"] = _without_prefix(data.get("pre_tokenizer"))
        return _load(data)


def _load(data: dict[str, Any]) -> Callable[[str], list[int]]:
    # Imported here: folders with a tokenizer.model do not need the library.
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  (a panic of the library is no Exception)
        raise ConfigError(
            f"{quoted(JSON_FILE)}: the tokenizers library refuses this file"
        ) from None

    def encode(text: str) -> list[int]:
        try:
            return tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001  (as above)
            raise ConfigError(
                f"{quoted(JSON_FILE)}: the tokenizers library fails on this text with this file"
            ) from None

    return encode


def read_tokenizer_json(path: Path, declared: DeclaredTokens) -> TokenizerJson:
    """Read and check ``tokenizer.json``; its added tokens are entered into ``declared``.

    Raises:
        ConfigError: malformed, or uses a model, a step or a regular expression that is not
            supported.
    """
    data = read_json(path)
    name = quoted(JSON_FILE)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ConfigError(f"{name}: model.type: expected BPE, got {quoted(kind)}")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ConfigError(f"{name}: model: expected a vocab object and a merges list")
    owners: dict[int, str] = {}
    for token, token_id in vocab.items():
        check_token(token, name, "model.vocab")
        if type(token_id) is not int or token_id < 0:
            raise ConfigError(f"{name}: {quoted(token)}: expected an id, got {quoted(token_id)}")
        if owners.setdefault(token_id, token) != token:
            raise ConfigError(
                f"{name}: id {token_id} belongs to both {quoted(owners[token_id])} and {quoted(token)}"
            )
    for pair in merges:
        _merge(pair)
    _read_added_tokens(data, vocab, declared)
    decoder = _checked_steps(data, "decoder", DECODERS)
    pre_tokenizer = _checked_steps(data, "pre_tokenizer", PRE_TOKENIZERS)
    normalizer = _checked_steps(data, "normalizer", NORMALIZERS)
    if not decoder:
        raise ConfigError(f"{name}: decoder: missing; expected one of {', '.join(DECODERS)}")
    return TokenizerJson(
        data=data,
        vocab=vocab,
        is_byte_level=any(step["type"] == "ByteLevel" for step in decoder),
        has_prefix=any(_adds_prefix(step) for step in normalizer + pre_tokenizer),
    )


def _merge(pair: object) -> list[str]:
    """A merge rule in either spelling, ``"a b"`` or ``["a", "b"]``."""
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if (
        not isinstance(parts, list)
        or len(parts) != 2
        or not all(isinstance(part, str) for part in parts)
    ):
        raise ConfigError(f"{quoted(JSON_FILE)}: model.merges: expected pairs, got {quoted(pair)}")
    return parts


def _read_added_tokens(
    data: dict[str, Any], vocab: dict[str, int], declared: DeclaredTokens
) -> None:
    name = quoted(JSON_FILE)
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        raise ConfigError(f"{name}: added_tokens: expected a list, got {quoted(added)}")
    for token in added:
        if not isinstance(token, dict):
            raise ConfigError(f"{name}: added_tokens: expected objects, got {quoted(token)}")
        content = declared.add_description(token, name, "added_tokens")
        declared.add_id(content, token.get("id"), name)
        if vocab.get(content, token["id"]) != token["id"]:
            raise ConfigError(
                f"{name}: token {quoted(content)} has the ids {vocab[content]} and {token['id']}"
            )
        if token.get("special") is True:
            declared.special.add(content)


def _steps(value: object, where: str) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokeniser or decoder, sequences flattened."""
    if value is None:
        return
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ConfigError(f"{quoted(JSON_FILE)}: {where}: expected an object with a type")
    if value["type"] != "Sequence":
        yield value
        return
    # Each kind of step calls its list otherwise, and the library reads one of them: check all.
    for items in value.values():
        for item in items if isinstance(items, list) else ():
            yield from _steps(item, where)


def _checked_steps(
    data: dict[str, Any], where: str, supported: tuple[str, ...]
) -> list[dict[str, Any]]:
    steps = list(_steps(data.get(where), where))
    for step in steps:
        if step["type"] not in supported:
            raise ConfigError(
                f"{quoted(JSON_FILE)}: {where}: expected one of {', '.join(supported)}, "
                f"got {quoted(step['type'])}"
            )
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and "String" not in pattern:
            pattern = pattern.get("Regex")
            if not isinstance(pattern, str) or pattern not in SAFE_PATTERNS:
                raise ConfigError(
                    f"{quoted(JSON_FILE)}: {where}: unsupported regular expression "
                    f"{quoted(pattern)}; expected one of {' '.join(sorted(SAFE_PATTERNS))}"
                )
    return steps


def _adds_prefix(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        # Older files say add_prefix_space; both default to a prefix.
        return step.get("prepend_scheme", "always") != "never" and bool(
            step.get("add_prefix_space", True)
        )
    if step["type"] == "ByteLevel":
        return bool(step.get("add_prefix_space", True))
    return step["type"] == "Prepend"


def _without_prefix(step: Any) -> Any:
    """The same step with nothing that puts a space before the text."""
    if not isinstance(step, dict):
        return step
    if step["type"] == "Prepend":
        return None
    changed = {
        key: [new for new in map(_without_prefix, item) if new is not None]
        if step["type"] == "Sequence" and isinstance(item, list)
        else item
        for key, item in step.items()
    }
    if step["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    elif step["type"] == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed


def decoded_bytes(token: str, *, is_byte_level: bool) -> bytes:
    """What a token of the vocabulary stands for."""
    if is_byte_level:
        if all(character in BYTE_OF_CHARACTER for character in token):
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        return token.encode()
    value = byte_value(token)
    return token.replace(SPACE_SYMBOL, " ").encode() if value is None else bytes((value,))


def _byte_level_table() -> dict[str, int]:
    """The GPT-2 spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {
        chr(0x100 + index): value for index, value in enumerate(others)
    }


BYTE_OF_CHARACTER = _byte_level_table()
