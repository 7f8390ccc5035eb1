"""What a user calls a video, as one thing: size, number, rate, and frames by their numbers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Protocol

import numpy as np

from ernie_kernels.errors import ArgumentError, CapacityError, InputError, LimitError
from ernie_kernels.vision.gif import gif_frames, read_gif_header
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.local_files import open_file
from ernie_kernels.vision.sources import Source, encoded_bytes, is_encoded, is_local
from ernie_kernels.vision.video_process import VideoFile

UNKNOWN_RATE = 24.0  # frames per second, as transformers assumes
MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
HEAD_BYTES = 16


class Video(Protocol):
    """A video that can be asked for frames once."""

    width: int
    height: int
    num_frames: int
    rate: float

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Those at ``indices`` (ascending), uint8 ``[H, W, 3]``."""


class GifVideo:
    """A GIF in memory."""

    def __init__(self, data: bytes, where: str, limits: VisionLimits) -> None:
        header = read_gif_header(data, where, limits)
        self.width, self.height = header.width, header.height
        self.num_frames, self.rate = header.num_frames, header.rate
        self._data, self._where, self._limits = data, where, limits

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        # Those between them are decoded too.
        count = int(indices[-1]) + 1
        pixels = count * self.width * self.height
        if pixels > self._limits.video_pixels:
            raise LimitError(
                f"{self._where}: {count} frames of {self.width} x {self.height} to decode have "
                f"{pixels} pixels, the limit is {self._limits.video_pixels}; scale the GIF down or "
                "pass a video"
            )
        return gif_frames(self._data, indices, self._where, self._limits)


class FrameList:
    """Frames that the user has decoded."""

    def __init__(
        self,
        images: Sequence[Source] | np.ndarray,
        rate: float | None,
        where: str,
        limits: VisionLimits,
    ) -> None:
        if len(images) == 0:
            raise InputError(f"{where}: a video without frames")
        self.num_frames = len(images)
        self.rate = UNKNOWN_RATE if rate is None else rate
        self._images, self._where, self._limits = images, where, limits
        first = self._frame(0)
        self.height, self.width = first.shape[:2]

    def _frame(self, index: int) -> np.ndarray:
        return load_image(self._images[index], f"{self._where}: frame {index}", self._limits)

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        return (self._frame(int(index)) for index in indices)


@contextmanager
def open_video(
    source: Source, where: str, limits: VisionLimits, rate: float | None
) -> Iterator[Video]:
    """A video of a file, a GIF or frames; whatever it started has ended after the block.

    Raises: what :func:`load_image` and :class:`VideoFile` raise.
    """
    if is_encoded(source):
        if rate is not None:
            raise ArgumentError(f"{where}: frame_rate is for lists of frames; a file tells its own")
        with _encoded(source, where, limits) as video:
            yield video
        return
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise ArgumentError(
            f"{where}: expected an array uint8 [frames, H, W, 3], got {source.dtype} "
            f"{list(source.shape[:8])}"
        )
    if not isinstance(source, (list, tuple, np.ndarray)):
        raise TypeError(
            f"{where}: expected a path, bytes, a data: URL or a sequence of images, got "
            f"{type(source).__name__}"
        )
    yield FrameList(source, rate, where, limits)


@contextmanager
def _encoded(source: Source, where: str, limits: VisionLimits) -> Iterator[Video]:
    if is_local(source):
        allowed = limits.allowed_local_media_path
        with open_file(source, where, allowed, limits.video_bytes) as file:
            head = file.read(HEAD_BYTES) or b""
            if head[:4] == b"GIF8":
                limits.check_bytes(where, os.fstat(file.fileno()).st_size, limits.image_bytes)
                yield GifVideo(head + file.read(limits.image_bytes), where, limits)
                return
            with _child(file.fileno(), head, where, limits) as video:
                yield video
        return
    data = encoded_bytes(source, where, limits, limits.video_bytes)
    if data[:4] == b"GIF8":
        limits.check_bytes(where, len(data), limits.image_bytes)
        yield GifVideo(data, where, limits)
        return
    with (
        _temporary_file(data, where) as file,
        _child(file.fileno(), data[:HEAD_BYTES], where, limits) as video,
    ):
        yield video


@contextmanager
def _temporary_file(data: bytes, where: str) -> Iterator[BinaryIO]:
    """A nameless file that holds ``data``.

    Raises:
        CapacityError: no folder for it, or no room.
    """
    with ExitStack() as stack:
        try:
            # Without a buffer, whose rest the closing would try to write once more.
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        except OSError:
            raise CapacityError(
                f"{where}: no temporary file of {len(data)} bytes can be written; pass a path, or "
                "set TMPDIR to a folder with room"
            ) from None
        yield file


@contextmanager
def _child(descriptor: int, head: bytes, where: str, limits: VisionLimits) -> Iterator[Video]:
    video = VideoFile(descriptor, container_of(head, where), where, limits)
    try:
        yield video
    finally:
        video.close()


def container_of(head: bytes, where: str) -> str:
    """FFmpeg's name of the file format. It is told which: no demuxer that opens other files runs."""
    if head[4:8] in MOV_BOXES:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise InputError(f"{where}: not a readable MP4, WebM, Matroska or AVI video; convert it to MP4")
