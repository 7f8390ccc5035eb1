"""Special tokens: which strings they are, where they stand in a text, and how user text is kept
from becoming one.

A *control token* is a string with an id of its own that only a template may produce: the turn
marks, ``</s>``, image placeholders. The same string typed by a user stays ordinary text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ernie_kernels.checkpoint_file import quoted, read_json
from ernie_kernels.errors import ConfigError, InputError

logger = logging.getLogger("ernie_kernels")

ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_MAP_FILE = "special_tokens_map.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

MAX_TOKEN_CHARACTERS = 256  # bounds the depth of the search expression
TOKEN_ROLES = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")

# The model's own mark-up inside an answer. It must survive decoding, because the reasoning parser
# reads it, and it is recognised in assistant turns, which hold what the model wrote.
ANSWER_MARKUP = frozenset(
    {"<think>", "</think>", "<response>", "</response>", "<tool_call>", "</tool_call>"}
)

# What Baidu's chat templates put where an image or video is to be seen. No tokens, but as much the
# template's alone as those.
BAIDU_PLACEHOLDERS = {"<|image@placeholder|>": "image", "<|video@placeholder|>": "video"}


class Segment(NamedTuple):
    """A stretch of a prompt: one control token, or text that contains none."""

    text: str
    special: bool


@dataclass
class DeclaredTokens:
    """What the side files of a tokenizer say about its special tokens."""

    ids: dict[str, int] = field(default_factory=dict)  # token -> id, where a file gives one
    special: set[str] = field(default_factory=set)  # declared special by any file
    strips_left: set[str] = field(default_factory=set)  # swallow the whitespace before them
    strips_right: set[str] = field(default_factory=set)  # ... and after them
    roles: dict[str, str] = field(default_factory=dict)  # "bos_token" -> token
    settings: dict[str, Any] = field(default_factory=dict)  # tokenizer_config.json

    def flag(self, key: str) -> bool | None:
        """A boolean setting of tokenizer_config.json, None when absent or null."""
        value = self.settings.get(key)
        if value is not None and type(value) is not bool:
            raise ConfigError(
                f"{TOKENIZER_CONFIG_FILE}: {key}: expected true or false, got {quoted(value)}"
            )
        return value

    def add_id(self, token: str, token_id: object, file: str) -> None:
        if type(token_id) is not int or token_id < 0:
            raise ConfigError(
                f"{file}: {quoted(token)}: expected an id >= 0, got {quoted(token_id)}"
            )
        if self.ids.setdefault(token, token_id) != token_id:
            raise ConfigError(
                f"{file}: token {quoted(token)} has the ids {self.ids[token]} and {token_id}"
            )

    def add_description(self, token: Mapping[str, Any] | str, file: str, where: str) -> str:
        """Record a token given as a string or as an object with flags; returns its string."""
        flags: Mapping[str, Any] = {} if isinstance(token, str) else token
        content = check_token(flags.get("content") if flags else token, file, where)
        if flags.get("lstrip") is True:
            self.strips_left.add(content)
        if flags.get("rstrip") is True:
            self.strips_right.add(content)
        return content


def check_token(token: object, file: str, where: str) -> str:
    """``token``, unless it cannot be one: no string, empty, too long, or not encodable."""
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
        raise ConfigError(
            f"{file}: {where}: expected a token of 1 to {MAX_TOKEN_CHARACTERS} characters, "
            f"got {quoted(token)}"
        )
    if any("\ud800" <= character <= "\udfff" for character in token):
        raise ConfigError(f"{file}: {where}: token {quoted(token)} has a lone surrogate")
    return token


def read_declared_tokens(folder: Path) -> DeclaredTokens:
    """Collect the special tokens of the side files, each of which may be absent.

    Raises:
        ConfigError: a file is malformed, or two entries contradict each other.
    """
    declared = DeclaredTokens()
    if (folder / ADDED_TOKENS_FILE).exists():
        for token, token_id in read_json(folder / ADDED_TOKENS_FILE).items():
            check_token(token, ADDED_TOKENS_FILE, "key")
            declared.add_id(token, token_id, ADDED_TOKENS_FILE)
    for file in (SPECIAL_TOKENS_MAP_FILE, TOKENIZER_CONFIG_FILE):
        if (folder / file).exists():
            values = read_json(folder / file)
            if file == TOKENIZER_CONFIG_FILE:
                declared.settings = values
                _read_decoder(declared, values)
            _read_roles(declared, values, file)
    return declared


def _read_decoder(declared: DeclaredTokens, values: Mapping[str, Any]) -> None:
    decoder = values.get("added_tokens_decoder") or {}
    where = "added_tokens_decoder"
    if not isinstance(decoder, dict):
        raise ConfigError(f"{TOKENIZER_CONFIG_FILE}: {where}: expected an object")
    for key, token in decoder.items():
        # Python's int() accepts signs, spaces and underscores; an id is plain digits.
        if not re.fullmatch(r"[0-9]{1,10}", key) or not isinstance(token, dict):
            raise ConfigError(
                f"{TOKENIZER_CONFIG_FILE}: {where}: expected ids with a description each, "
                f"got key {quoted(key)}"
            )
        content = declared.add_description(token, TOKENIZER_CONFIG_FILE, where)
        declared.add_id(content, int(key), TOKENIZER_CONFIG_FILE)
        if token.get("special") is True:
            declared.special.add(content)


def _read_roles(declared: DeclaredTokens, values: Mapping[str, Any], file: str) -> None:
    entries = [(f"{role}_token", values.get(f"{role}_token")) for role in TOKEN_ROLES]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = values.get(key) or []
        items = extra.values() if isinstance(extra, dict) else extra
        if not isinstance(extra, (dict, list)):
            raise ConfigError(f"{file}: {key}: expected a list, got {quoted(extra)}")
        entries.extend((key, item) for item in items)
    for key, token in entries:
        if token is None:
            continue
        if not isinstance(token, (str, dict)):
            raise ConfigError(f"{file}: {key}: expected a token, got {quoted(token)}")
        content = declared.add_description(token, file, key)
        declared.special.add(content)
        if key.endswith("_token"):
            declared.roles[key] = content


class TokenMatcher:
    """Finds control tokens in a text, the longest at the leftmost place first, in linear time.

    Tokens of one character are left out: nothing can be put inside one to tell the user's from
    the template's, so they are text.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = frozenset(token for token in tokens if len(token) > 1)
        # Alternatives share their prefixes: a plain alternation of ERNIE's thousand <|LOC_n|>
        # tokens would try each of them at every "<" of a hostile text.
        self._pattern = re.compile(_prefix_tree_pattern(self.tokens)) if self.tokens else None
        self._proper_prefixes = {t[:n] for t in self.tokens for n in range(1, len(t))}
        self._proper_suffixes = {t[n:] for t in self.tokens for n in range(1, len(t))}
        self._longest = max(map(len, self.tokens), default=0)

    def split(self, text: str) -> list[Segment]:
        """The text as control tokens and the stretches between them; empty ones are left out."""
        segments = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            if match.start() > end:
                segments.append(Segment(text[end : match.start()], special=False))
            segments.append(Segment(match.group(), special=True))
            end = match.end()
        if end < len(text):
            segments.append(Segment(text[end:], special=False))
        return segments

    def ends_inside_token(self, text: str) -> bool:
        """Whether text appended to this one could complete a control token."""
        lengths = range(1, min(self._longest, len(text) + 1))
        return any(text[-n:] in self._proper_prefixes for n in lengths)

    def starts_inside_token(self, text: str) -> bool:
        """Whether text put before this one could complete a control token."""
        lengths = range(1, min(self._longest, len(text) + 1))
        return any(text[:n] in self._proper_suffixes for n in lengths)


