"""Videos of frames, GIFs and files: the right frames, and an end to those that mean harm."""

from __future__ import annotations

import base64
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ernie_kernels.errors import (
    ArgumentError,
    CapacityError,
    InputError,
    LimitError,
    UnsupportedError,
)
from ernie_kernels.vision import VisionLimits, VisionProcessor, VisionSettings, video_process
from ernie_kernels.vision import gif as gif_frames

from films import film, sound
from pictures import encoded, gif, noise

Image = pytest.importorskip("PIL.Image")

PLAIN = VisionSettings(draw_timestamps=False)


def needs_pyav():
    pytest.importorskip("av")


def greys(item) -> list[int]:
    return item.pixels[:, 50, 50, 0].tolist()


def processor(**limits) -> VisionProcessor:
    return VisionProcessor(PLAIN, VisionLimits(**limits))


def test_frames_as_they_are():
    frames = [np.full((40, 60, 3), n, np.uint8) for n in range(5)]
    for source in (frames, tuple(frames), np.stack(frames), [Image.fromarray(f) for f in frames]):
        item = processor().video(source)
        assert item.kind == "video"
        assert greys(item) == [0, 1, 2, 3, 4, 4]  # the last once more
        assert item.num_tokens == np.prod(item.grid_thw) // 8
        assert item.pixels.shape == (6, item.grid_thw[1] * 14, item.grid_thw[2] * 14, 3)


def test_frames_of_a_known_rate_are_chosen():
    frames = (
        np.zeros((100, 30, 30, 3), np.uint8) + np.arange(100, dtype=np.uint8)[:, None, None, None]
    )
    assert greys(processor().video(frames, frame_rate=10)) == list(range(0, 100, 5))
    assert greys(processor().video(frames)) == list(range(100))
    assert len(greys(processor().video(np.concatenate([frames] * 3)))) == 180


def test_the_duplicate_bears_the_time_of_its_original():
    frames = [np.full((200, 300, 3), 128, np.uint8)] * 3
    item = VisionProcessor().video(frames, frame_rate=2.0)
    assert item.grid_thw[0] == 4
    np.testing.assert_array_equal(item.pixels[3], item.pixels[2])
    assert (item.pixels[2] != item.pixels[1]).any()


def test_times_are_drawn_before_the_resize():
    from ernie_kernels.vision.resize import bicubic_resize
    from ernie_kernels.vision.timestamp import draw_timestamp

    frames = [noise(120, 90, seed=n) for n in range(4)]
    item = VisionProcessor().video(frames, frame_rate=10)
    for n, frame in enumerate(frames):
        wanted = bicubic_resize(draw_timestamp(frame, n / 10), *item.pixels.shape[1:3])
        np.testing.assert_array_equal(item.pixels[n], wanted)


def test_a_gif():
    item = processor().video(gif(21, milliseconds=500))
    assert greys(item) == [5 * n for n in range(21)] + [100]
    assert greys(processor().video(gif(40, milliseconds=100))) == [
        5 * int(n * 40 / 16) for n in range(16)
    ]  # four seconds
    data = gif(1)
    assert greys(processor().video(data)) == [0, 0]


def test_a_gif_by_path_and_by_url(tmp_path):
    data = gif(4)
    (tmp_path / "a.gif").write_bytes(data)
    url = "data:image/gif;base64," + base64.b64encode(data).decode()
    wanted = processor().video(data)
    for source in (tmp_path / "a.gif", str(tmp_path / "a.gif"), url):
        np.testing.assert_array_equal(processor().video(source).pixels, wanted.pixels)


def test_a_gifs_frames_are_counted_as_pillow_counts():
    import io

    from ernie_kernels.vision.gif import read_gif_header

    for count in (1, 2, 7, 40):
        data = gif(count, milliseconds=70)
        header = read_gif_header(data, "video", VisionLimits())
        with Image.open(io.BytesIO(data)) as image:
            assert header.num_frames == image.n_frames == count
            assert (header.width, header.height) == image.size
        assert header.rate == pytest.approx(100 / 7)


@pytest.mark.parametrize("cut", [6, 10, 13, 20, 30, 60])
def test_row_45_truncated_gifs(cut):
    with pytest.raises(InputError):
        processor().video(gif(10)[:cut])


def test_row_45_a_gif_of_too_many_frames():
    with pytest.raises(LimitError, match="more than 20 frames"):
        processor(frames=20).video(gif(21))


def test_row_45_a_gif_of_empty_blocks():
    data = gif(1)[:-1] + b"\x21\xfe" + b"\x01x" * 200_000 + b"\0;"
    with pytest.raises(LimitError, match="very small blocks"):
        processor().video(data)


def test_row_45_frames_between_those_that_are_kept_are_decoded_too():
    data = gif(161, milliseconds=100)  # 33 are kept, the last of them is the last
    processor(video_pixels=161 * 40 * 30).video(data)
    with pytest.raises(LimitError, match=r"161 frames of 40 x 30 to decode have 193200 pixels"):
        processor(video_pixels=161 * 40 * 30 - 1).video(data)


