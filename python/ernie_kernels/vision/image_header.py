"""Format and size of an encoded image, from its header alone.

Nothing is decoded and no other package is asked: a picture whose header claims too much is refused
before a decoder has seen it. Only what the limits need is read; what is malformed in other ways is
found by the decoder.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision.sources import Reader, reader_of

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A JPEG's start-of-frame markers: all of 0xC0..0xCF but tables (C4), arithmetic (CC) and JPG (C8).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PIECE = 512  # bytes read at a time: fill before a marker, and what stands behind it
JPEG_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
# Behind the head of a scan: 0xFF and what is neither an escaped byte, fill nor a restart.
MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
# A progressive file of a few bytes per scan costs its decoder a pass over all pixels for each.
MAX_JPEG_SCANS = 200
# Decoders read these one by one, in Python: millions of empty ones take seconds. Writers cut the
# pixels of a PNG into chunks of 8 KiB, so that a file at the limit of bytes has about 4096.
MAX_JPEG_SEGMENTS = 4096
MAX_PNG_CHUNKS = 16384


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an encoded image says of itself: ``format`` is Pillow's name of it."""

    format: str
    width: int
    height: int


def read_image_header(read: Reader, where: str) -> ImageHeader:
    """Format and size of a PNG, JPEG, WebP or GIF, of which no more is read than where these stand.

    Raises:
        InputError: another format, or a header that is cut off or contradicts itself.
        LimitError: a JPEG with more segments before its size than a picture needs.
    """
    head = read(0, 64)
    try:
        if head.startswith(PNG_SIGNATURE) and head[8:16] == b"\0\0\0\rIHDR":
            return ImageHeader("PNG", *struct.unpack_from(">II", head, 16))
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(read, where)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp(head, where)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return ImageHeader("GIF", *struct.unpack_from("<HH", head, 6))
    except (struct.error, IndexError):
        raise unreadable(where) from None
    raise unreadable(where)


def unreadable(where: str) -> InputError:
    return InputError(
        f"{where}: not a readable PNG, JPEG or WebP image; convert it to one of these"
    )


def check_structure(data: bytes, header: ImageHeader, where: str) -> None:
    """Raises LimitError where a decoder would take long over a small picture: a PNG of many chunks, a JPEG
    of many segments or scans."""
    if header.format == "PNG":
        _check_chunks(data, where)
    elif header.format == "JPEG":
        first_scan = 2
        for segment in _jpeg_segments(reader_of(data), where):
            first_scan = segment.end
        _check_scans(data, first_scan, where)


def _check_chunks(data: bytes, where: str) -> None:
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(data):  # cut off, if the decoder misses what is not there
            return
        at += 12 + struct.unpack_from(">I", data, at)[0]
    raise LimitError(f"{where}: a PNG of more than {MAX_PNG_CHUNKS} chunks; save it again")


@dataclass(frozen=True, slots=True)
class _Segment:
    marker: int
    body: bytes  # its beginning, from its length on
    end: int  # where the next one begins


def _jpeg_segments(read: Reader, where: str) -> Iterator[_Segment]:
    """Those before the first scan, or before what is none."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        piece = read(at, PIECE)
        behind = piece.lstrip(b"\xff")  # fill before a marker, as many as a writer likes
        fill = len(piece) - len(behind)
        if fill == 0 or (len(behind) < 3 and len(piece) < PIECE):
            return
        if len(behind) < 16 and len(piece) == PIECE:
            at += max(1, fill - 1)
            continue
        marker = behind[0]
        if marker in (0xD9, 0xDA):  # the end, or pixels
            return
        at += fill + 1
        if marker in JPEG_ALONE:
            continue
        at += max(2, struct.unpack_from(">H", behind, 1)[0])
        yield _Segment(marker, behind[1:], at)
    raise _too_many_segments(where)


def _jpeg(read: Reader, where: str) -> ImageHeader:
    for segment in _jpeg_segments(read, where):
        if segment.marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", segment.body, 3)
            return ImageHeader("JPEG", width, height)
    raise unreadable(where)


def _check_scans(data: bytes, at: int, where: str) -> None:
    """Counts scans from the first on as a decoder meets them: to the end of the image, not of the file.

    Behind it lie what cameras append, such as further pictures, each with scans of its own.
    """
    scans = 0
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = MARKER.search(data, at)
        if marker is None or marker[1] == b"\xd9":
            return
        scans += marker[1] == b"\xda"
        if scans > MAX_JPEG_SCANS:
            raise LimitError(f"{where}: a JPEG of more than {MAX_JPEG_SCANS} scans; save it again")
        at = marker.end()
        # Stepped over: what looks like a marker inside a segment is none.
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise _too_many_segments(where)


def _too_many_segments(where: str) -> LimitError:
    return LimitError(f"{where}: a JPEG of more than {MAX_JPEG_SEGMENTS} segments; save it again")


def _webp(head: bytes, where: str) -> ImageHeader:
    chunk = head[12:16]
    if chunk == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
    elif chunk == b"VP8L" and head[20] == 0x2F:
        bits = struct.unpack_from("<I", head, 21)[0]
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", head, 26))
    else:
        raise unreadable(where)
    if len(head) < 30 and chunk != b"VP8L":
        raise unreadable(where)
    return ImageHeader("WEBP", width, height)
