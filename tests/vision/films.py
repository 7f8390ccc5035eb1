"""Video files for the tests."""

from __future__ import annotations

import io

import numpy as np


def film(
    num_frames: int = 60,
    size: tuple[int, int] = (160, 120),
    rate: int = 25,
    codec: str = "mpeg4",
    container: str = "mp4",
) -> bytes:
    """Frames of one grey each, 4 levels apart."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            grey = np.full((size[1], size[0], 3), number * 4 % 256, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return file.getvalue()


def sound() -> bytes:
    """A file of the right kind without pictures."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            output.mux(packet)
    return file.getvalue()
