"""Format and size of an encoded image, from its header alone.

Nothing is decoded and no other package is asked: a picture whose header claims too much is refused
before a decoder has seen it. Only what the limits need is read; what is malformed in other ways is
found by the decoder.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ernie_kernels.errors import InputError, LimitError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A JPEG's start-of-frame markers: all of 0xC0..0xCF but tables (C4), arithmetic (CC) and JPG (C8).
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
FILL = re.compile(b"\xff+")  # before a marker, as many as a writer likes
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


def read_image_header(data: bytes | memoryview, where: str) -> ImageHeader:
    """Format and size of a PNG, JPEG, WebP or GIF.

    Raises:
        InputError: another format, or a header that is cut off or contradicts itself.
        LimitError: a JPEG with more scans or segments than a picture needs.
    """
    head = bytes(data[:64])
    try:
        if head.startswith(PNG_SIGNATURE):
            return _png(data, where)
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg(bytes(data), where)
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


def _png(data: bytes | memoryview, where: str) -> ImageHeader:
    if bytes(data[8:16]) != b"\0\0\0\rIHDR":
        raise unreadable(where)
    header = ImageHeader("PNG", *struct.unpack_from(">II", data, 16))
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        if at + 8 > len(data):  # cut off, if the decoder misses what is not there
            return header
        at += 12 + struct.unpack_from(">I", data, at)[0]
    raise LimitError(f"{where}: a PNG of more than {MAX_PNG_CHUNKS} chunks; save it again")


def _jpeg(data: bytes, where: str) -> ImageHeader:
    header = None
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        fill = FILL.match(data, at)
        if fill is None:
            break
        marker_at = fill.end()
        if marker_at + 3 > len(data):
            break
        marker = data[marker_at]
        if marker in (0xD9, 0xDA):  # the end, or pixels
            break
        at = marker_at + 1
        if marker in JPEG_ALONE:
            continue
        length = struct.unpack_from(">H", data, at)[0]
        if marker in JPEG_FRAMES and header is None:
            height, width = struct.unpack_from(">HH", data, at + 3)
            header = ImageHeader("JPEG", width, height)
        at += max(2, length)
    else:
        raise _too_many_segments(where)
    if header is None:
        raise unreadable(where)
    _check_scans(data, at, where)
    return header


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
