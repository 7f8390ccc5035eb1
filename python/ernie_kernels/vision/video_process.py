"""The parent's side of :mod:`video_child`: a decoder that cannot outlive its limits."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ernie_kernels.errors import CapacityError, InputError, LimitError, UnsupportedError
from ernie_kernels.vision.extras import check_pyav
from ernie_kernels.vision.limits import VisionLimits

CHILD = Path(__file__).with_name("video_child.py")
MAX_LINE = 4096
THREADS = 2
# A decoder holds frames back to put them in order; a file cut inside that many loses them.
REORDER_DEPTH = 16


class VideoFile:
    """A video file, open in a child process.

    Attributes:
        width, height: of the frames as they are stored, in pixels.
        num_frames, rate: of the whole video; frames per second.
    """

    def __init__(self, descriptor: int, container: str, where: str, limits: VisionLimits) -> None:
        """
        Args:
            descriptor: an open regular file; the caller closes it.
            container: FFmpeg's name of the format, the only one that is tried.

        Raises:
            InputError: no video that can be read.
            LimitError: too large, or not opened within its time and memory.
            UnsupportedError: PyAV is missing, or this Python cannot start another.
        """
        check_pyav()
        if not sys.executable:
            raise UnsupportedError(f"{where}: no Python interpreter to decode with; pass frames")
        self._where = where
        self._limits = limits
        self._seconds_left = float(limits.decode_seconds)
        self._buffer = bytearray()
        self._process = self._start(descriptor, container)
        try:
            facts = self._line()
            self.width, self.height = self._count(facts, "width"), self._count(facts, "height")
            self.num_frames, self.rate = self._count(facts, "num_frames"), self._rate(facts)
        except BaseException:
            self.close()
            raise

    def _start(self, descriptor: int, container: str) -> subprocess.Popen[bytes]:
        request = {
            "descriptor": descriptor,
            "format": container,
            "memory": self._limits.decode_bytes,
            "cpu_seconds": int(self._limits.decode_seconds * THREADS) + 1,
            "threads": THREADS,
            "max_stored_frames": self._limits.stored_frames,
            "max_pixels": self._limits.image_pixels,
            "packages": [_folder_of(name) for name in ("av", "numpy")],
        }
        arguments = [sys.executable, "-I", str(CHILD), json.dumps(request)]
        try:
            return self._popen(arguments, descriptor)
        except OSError:
            raise CapacityError(
                f"{self._where}: no process for decoding could be started; try again later"
            ) from None

    @staticmethod
    def _popen(arguments: list[str], descriptor: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(descriptor,),
            close_fds=True,
            # Threads of numpy's and arenas of the allocator would use up the memory it may have.
            env={
                "PATH": os.defpath,
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            },
        )

    def frames(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """The frames at ``indices`` (ascending), upright, uint8 ``[H, W, 3]``. Once only."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([int(i) for i in indices]).encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None
        pixels: np.ndarray | None = None
        for index in indices:
            facts = self._line()
            if "end" in facts:
                if pixels is None or index < self.num_frames - REORDER_DEPTH:
                    raise InputError(
                        f"{self._where}: frame {index} of {self.num_frames} cannot be decoded; the "
                        f"file is cut off or damaged"
                    )
                yield from [pixels] * int((indices >= index).sum())
                return
            height, width = self._count(facts, "height"), self._count(facts, "width")
            self._limits.check_size(self._where, width, height)
            data = self._read(height * width * 3)
            pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            yield pixels

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def _line(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE:
                raise self._unreadable()
            self._fill(MAX_LINE)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            facts = json.loads(line)
        except ValueError:
            raise self._unreadable() from None
        if not isinstance(facts, dict):
            raise self._unreadable()
        if "error" in facts:
            raise self._refusal(facts["error"])
        return facts

    # What the child says is checked like a file: what it decodes may have taken it over.
    def _count(self, facts: dict[str, Any], key: str) -> int:
        value = facts.get(key)
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise self._unreadable()
        return value

    def _rate(self, facts: dict[str, Any]) -> float:
        value = facts.get("rate")
        if not isinstance(value, (int, float)):
            raise self._unreadable()
        return float(value)  # its range is the caller's to check

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill(size - len(self._buffer))
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _fill(self, size: int) -> None:
        """Reads what there is, at most ``size`` bytes; time passes only while it waits here."""
        assert self._process.stdout is not None
        begin = time.monotonic()
        poll = select.poll()  # takes descriptors above 1023, which select does not
        poll.register(self._process.stdout, select.POLLIN)
        ready = poll.poll(max(0.0, self._seconds_left) * 1000)
        self._seconds_left -= time.monotonic() - begin
        if not ready:
            raise LimitError(
                f"{self._where}: not decoded within {self._limits.decode_seconds:g} s; shorten it or "
                f"raise decode_seconds"
            )
        data = os.read(self._process.stdout.fileno(), min(size, 1 << 20))
        if not data:
            raise self._died()
        self._buffer += data

    def _died(self) -> InputError:
        try:
            code = self._process.wait(max(0.1, self._seconds_left))
        except subprocess.TimeoutExpired:  # taken over, it may close its output and stay
            return self._unreadable()
        if code == -9:  # the kernel's answer to the processor time that is used up
            return LimitError(
                f"{self._where}: the decoder used up its time ({self._limits.decode_seconds:g} s)"
            )
        return self._unreadable()

    def _refusal(self, word: str) -> InputError:
        limits = self._limits
        if word == "memory":
            return LimitError(
                f"{self._where}: decoding takes more than {limits.decode_bytes} bytes; scale it down"
            )
        if word == "frames":
            return LimitError(
                f"{self._where}: more than {limits.stored_frames} frames; shorten the video"
            )
        if word == "no video stream":
            return InputError(f"{self._where}: the file holds no video stream")
        if word == "size changes":
            return InputError(f"{self._where}: the size of its frames changes; convert the video")
        return self._unreadable()

    def _unreadable(self) -> InputError:
        return InputError(
            f"{self._where}: not a readable MP4, WebM, Matroska or AVI video; convert it to MP4"
        )


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parents[1])
