"""Reading ``tokenizer.model``: the SentencePiece protobuf, checked piece by piece.

The sentencepiece library loads the same bytes, but tells neither the type of a piece nor the
normaliser's settings. Two things are changed on the way, by appending to the message (in protobuf
the last value of a field wins): control tokens get the type CONTROL, with which the library never
produces them from text; and a copy without the dummy prefix serves the stretches of a prompt that
do not begin it.

Source of the field numbers: sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum

import sentencepiece

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError

MODEL_FILE = "tokenizer.model"
SPACE_SYMBOL = "▁"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class PieceType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_PIECE_TYPES: dict[int | bytes, PieceType] = {int(kind): kind for kind in PieceType}


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The checked content of a ``tokenizer.model``."""

    pieces: tuple[Piece, ...]  # the index is the id
    raw_pieces: tuple[bytes, ...]  # the message of each piece
    rest: bytes  # all other fields of the file, in order
    add_dummy_prefix: bool  # encode puts a space before the text
    remove_extra_whitespaces: bool  # decode drops a leading space
    role_ids: dict[str, int]  # "bos_token" -> id, for the roles the model has

    def encoder(
        self, control: Collection[str], *, dummy_prefix: bool
    ) -> Callable[[str], list[int]]:
        """A function from text to ids that never yields the id of a token in ``control``."""
        parts = []
        for piece, raw in zip(self.pieces, self.raw_pieces, strict=True):
            retype = piece.text in control and piece.type is not PieceType.UNKNOWN
            message = raw + bytes((3 << 3, PieceType.CONTROL)) if retype else raw
            parts.append(b"\x0a" + _varint_bytes(len(message)) + message)
        data = b"".join(parts) + self.rest
        if not dummy_prefix:
            data += b"\x1a\x02\x18\x00"  # normalizer_spec { add_dummy_prefix: false }
        try:
            processor = sentencepiece.SentencePieceProcessor()
            processor.LoadFromSerializedProto(data)
        except Exception:  # noqa: BLE001  (whatever it is; its text may quote the file)
            raise ConfigError(
                f"{quoted(MODEL_FILE)}: the sentencepiece library refuses this model"
            ) from None
        return processor.EncodeAsIds  # type: ignore[no-any-return]


def parse_sentencepiece_model(data: bytes, max_pieces: int) -> SentencePieceModel:
    """Parse and check a SentencePiece model.

    Raises:
        ConfigError: truncated or malformed; no piece, or more than ``max_pieces``; a piece that
            is empty, not UTF-8, of unknown type or there twice; a bad or incomplete set of byte
            pieces; a model type other than BPE and unigram.
    """
    pieces: list[Piece] = []
    raw_pieces: list[bytes] = []
    rest: list[bytes] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value, begin, end in _fields(data):
        if number == 1 and isinstance(value, bytes):
            if len(pieces) >= max_pieces:
                raise _error(f"expected at most {max_pieces} pieces (vocab_size), got more")
            pieces.append(_parse_piece(value, len(pieces)))
            raw_pieces.append(value)
            continue
        rest.append(data[begin:end])
        if number in (2, 3) and isinstance(value, bytes):
            target = trainer if number == 2 else normalizer
            target.update((field, item) for field, item, _, _ in _fields(value))
    _check_pieces(pieces)
    model_type = trainer.get(3, 1)
    if model_type not in (1, 2):
        raise _error(f"expected a unigram or BPE model, got model type {quoted(model_type)}")

    role_ids = {}
    # Field number and default of the ids in TrainerSpec; int32 -1 (absent) is a 64-bit varint.
    for role, number, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1)):
        token_id = trainer.get(number, default)
        if isinstance(token_id, int) and 0 <= token_id < len(pieces):
            role_ids[f"{role}_token"] = token_id
    return SentencePieceModel(
        pieces=tuple(pieces),
        raw_pieces=tuple(raw_pieces),
        rest=b"".join(rest),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        role_ids=role_ids,
    )


def byte_value(piece: str) -> int | None:
    """The value of a byte piece, ``<0x0A>`` -> 10; None for any other text."""
    match = _BYTE_PIECE.fullmatch(piece)
    return int(match.group(1), 16) if match else None


def _error(what: str) -> ConfigError:
    return ConfigError(f"{quoted(MODEL_FILE)}: {what}")


def _parse_piece(message: bytes, index: int) -> Piece:
    text: int | bytes = b""
    kind: int | bytes = PieceType.NORMAL
    for number, value, _, _ in _fields(message):
        if number == 1:
            text = value
        elif number == 3:
            kind = value
    if not isinstance(text, bytes) or not text:
        raise _error(f"piece {index}: expected a non-empty text")
    if kind not in _PIECE_TYPES:
        raise _error(f"piece {index}: expected a type 1..6, got {quoted(kind)}")
    try:
        return Piece(text.decode("utf-8"), _PIECE_TYPES[kind])
    except UnicodeDecodeError:
        raise _error(f"piece {index}: expected UTF-8") from None


def _check_pieces(pieces: list[Piece]) -> None:
    if not pieces:
        raise _error("no pieces; not a SentencePiece model, or an empty one")
    seen: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        other = seen.setdefault(piece.text, index)
        if other != index:
            raise _error(f"piece {quoted(piece.text)} has the ids {other} and {index}")
        if piece.type is PieceType.BYTE and byte_value(piece.text) is None:
            raise _error(f"byte piece {index}: expected <0x00> to <0xFF>, got {quoted(piece.text)}")
    count = sum(piece.type is PieceType.BYTE for piece in pieces)
    if count not in (0, 256):
        raise _error(f"expected all 256 byte pieces or none, got {count}")


# ------------------------------------------------------------------------- the protobuf wire format


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, int, int]]:
    """Each field of a message: its number, value, and where it begins and ends in ``data``."""
    position, size = 0, len(data)
    while position < size:
        begin = position
        # Nearly all tags and lengths are one byte: a call for each would double the time to load.
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, begin)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _varint(data, position)
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
            if wire == _BYTES and position < size and data[position] < 0x80:
                length = data[position]
                position += 1
            elif wire == _BYTES:
                length, position = _varint(data, position)
            value = data[position : position + length]
            position += length
        else:
            raise _error(f"malformed field at offset {begin} of a message")
        if position > size or number == 0:
            raise _error(f"truncated or malformed field at offset {begin} of a message")
        yield number, value, begin, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise _error(f"truncated or malformed number at offset {position} of a message")


def _varint_bytes(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
