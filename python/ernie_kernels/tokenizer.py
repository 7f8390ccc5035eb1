"""Text to token ids and back, from the tokenizer that a checkpoint brings.

Two kinds of text are told apart. *User text* (``encode``) never yields a control id: ``</s>`` typed
by a user is four ordinary characters. *Prompts* (``encode_prompt``) come from a chat template as
segments, in which the template's own control tokens are marked; see ``special_tokens.TextGuard``.
Between two control tokens a prompt is encoded in one go, template text and user text together, so
that the ids are those of the complete rendered string: encoding the user's part alone would break
merges at its borders ("Assistant: " + "Hello" holds the piece " Hello").
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ernie_kernels.checkpoint_file import quoted, read_bytes
from ernie_kernels.errors import ConfigError, InputError, LimitError
from ernie_kernels.sentencepiece_model import (
    MODEL_FILE,
    SPACE_SYMBOL,
    PieceType,
    byte_value,
    parse_sentencepiece_model,
)
from ernie_kernels.special_tokens import (
    ANSWER_MARKUP,
    DeclaredTokens,
    Segment,
    TokenMatcher,
    read_declared_tokens,
)
from ernie_kernels.tokenizer_json import JSON_FILE, decoded_bytes, read_tokenizer_json

logger = logging.getLogger("ernie_kernels")

MAX_MODEL_BYTES = 64 << 20  # of tokenizer.model; ERNIE's has about 1.6 MB
MAX_TEXT_BYTES = 16 << 20

EncodeText = Callable[[str], list[int]]


class Tokenizer:
    """A loaded tokenizer. Immutable; may be used from several threads.

    Attributes:
        vocab_size: one more than the highest id of the tokenizer itself. The model may have more
            rows; their ids stand for nothing and must not be sampled.
        special_tokens: the control tokens and their ids.
        roles: the tokens named in the tokenizer's files, ``{"bos_token": "<s>", ...}``.
        bos_token_id, eos_token_id, pad_token_id: ids of those roles, or None.
    """

    def __init__(
        self,
        *,
        ids: Mapping[str, int],
        decoded: Mapping[int, bytes],
        control: Iterable[str],
        skipped: Iterable[str],
        declared: DeclaredTokens,
        roles: Mapping[str, str],
        encode_start: EncodeText,
        encode_middle: EncodeText,
        decodes_prefix: bool,
        model_vocab_size: int,
    ) -> None:
        """``encode_start`` is for the beginning of a text, ``encode_middle`` for what follows a
        control token; they differ in the dummy prefix, which ``decodes_prefix`` takes off again.
        """
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.special_tokens = {token: ids[token] for token in sorted(control, key=ids.__getitem__)}
        self.roles = dict(roles)
        self.bos_token_id = ids.get(roles.get("bos_token", ""))
        self.eos_token_id = ids.get(roles.get("eos_token", ""))
        self.pad_token_id = ids.get(roles.get("pad_token", ""))
        self.decodes_prefix = decodes_prefix
        self.matcher = TokenMatcher(self.special_tokens)
        self._ids = dict(ids)
        self._tokens = {token_id: token for token, token_id in ids.items()}
        self._decoded = dict(decoded)
        self._skipped = frozenset(ids[token] for token in skipped if token not in ANSWER_MARKUP)
        self._strips_left = frozenset(declared.strips_left)
        self._strips_right = frozenset(declared.strips_right)
        self._encode_start = encode_start
        self._encode_middle = encode_middle
        self._model_vocab_size = model_vocab_size
        # The tokenizer that Baidu ships puts <s> before plain text unless its settings say no.
        self._adds_bos = declared.flag("add_bos_token") is not False
        self._adds_eos = declared.flag("add_eos_token") is True

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        return self._ids.get(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id, or None for an id that stands for nothing."""
        return self._tokens.get(token_id)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Encode user text; the text of a control token stays text.

        U+2581, with which SentencePiece writes a space, is taken for one.

        Args:
            text: at most 16 MiB of UTF-8.
            add_special_tokens: put the bos token first, and eos last, as far as the tokenizer's
                settings (``add_bos_token``, ``add_eos_token``) do not say otherwise.

        Raises:
            TypeError: not a str.
            InputError: a lone surrogate, which no UTF-8 text can hold.
            LimitError: too long.
        """
        check_text(text, "text")
        ids = self._encode_start(text) if text else []
        if add_special_tokens and self._adds_bos and self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        if add_special_tokens and self._adds_eos and self.eos_token_id is not None:
            ids = [*ids, self.eos_token_id]
        return ids

    def encode_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """Encode a rendered chat template: control tokens to their ids, the rest as text.

        Raises:
            InputError: a segment is marked special but is no control token of this tokenizer, or
                as for :meth:`encode`.
        """
        ids: list[int] = []
        for index, (text, special) in enumerate(segments):
            if special:
                if text not in self.special_tokens:
                    raise InputError(f"prompt: {quoted(text)} is no special token of the tokenizer")
                ids.append(self.special_tokens[text])
                continue
            check_text(text, "prompt")
            stripped = text
            if index > 0 and segments[index - 1].text in self._strips_right:
                stripped = stripped.lstrip()
            if index + 1 < len(segments) and segments[index + 1].text in self._strips_left:
                stripped = stripped.rstrip()
            if stripped:
                ids.extend((self._encode_middle if index else self._encode_start)(stripped))
        return ids

    def encode_with_special(self, text: str) -> list[int]:
        """Encode trusted text, in which control tokens are recognised. Never for user text."""
        check_text(text, "text")
        return self.encode_prompt(self.matcher.split(text))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ``ids``. Bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids below the model's vocab_size; those that the tokenizer has no entry for
                stand for nothing.
            skip_special_tokens: leave control tokens out, except the mark-up of an answer
                (``<think>``, ``<tool_call>`` and their like).

        Raises:
            InputError: an id out of range.
        """
        decoder = StreamDecoder(self, skip_special_tokens=skip_special_tokens)
        return decoder.push(ids) + decoder.finish()

    def decoded_bytes(self, token_id: int, *, skip_special_tokens: bool) -> bytes:
        """What one id contributes to a text: UTF-8, or a part of a character."""
        if not 0 <= token_id < self._model_vocab_size:
            raise InputError(
                f"token ids: expected 0..{self._model_vocab_size - 1}, got {quoted(token_id)}"
            )
        if skip_special_tokens and token_id in self._skipped:
            return b""
        return self._decoded.get(token_id, b"")