def _prefix_tree_pattern(tokens: Iterable[str]) -> str:
    """A regular expression for any of ``tokens``, longest first, sharing common prefixes."""
    ordered = sorted(tokens)

    def build(begin: int, end: int, depth: int) -> str:
        # ordered[begin:end] agree in their first `depth` characters; follow the common run.
        first, last = ordered[begin], ordered[end - 1]
        run = depth
        while run < min(len(first), len(last)) and first[run] == last[run]:
            run += 1
        head = re.escape(first[depth:run])
        optional = len(first) == run
        begin += optional
        if begin == end:
            return head
        branches = []
        while begin < end:
            stop = begin
            while stop < end and ordered[stop][run] == ordered[begin][run]:
                stop += 1
            branches.append(build(begin, stop, run))
            begin = stop
        return f"{head}(?:{'|'.join(branches)}){'?' if optional else ''}"

    return build(0, len(ordered), 0)


_ANSWER_MATCHER = TokenMatcher(ANSWER_MARKUP)

# Noncharacters, which no text should hold, then private-use characters for a text that holds them.
_MARK_CODES = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))


class TextGuard:
    """Keeps strings from outside from forming control tokens in a rendered template.

    A template mixes its own text with the user's, changes it (``trim``, ``split``, ``join``), and
    what leaves it is one string. So the user's strings are marked *before* rendering: a private
    character goes into every control token written in them, and at an edge where a neighbour's
    text could complete one ("<" next to "s>"). Marked text no longer matches a control token; the
    marks are taken out after the rendered text has been split. All other text is untouched, hence
    templates see it, and it is tokenised, exactly as if nobody had looked at it.

    The mark is a character that occurs in none of the strings, so it cannot be forged.
    A template that cuts a string exactly at a mark, or prints it in an encoding of its own, could
    undo it; that template comes with the checkpoint and could print the control token itself.
    """

    def __init__(self, matcher: TokenMatcher, values: object) -> None:
        self._matcher = matcher
        used = set().union(*_strings(values))
        mark = next((chr(code) for code in _MARK_CODES if chr(code) not in used), None)
        if mark is None:
            raise InputError(
                "messages: expected text, got every noncharacter and private character"
            )
        self.mark = mark

    def protect(self, value: Any, *, is_answer: bool = False) -> Any:
        """``value`` with every string in it marked where needed.

        ``is_answer`` says that the model wrote it: its own mark-up stays recognisable.
        """
        if isinstance(value, str):
            if not is_answer:
                return self._protect_text(value)
            return "".join(
                part.text if part.special else self._protect_text(part.text)
                for part in _ANSWER_MATCHER.split(value)
            )
        if isinstance(value, dict):
            # Templates compare names, roles and types: these get no marks at their edges.
            return {
                self._break_tokens(key): self._break_tokens(item)
                if key in ("role", "type") and isinstance(item, str)
                else self.protect(item, is_answer=is_answer)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self.protect(item, is_answer=is_answer) for item in value]
        return value

    def _protect_text(self, text: str) -> str:
        before = self.mark if self._matcher.starts_inside_token(text) else ""
        after = self.mark if self._matcher.ends_inside_token(text) else ""
        return before + self._break_tokens(text) + after

    def _break_tokens(self, text: str) -> str:
        parts = self._matcher.split(text)
        # Breaking one token can uncover another that overlaps it, hence the repetition.
        while any(part.special for part in parts):
            text = "".join(
                part.text[:1] + self.mark + part.text[1:] if part.special else part.text
                for part in parts
            )
            parts = self._matcher.split(text)
        return text

    def clean(self, text: str) -> str:
        return text.replace(self.mark, "")

    def split(self, rendered: str) -> tuple[Segment, ...]:
        """The rendered text as the template's control tokens and plain text, without marks."""
        segments: list[Segment] = []
        for text, special in self._matcher.split(rendered):
            plain = text if special else self.clean(text)
            if plain:
                segments.append(Segment(plain, special))
        return tuple(segments)


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