def test_row_45_the_time_of_a_gif(monkeypatch):
    """Of each frame, kept or not, and without what is done with it meanwhile."""
    data = gif(161, milliseconds=100)
    clock = iter(range(1000))
    monkeypatch.setattr(gif_frames.time, "thread_time", lambda: float(next(clock)))
    processor(decode_seconds=161).video(data)
    with pytest.raises(LimitError, match="not decoded within 160 s; shorten it"):
        processor(decode_seconds=160).video(data)


def test_row_45_a_gif_frame_beyond_its_canvas():
    data = bytearray(gif(2, size=(40, 30)))
    second = data.rindex(b"\x2c\0\0\0\0")
    data[second + 5 : second + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(LimitError, match="65535"):
        processor().video(bytes(data))


@pytest.mark.parametrize("empty", [[], (), np.zeros((0, 4, 4, 3), np.uint8)])
def test_row_45_no_frames(empty):
    with pytest.raises(InputError, match="without frames"):
        processor().video(empty)


def test_row_45_frames_of_several_sizes():
    with pytest.raises(InputError, match="several sizes"):
        processor().video([noise(20, 30), noise(30, 20)])


def test_row_45_pixels_of_all_frames():
    with pytest.raises(LimitError, match="20 frames of 30 x 20 have 12000 pixels"):
        processor(video_pixels=11999).video(np.zeros((20, 20, 30, 3), np.uint8))
    assert (
        processor(video_pixels=12000).video(np.zeros((20, 20, 30, 3), np.uint8)).grid_thw[0] == 20
    )


def test_row_45_number_of_frames_and_seconds():
    frames = np.zeros((30, 20, 20, 3), np.uint8)
    with pytest.raises(LimitError, match="30 frames, the limit is 29"):
        processor(frames=29).video(frames)
    with pytest.raises(LimitError, match="plays 30 s, the limit is 29"):
        processor(video_seconds=29).video(frames, frame_rate=1)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (None, TypeError, "expected a path"),
        (5, TypeError, "got int"),
        (np.zeros((5, 5, 3), np.uint8), ArgumentError, r"expected an array uint8 \[frames"),
        (np.zeros((2, 5, 5, 3), np.float32), ArgumentError, "frame 0: expected an array uint8"),
        ([noise(5, 5), "nothing"], InputError, "frame 1: 'nothing' cannot be read"),
        (b"", InputError, "not a readable MP4"),
        (b"nothing at all", InputError, "not a readable MP4"),
        ("https://example.org/a.mp4", InputError, "not fetched"),
        ("missing.mp4", InputError, r"'missing.mp4' cannot be read \(ENOENT\)"),
        (encoded(np.zeros((5, 5, 3), np.uint8)), InputError, "not a readable MP4"),
    ],
)
def test_row_45_what_is_no_video(source, error, words):
    with pytest.raises(error, match=words):
        processor().video(source)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "24", True, 1e9])
def test_row_45_rates_that_are_none(rate):
    with pytest.raises(ArgumentError, match="frame_rate: expected a number"):
        processor().video([noise(5, 5)], frame_rate=rate)


def test_a_file_tells_its_own_rate():
    with pytest.raises(ArgumentError, match="a file tells its own"):
        processor().video(gif(2), frame_rate=24.0)


# ------------------------------------------------------------------------------------ decoded files


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("matroska", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
    ],
)
def test_files_of_every_format(tmp_path, container, codec):
    needs_pyav()
    data = film(250, codec=codec, container=container)
    (tmp_path / "film").write_bytes(data)
    for source in (data, tmp_path / "film"):
        item = processor().video(source)
        wanted = [round(12.5 * n) * 4 % 256 for n in range(20)]
        assert len(greys(item)) == 20
        assert np.abs(np.array(greys(item)) - wanted).max() <= 8  # what the codec loses


def test_a_rotated_file():
    """A phone's way: pixels lie on their side, and a matrix says so."""
    needs_pyav()
    data = film(20, size=(160, 96))
    at = data.index(b"tkhd") + 4 + 40
    one, zero = (1 << 16).to_bytes(4, "big", signed=True), bytes(4)
    minus = (-1 << 16).to_bytes(4, "big", signed=True)
    matrix = zero + one + zero + minus + zero + zero + zero + zero + (1 << 30).to_bytes(4, "big")
    turned = data[:at] + matrix + data[at + 36 :]
    plain, upright = processor().video(data), processor().video(turned)
    assert plain.grid_thw[1] < plain.grid_thw[2]
    assert upright.grid_thw == (plain.grid_thw[0], plain.grid_thw[2], plain.grid_thw[1])


def outcome_of(data: bytes) -> str | int:
    try:
        return len(greys(processor().video(data)))
    except InputError:
        return "refused"


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_row_45_truncated_files(keep):
    needs_pyav()
    for container in ("mp4", "matroska", "avi"):
        data = film(200, container=container)
        part = data[: int(len(data) * keep)]
        if container == "mp4":  # its index is at the end
            with pytest.raises(InputError, match="not a readable MP4"):
                processor().video(part)
        else:  # as long as what is there, or refused
            assert outcome_of(part) in ("refused", *range(16, 18))