class StreamDecoder:
    """Decodes ids as they come. The parts joined equal ``tokenizer.decode`` of all ids.

    A character whose bytes are spread over several tokens is held back until it is complete.

    Args:
        tokenizer: where the ids come from.
        skip_special_tokens: as in :meth:`Tokenizer.decode`.
        continues: the ids follow other text, so that a leading space is kept. It matters only for
            tokenizers with a dummy prefix.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, continues: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._drop_space = tokenizer.decodes_prefix and not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: int | Iterable[int]) -> str:
        """Take one id or several; returns the text that is complete now, maybe none."""
        data = bytearray()
        for token_id in (ids,) if isinstance(ids, int) else ids:
            part = self._tokenizer.decoded_bytes(
                token_id, skip_special_tokens=self._skip_special_tokens
            )
            if part and self._drop_space:
                self._drop_space = False
                part = part.removeprefix(b" ")
            data += part
        return self._utf8.decode(bytes(data))

    def finish(self) -> str:
        """The text still held back: U+FFFD if the last character is incomplete, else empty."""
        return self._utf8.decode(b"", final=True)


def check_text(text: str, where: str) -> None:
    """Refuse what cannot be encoded; ``where`` names the text in the message.

    Raises:
        TypeError: not a str.
        InputError: a lone surrogate.
        LimitError: more than 16 MiB in UTF-8.
    """
    if not isinstance(text, str):
        raise TypeError(f"{where}: expected a str, got {type(text).__name__}")
    if len(text) > MAX_TEXT_BYTES:
        raise LimitError(
            f"{where}: expected at most {MAX_TEXT_BYTES} bytes of UTF-8, got {len(text)} characters"
        )
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: lone surrogate U+{ord(text[error.start]):04X} at position {error.start}; "
            "expected text that UTF-8 can encode"
        ) from None
    if size > MAX_TEXT_BYTES:
        raise LimitError(f"{where}: expected at most {MAX_TEXT_BYTES} bytes of UTF-8, got {size}")


# ------------------------------------------------------------------------------------------ loading


def load_tokenizer(
    folder: Path, vocab_size: int, control_ids: Collection[int] = ()
) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint, or return None if the folder has none.

    ``tokenizer.model`` is read by sentencepiece; only without it ``tokenizer.json`` by tokenizers.
    Behaviour is what the file says (dummy prefix, byte fallback, normaliser), except that
    ``add_prefix_space: false`` in ``tokenizer_config.json`` switches a dummy prefix off.

    A token is a control token if it has the type CONTROL, if any file declares it special, or if
    it was added to the vocabulary outside the model file; or if its id is among ``control_ids``.

    Args:
        folder: the checkpoint.
        vocab_size: rows of the model's embedding; every id must be below.
        control_ids: that the model's configuration gives a meaning of their own.

    Raises:
        ConfigError: a file is malformed, contradictory or unsupported, or an id is out of range.
    """
    folder = Path(folder)
    if (folder / MODEL_FILE).exists():
        return _from_sentencepiece(folder, vocab_size, control_ids)
    if (folder / JSON_FILE).exists():
        return _from_json(folder, vocab_size, control_ids)
    return None


