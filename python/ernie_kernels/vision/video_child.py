"""Decodes a video in a process of its own, which its parent limits and may kill at any time.

Started as a script, it imports nothing of this package: PyAV, numpy and the standard library alone.
It opens the file behind a descriptor, tells what is in it as one line of JSON, reads the wanted frame
numbers as a second, and writes each of those frames as raw RGB. It has no network, writes no file and
says nothing of its own on stderr. What is wrong comes as ``{"error": word}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    request = json.loads(sys.argv[1])
    for kind, value in (
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_CPU, request["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(kind)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    sys.path[:0] = request["packages"]
    try:
        decode(request)
    except MemoryError:
        say({"error": "memory"})
    except BrokenPipeError:
        pass
    except Exception:  # noqa: BLE001  (the decoder's words stay here)
        say({"error": "unreadable"})
    sys.stdout.flush()
    os._exit(0)  # a damaged file may leave the libraries' own cleanup in a bad state


def say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def decode(request: dict[str, Any]) -> None:
    with open_video(request) as container:
        stream = find_stream(container)
        if stream is None:
            say({"error": "no video stream"})
            return
        num_frames = 0
        for packet in container.demux(stream):
            # What lies before the point where a cut file begins is decoded, but not shown.
            num_frames += packet.size > 0 and not packet.is_discard
            if num_frames > request["max_stored_frames"]:
                say({"error": "frames"})
                return
        rate = stream.average_rate or stream.guessed_rate or 0
        width, height = stream.codec_context.width, stream.codec_context.height
    say({"width": width, "height": height, "num_frames": num_frames, "rate": float(rate)})
    wanted = json.loads(sys.stdin.buffer.readline())
    with open_video(request) as container:
        stream = find_stream(container)
        stream.codec_context.options = {"max_pixels": str(request["max_pixels"])}
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = request["threads"]
        send(container.decode(stream), wanted, (width, height))


def open_video(request: dict[str, Any]) -> Any:
    import av

    av.logging.set_level(None)
    file = os.fdopen(os.dup(request["descriptor"]), "rb")
    file.seek(0)
    return av.open(file, format=request["format"], metadata_errors="replace")


def find_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture."""
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition):
            return stream
    return None


def send(frames: Any, wanted: list[int], size: tuple[int, int]) -> None:
    import numpy as np

    waiting = iter(wanted)
    following = next(waiting, None)
    for index, frame in enumerate(frames):
        if following is None:
            return
        if (frame.width, frame.height) != size:
            say({"error": "size changes"})
            return
        if index == following:
            # Counter-clockwise quarters that bring it upright, as a phone notes them.
            quarters = round(frame.rotation / 90) % 4
            pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters))
            say({"index": index, "height": pixels.shape[0], "width": pixels.shape[1]})
            sys.stdout.buffer.write(pixels.data)
            following = next(waiting, None)
    say({"end": True})


if __name__ == "__main__":
    main()