def test_row_45_a_file_of_sound():
    needs_pyav()
    with pytest.raises(InputError, match="no video stream"):
        processor().video(sound())


def test_row_45_size_and_number_are_known_before_decoding():
    needs_pyav()
    with pytest.raises(LimitError, match="160 x 120 pixels, the limit"):
        processor(side=150).video(film(20))
    with pytest.raises(LimitError, match="more than 19 frames; shorten"):
        processor(stored_frames=19).video(film(20))
    with pytest.raises(LimitError, match="the limit is 1000; send a smaller file"):
        processor(video_bytes=1000).video(film(20))


def test_row_45_no_room_for_a_temporary_file(monkeypatch):
    data = b"\0\0\0\x18ftyp" + bytes(100)
    words = "no temporary file of 108 bytes can be written; pass a path"
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(CapacityError, match=words):
        processor().video(data)

    def full(buffering=-1):
        return open("/dev/full", "r+b", buffering)  # noqa: PTH123

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(CapacityError, match=words):
        processor().video(data)


def test_row_45_memory_of_the_decoder():
    needs_pyav()
    with pytest.raises(InputError):  # it cannot even begin
        processor(decode_bytes=64 << 20).video(film(20))


def hanging_child(tmp_path: Path, body: str) -> Path:
    child = tmp_path / "child.py"
    child.write_text("import os, sys, time\n" + body)
    return child


HEAD = 'sys.stdout.write(\'{"width": 16, "height": 16, "num_frames": 20, "rate": 10.0}\\n\'); '
CHILDREN = {
    "says nothing": "time.sleep(60)",
    "loops": "while True: pass",
    "stops after its header": HEAD + "sys.stdout.flush(); time.sleep(60)",
    "drips": "while True: os.write(1, b' '); time.sleep(0.05)",
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_row_45_a_decoder_that_hangs_is_killed(tmp_path, monkeypatch, kind):
    needs_pyav()
    monkeypatch.setattr(video_process, "CHILD", hanging_child(tmp_path, CHILDREN[kind]))
    started = []
    popen = video_process.subprocess.Popen
    monkeypatch.setattr(
        video_process.subprocess,
        "Popen",
        lambda *args, **kwargs: started.append(popen(*args, **kwargs)) or started[-1],
    )
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    begin = time.monotonic()
    with pytest.raises(LimitError, match="not decoded within 1 s"):
        processor(decode_seconds=1).video(b"\0\0\0\x18ftyp" + bytes(100))
    assert time.monotonic() - begin < 30
    assert started[0].returncode is not None  # ended, and waited for
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.parametrize(
    "body",
    [
        "os._exit(1)",
        "os.kill(os.getpid(), 11)",
        "print('not JSON')",
        "print('[]')",
        "print('{}')",
        "print('x' * 100000)",
        'print(\'{"width": "a", "height": 1, "num_frames": 1, "rate": 1}\')',
        'print(\'{"width": 1e999, "height": 1, "num_frames": 1, "rate": 1}\')',
        HEAD + "print('{\"end\": true}')",
        HEAD + 'print(\'{"height": 99999, "width": 99999}\')',
        HEAD + "print('{\"height\": 16, \"width\": 16}'); print('too short')",
    ],
)
def test_row_45_a_decoder_that_dies_or_lies(tmp_path, monkeypatch, body):
    """A decoder that its file has taken over can say what it likes."""
    needs_pyav()
    monkeypatch.setattr(video_process, "CHILD", hanging_child(tmp_path, body))
    with pytest.raises(InputError, match=r"^video: "):
        processor().video(b"\0\0\0\x18ftyp" + bytes(100))


def test_no_child_is_left_when_the_parent_stops_early():
    needs_pyav()
    from ernie_kernels.vision.video import open_video

    with open_video(film(100), "video", VisionLimits(), None) as video:
        frames = video.frames(np.arange(50))
        next(frames)
        process = video._process
    assert process.returncode is not None


def test_without_pyav(monkeypatch):
    from ernie_kernels.vision import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"PyAV.*pip install 'ernie-kernels\[video\]'"):
        processor().video(b"\0\0\0\x18ftyp" + bytes(100))
    assert greys(processor().video(gif(2))) == [0, 5]


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for source in (noise(5, 5), encoded_before):
        with pytest.raises(
            UnsupportedError, match=r"Pillow.*pip install 'ernie-kernels\[vision\]'"
        ):
            processor().image(source)


encoded_before = encoded(noise(5, 5))


def test_several_threads_get_the_same_as_one():
    shared = VisionProcessor()
    sources = [noise(50 + n, 70) for n in range(6)]
    wanted = [shared.image(s).pixels for s in sources]
    found: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        found[n] = shared.image(sources[n]).pixels
        shared.video([sources[n]] * 2)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(6):
        np.testing.assert_array_equal(found[n], wanted[n])