def _from_sentencepiece(folder: Path, vocab_size: int, control_ids: Collection[int]) -> Tokenizer:
    declared = read_declared_tokens(folder)
    model = parse_sentencepiece_model(read_bytes(folder / MODEL_FILE, MAX_MODEL_BYTES), vocab_size)
    ids = {piece.text: index for index, piece in enumerate(model.pieces)}
    control_pieces = {
        piece.text for piece in model.pieces if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN)
    }
    named = {piece.text for index, piece in enumerate(model.pieces) if index in control_ids}
    decoded = {}
    for index, piece in enumerate(model.pieces):
        value = byte_value(piece.text) if piece.type is PieceType.BYTE else None
        text = piece.text if piece.text in control_pieces else piece.text.replace(SPACE_SYMBOL, " ")
        decoded[index] = text.encode() if value is None else bytes((value,))
    for role, token_id in model.role_ids.items():
        declared.roles.setdefault(role, model.pieces[token_id].text)

    control = _merge_added_tokens(ids, decoded, declared, control_pieces | named, vocab_size)
    prefix = model.add_dummy_prefix and declared.flag("add_prefix_space") is not False
    encode_start = model.encoder(control, dummy_prefix=prefix)
    return Tokenizer(
        ids=ids,
        decoded=decoded,
        control=control,
        skipped=control_pieces | (control & declared.special),
        declared=declared,
        roles=declared.roles,
        encode_start=encode_start,
        encode_middle=model.encoder(control, dummy_prefix=False) if prefix else encode_start,
        decodes_prefix=prefix or model.remove_extra_whitespaces,
        model_vocab_size=vocab_size,
    )


def _from_json(folder: Path, vocab_size: int, control_ids: Collection[int]) -> Tokenizer:
    declared = read_declared_tokens(folder)
    file = read_tokenizer_json(folder / JSON_FILE, declared)
    ids = dict(file.vocab)
    decoded = {
        token_id: decoded_bytes(token, is_byte_level=file.is_byte_level)
        for token, token_id in ids.items()
    }
    named = {token for token, token_id in ids.items() if token_id in control_ids}
    control = _merge_added_tokens(ids, decoded, declared, named, vocab_size)
    prefix = file.has_prefix and declared.flag("add_prefix_space") is not False
    encode_start = file.encoder(control, dummy_prefix=prefix)
    return Tokenizer(
        ids=ids,
        decoded=decoded,
        control=control,
        skipped=control & declared.special,
        declared=declared,
        roles=declared.roles,
        encode_start=encode_start,
        encode_middle=file.encoder(control, dummy_prefix=False) if prefix else encode_start,
        decodes_prefix=prefix,
        model_vocab_size=vocab_size,
    )


def _merge_added_tokens(
    ids: dict[str, int],
    decoded: dict[int, bytes],
    declared: DeclaredTokens,
    control: set[str],
    vocab_size: int,
) -> set[str]:
    """Enter the tokens of the side files into ``ids`` and ``decoded``; returns all control tokens.

    Raises:
        ConfigError: an id out of range, a token with two ids, or an id with two tokens.
    """
    control = set(control)
    owners = {token_id: token for token, token_id in ids.items()}
    for token, token_id in declared.ids.items():
        if token not in ids:
            control.add(token)
        if ids.setdefault(token, token_id) != token_id:
            raise ConfigError(
                f"tokenizer: token {quoted(token)} has the ids {ids[token]} and {token_id}"
            )
        if owners.setdefault(token_id, token) != token:
            raise ConfigError(
                f"tokenizer: id {token_id} belongs to both {quoted(owners[token_id])} "
                f"and {quoted(token)}"
            )
        decoded.setdefault(token_id, token.encode())
    for token, token_id in ids.items():
        if token_id >= vocab_size:
            raise ConfigError(
                f"tokenizer: token {quoted(token)} has the id {token_id}, expected ids below "
                f"vocab_size={vocab_size} of config.json"
            )
    absent = sorted(declared.special - ids.keys())
    if absent:
        logger.warning(
            "tokenizer: %d special tokens are declared but have no id: %s",
            len(absent),
            ", ".join(map(quoted, absent[:8])),
        )
    control |= declared.special & ids.keys()
    for token in control:
        decoded[ids[token]] = token.encode()  # spelled literally: a "▁" in one is no space
    return control
