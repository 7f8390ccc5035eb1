"""Pictures that claim too much are refused from their header: little memory, little time."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest

from ernie_kernels.errors import ArgumentError, InputError, LimitError
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.limits import VisionLimits

from pictures import (
    encoded,
    gif_claiming,
    jpeg_claiming,
    late_jpeg_claiming,
    noise,
    png_claiming,
    webp_claiming,
)

Image = pytest.importorskip("PIL.Image")

CLAIMING = {
    "png": png_claiming,
    "jpeg": jpeg_claiming,
    "webp": webp_claiming,
    "gif": gif_claiming,
}


@pytest.mark.parametrize("kind", CLAIMING)
@pytest.mark.parametrize(
    "size", [(16385, 1), (1, 16385), (8193, 4096), (16384, 16384), (65535, 65535)]
)
def test_row_41_claims_beyond_the_limits(kind, size):
    width, height = size
    data = CLAIMING[kind](width, height)
    with pytest.raises(LimitError, match=f"{width} x {height} pixels, the limit"):
        load_image(data, "image", VisionLimits())


@pytest.mark.parametrize("kind", CLAIMING)
def test_row_42_claims_of_nothing(kind):
    if kind == "webp":
        pytest.skip("its header cannot say 0")
    for width, height in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="at least 1 pixel"):
            load_image(CLAIMING[kind](width, height), "image", VisionLimits())


def test_row_41_limits_are_inclusive():
    limits = VisionLimits(side=40, image_pixels=1200)
    assert load_image(encoded(noise(30, 40)), "image", limits).shape == (30, 40, 3)
    for shape in ((31, 40), (20, 41)):
        for source in (encoded(noise(*shape)), noise(*shape), Image.fromarray(noise(*shape))):
            with pytest.raises(LimitError, match=f"{shape[1]} x {shape[0]}"):
                load_image(source, "image", limits)


def test_row_41_bytes_are_counted_before_they_are_read(tmp_path):
    limits = VisionLimits(image_bytes=100)
    data = encoded(noise(30, 30))
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 40)
    for source in (data, tmp_path / "big", "data:image/png;base64," + "A" * 1000):
        with pytest.raises(LimitError, match="100"):
            load_image(source, "image", limits)


def test_row_41_scans_of_a_jpeg():
    data = encoded(noise(16, 16), "JPEG")
    begin = data.index(b"\xff\xda")
    with pytest.raises(LimitError, match="more than 200 scans"):
        load_image(data[:-2] + data[begin:-2] * 300 + data[-2:], "image", VisionLimits())


def test_row_41_scans_are_counted_to_the_end_of_the_image():
    """Cameras append previews and further pictures, each a JPEG with scans of its own."""
    pixels = noise(16, 16)
    data = encoded(pixels, "JPEG", progressive=True)
    assert data.count(b"\xff\xda") > 5
    wanted = load_image(data, "image", VisionLimits())
    for behind in (data * 100, b"\0\x02" + b"\xff\xda\0\x02" * 300):
        np.testing.assert_array_equal(load_image(data + behind, "image", VisionLimits()), wanted)


@pytest.mark.parametrize("kind", ["JPEG", "progressive"])
def test_row_41_an_end_inside_a_segment_is_none(kind):
    """A decoder steps over it, and goes on to what lies behind."""
    data = encoded(noise(16, 16), "JPEG", progressive=kind == "progressive")
    begin = data.index(b"\xff\xda")
    comment = b"\xff\xfe\0\x04\xff\xd9"
    few = data[:-2] + comment * 5 + data[-2:]
    np.testing.assert_array_equal(
        load_image(few, "image", VisionLimits()), load_image(data, "image", VisionLimits())
    )
    with pytest.raises(LimitError, match="more than 200 scans"):
        load_image(data[:-2] + comment + data[begin:-2] * 300 + data[-2:], "image", VisionLimits())
    with pytest.raises(LimitError, match="more than 4096 segments"):
        load_image(data[:-2] + comment * 4096 + data[-2:], "image", VisionLimits())


@pytest.mark.parametrize("before", [b"\xff\xdb", b"\xff\xda"])
def test_row_41_segments_of_a_jpeg(before):
    """Read one by one by decoders: a few MiB of empty ones would take seconds."""
    data = encoded(noise(16, 16), "JPEG")
    at = data.index(before)
    for count in (100, 4096):
        full = data[:at] + b"\xff\xfe\0\x02" * count + data[at:]
        if count == 100:
            np.testing.assert_array_equal(
                load_image(full, "image", VisionLimits()), load_image(data, "image", VisionLimits())
            )
        else:
            with pytest.raises(LimitError, match="more than 4096 segments"):
                load_image(full, "image", VisionLimits())


@pytest.mark.parametrize("name", [b"prIv", b"IDAT", b"tEXt"])
def test_row_41_chunks_of_a_png(name):
    pixels = noise(16, 16)
    data = encoded(pixels)
    body = b"a\0b" if name == b"tEXt" else b""
    chunk = len(body).to_bytes(4, "big") + name + body
    chunk += zlib.crc32(name + body).to_bytes(4, "big")
    few = data[:33] + chunk * 100 + data[33:]
    np.testing.assert_array_equal(load_image(few, "image", VisionLimits()), pixels)
    with pytest.raises(LimitError, match="more than 16384 chunks"):
        load_image(data[:33] + chunk * 16384 + data[33:], "image", VisionLimits())


def test_row_41_limits_that_are_no_limits():
    for value in (0, -1, float("nan"), float("inf"), "5", True):
        with pytest.raises(ArgumentError, match="side: expected a number > 0"):
            VisionLimits(side=value)


MEASURE = """
    import resource, sys, time
    from PIL import Image, PngImagePlugin, JpegImagePlugin, WebPImagePlugin
    from ernie_kernels.errors import LimitError
    from ernie_kernels.vision.image import load_image
    from ernie_kernels.vision.limits import VisionLimits
    limits = VisionLimits()
    def refused(path):
        begin = time.process_time()
        try:
            load_image(path, "image", limits)
        except LimitError:
            return time.process_time() - begin
        raise AssertionError("accepted")
    refused(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = max(refused(path) for path in sys.argv[2:])
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(after - before, seconds)
"""


def test_row_41_a_bomb_costs_little(tmp_path):
    """Measured in a process of its own: files of up to 32 MiB, pixels worth gigabytes."""
    body = zlib.compress(bytes(1 << 20), 9)
    files = {
        "small": png_claiming(50000, 50000),
        "square": png_claiming(60000, 60000, body * 100),
        "full": png_claiming(16384, 16384, b"x" * (31 << 20)),
        "long": png_claiming(1, 1 << 31),
        "jpeg": jpeg_claiming(65500, 65500) + bytes(31 << 20),
        "late": late_jpeg_claiming(65500, 65500) + b"\xff\0" * (31 << 19),
        "webp": webp_claiming(1 << 24, 1 << 24) + bytes(31 << 20),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), *(str(tmp_path / name) for name in files)],
        capture_output=True,
        text=True,
        check=True,
    )
    kibibytes, seconds = done.stdout.split()
    assert int(kibibytes) <= 16 << 10
    assert float(seconds) <= 0.05


def test_row_41_jpeg_fill_bytes_cost_little():
    data = b"\xff\xd8" + b"\xff" * (16 << 20)
    with pytest.raises(LimitError, match="more than 4096 segments"):
        load_image(data, "image", VisionLimits())


def test_sizes_of_real_files_are_read_right(rng):
    from ernie_kernels.vision.image_header import ImageHeader, read_image_header
    from ernie_kernels.vision.sources import reader_of

    for height, width in [(1, 1), (1, 16383), (16383, 1), *rng.integers(1, 300, (20, 2)).tolist()]:
        pixels = np.zeros((height, width, 3), np.uint8)
        for kind, options in [
            ("PNG", {}),
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("WEBP", {}),
            ("WEBP", {"lossless": True}),
            ("WEBP", {"exif": b"Exif\0\0"}),
            ("GIF", {}),
        ]:
            header = read_image_header(reader_of(encoded(pixels, kind, **options)), "image")
            assert header == ImageHeader(kind, width, height), options


PEAK = """
    import sys
    import numpy as np
    from PIL import Image, JpegImagePlugin, PngImagePlugin
    from ernie_kernels.vision import VisionProcessor
    def peak():
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    processor = VisionProcessor()
    processor.image(np.zeros((56, 56, 3), np.uint8))
    before = peak()
    item = processor.image(sys.argv[1])
    print(peak() - before, *item.grid_thw)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "turned JPEG", "RGBA PNG"])
def test_the_largest_image_takes_256_mib(tmp_path, kind):
    """Of memory, from the file to the pixels of its patches."""
    channels = 4 if "RGBA" in kind else 3
    pixels = np.repeat(np.repeat(noise(512, 1024), 8, axis=0), 8, axis=1)
    pixels = np.concatenate([pixels, pixels[:, :, :1]], axis=2)[:, :, :channels]
    image, options = Image.fromarray(pixels), {}
    if "turned" in kind:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    image.save(tmp_path / "image", kind.split()[-1], **options)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / "image")],
        capture_output=True,
        text=True,
        check=True,
    )
    kibibytes, _, rows, columns = map(int, done.stdout.split())
    assert kibibytes <= 256 << 10
    assert (rows < columns) != ("turned" in kind)
