"""Whatever a user calls an image: its pixels, or an error that says why not."""

from __future__ import annotations

import base64
import os

import numpy as np
import pytest

from ernie_kernels.errors import ArgumentError, Error, InputError, LimitError
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.limits import VisionLimits

from pictures import ORIENTATION_TAG, UPRIGHT, encoded, gif, noise

Image = pytest.importorskip("PIL.Image")

LIMITS = VisionLimits()
MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
]
MODES += ["I", "F"]


def load(source):
    return load_image(source, "image", LIMITS)


def test_one_picture_in_every_wrapping(tmp_path):
    pixels = noise(21, 34)
    data = encoded(pixels)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [data, bytearray(data), memoryview(data), path, str(path), url, "DATA" + url[4:]]
    for source in [
        *sources,
        Image.fromarray(pixels),
        pixels,
        encoded(pixels, "WEBP", lossless=True),
    ]:
        result = load(source)
        np.testing.assert_array_equal(result, pixels)
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("height", range(1, 6))
def test_small_shapes_of_every_mode(mode, height):
    """Three rows are no channels, and one column is no missing axis."""
    for width in range(1, 6):
        image = Image.fromarray(noise(height, width, seed=width)).convert("RGB")
        image = (
            image.convert("RGBA").convert(mode)
            if mode in ("RGBa", "La", "LA")
            else image.convert(mode)
        )
        expected = image.convert(mode.upper()) if mode in ("La", "RGBa") else image
        result = load(image)
        np.testing.assert_array_equal(result, np.asarray(expected.convert("RGB")))
        assert result.shape == (height, width, 3)


@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 9, 65535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_rotation_of_every_small_shape(orientation, kind):
    for height in range(1, 6):
        for width in range(1, 6):
            exif = Image.Exif()
            exif[ORIENTATION_TAG] = orientation
            stored = noise(height, width, seed=height)
            options = {"lossless": True} if kind == "WEBP" else {}
            data = encoded(stored, kind, exif=exif.tobytes(), **options)
            plain = load(encoded(stored, kind, **options))
            upright = UPRIGHT.get(orientation, UPRIGHT[1])(plain)
            np.testing.assert_array_equal(load(data), upright)


def test_broken_metadata_does_not_matter():
    pixels = noise(5, 4)
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0"):
        np.testing.assert_array_equal(load(encoded(pixels, exif=exif)), pixels)


def test_sixteen_bits_keep_their_upper_eight():
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    expected = np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(load(encoded(Image.fromarray(grey))), expected)
    np.testing.assert_array_equal(load(Image.fromarray(grey)), expected)


def test_transparency_is_dropped():
    pixels = np.concatenate([noise(6, 7), np.zeros((6, 7, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(load(encoded(pixels)), pixels[:, :, :3])
    np.testing.assert_array_equal(load(pixels), pixels[:, :, :3])


def test_cmyk_file():
    image = Image.fromarray(noise(16, 16)).convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    import io

    np.testing.assert_array_equal(
        load(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.fromarray(noise(8, 8, seed=n)) for n in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(load(data), np.asarray(frames[0]))


def test_row_43_strided_arrays_are_copied():
    pixels = noise(9, 8)
    for view in (pixels[::2, ::-1], pixels.swapaxes(0, 1), pixels[:, :, :1], pixels[:, :, 0]):
        result = load(view)
        wanted = view if view.ndim == 3 else view[:, :, None]
        np.testing.assert_array_equal(result, np.broadcast_to(wanted, (*wanted.shape[:2], 3)))
        assert result.flags.c_contiguous
        assert not np.shares_memory(result, pixels)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"got uint8 \[3, 5, 7\]; move the channels last"),
        (np.zeros((5, 7, 2), np.uint8), r"got uint8 \[5, 7, 2\]$"),
        (np.zeros((5, 7, 3), np.float32), "got float32"),
        (np.zeros((5, 7), bool), "got bool"),
        (np.zeros(5, np.uint8), r"\[5\]"),
        (np.zeros((1, 5, 7, 3), np.uint8), r"\[1, 5, 7, 3\]"),
        (np.zeros((), np.uint8), r"\[\]"),
    ],
)
def test_row_43_arrays_that_are_no_pictures(array, words):
    with pytest.raises(ArgumentError, match=words):
        load(array)


@pytest.mark.parametrize("source", [None, 5, 1.5, [], object(), {"url": "x"}])
def test_row_43_other_types(source):
    with pytest.raises(TypeError, match="expected a path, bytes"):
        load(source)


def test_row_42_arrays_without_extent():
    for shape in ((0, 4, 3), (4, 0, 3), (0, 0)):
        with pytest.raises(InputError, match="at least 1 pixel"):
            load(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000"])
def test_row_40_other_formats(kind):
    with pytest.raises(InputError, match=r"^image: not a readable PNG, JPEG or WebP"):
        load(encoded(noise(32, 32), kind))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_row_40_truncated_files(kind):
    data = encoded(noise(32, 32), kind)
    for size in (0, 1, 8, 12, 20, 40, len(data) // 2, len(data) - 60):
        with pytest.raises(InputError, match=r"^image: not a readable PNG, JPEG or WebP"):
            load(data[:size])


def test_row_40_a_gif_is_a_video():
    with pytest.raises(InputError, match="a GIF is a video here"):
        load(gif(1))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.png", r"'missing.png' cannot be read \(ENOENT\)"),
        ("a\0b", "is not a path"),
        ("https://example.org/a.png", "'https' addresses are not fetched"),
        ("file:///etc/passwd", "not a readable PNG"),
        ("data:image/png,abc", "expected a data URL of the form"),
        ("data:image/png;base64,a", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("data:", "expected a data URL"),
        ("/tmp", "not a regular file"),
        ("x" * 300, r"cannot be read \(ENAMETOOLONG\)"),
        ("", r"'' cannot be read \(ENOENT\)"),
    ],
)
def test_row_40_sources_that_hold_no_picture(source, words):
    with pytest.raises(InputError, match=words) as caught:
        load(source)
    assert len(str(caught.value)) <= 512


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_names_in_messages_are_escaped_and_short(tmp_path):
    path = tmp_path / ("\x1b[31m" + "n" * 200 + ".png")
    path.write_bytes(b"nothing")
    with pytest.raises(Error) as caught:
        load_image(path, "image 3", VisionLimits(image_bytes=2))
    assert isinstance(caught.value, LimitError)
    message = str(caught.value)
    assert message.startswith("image 3: ")
    assert "\x1b" not in message
    assert str(tmp_path) not in message
    assert len(message) <= 512
