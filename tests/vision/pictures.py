"""Pictures for the tests: pixels, files of every format, and their references in numpy."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np

ORIENTATION_TAG = 0x0112
# What each EXIF orientation does to the stored pixels to show them upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """A Pillow image, or an array, as a file in memory."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gif(num_frames: int, milliseconds: int = 100, size: tuple[int, int] = (40, 30)) -> bytes:
    """Frames of one grey each, 5 levels apart."""
    from PIL import Image

    frames = [Image.new("RGB", size, (5 * n % 256,) * 3) for n in range(num_frames)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=milliseconds)


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A well-formed PNG header, whatever follows it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    return b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xff\xc0" + frame + b"\xff\xd9"


def late_jpeg_claiming(width: int, height: int) -> bytes:
    """Its size stands behind 128 KiB of what an application has to say."""
    data = jpeg_claiming(width, height)
    return data[:2] + (b"\xff\xe1\xff\xff" + bytes(0xFFFD)) * 2 + data[2:-2]


def webp_claiming(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides


def gif_claiming(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(3) + b";"
