"""What went wrong with pictures in comparable systems, and that it does not happen here.

The numbers are rows of the catalogue of such failures. Small pictures of ambiguous shape (a26) are
walked through in vision/test_images.py; keys that a client sends (a25) need no test: nothing takes one.
"""

from __future__ import annotations

import gc
import itertools
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from ernie_kernels.errors import InputError, LimitError
from ernie_kernels.vision import VisionProcessor, VisionSettings
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.limits import VisionLimits
from vision.pictures import encoded, noise, png_claiming

Image = pytest.importorskip("PIL.Image")


def test_a22_keys_differ_exactly_where_features_may():
    """A hash of bytes alone took 30 x 100 pixels for 100 x 30."""
    a = np.full((280, 560, 3), 7, np.uint8)
    plain, other = VisionProcessor(), VisionProcessor(VisionSettings(image_mean=(0.5, 0.5, 0.5)))
    changed = a.copy()
    changed[0, 0, 0] = 8
    distinct = [
        plain.image(a),
        plain.image(a.swapaxes(0, 1)),
        plain.image(a[:140, :]),
        plain.image(changed),
        other.image(a),
        VisionProcessor(VisionSettings(draw_timestamps=False)).video([a, a]),
        plain.video([a, a]),
    ]
    for one, two in itertools.combinations(distinct, 2):
        assert one.key != two.key
    for same in (a.copy(), encoded(a), a[:, :, :]):
        assert plain.image(same).key == VisionProcessor().image(same).key == distinct[0].key


def test_a34_nothing_is_kept_of_a_thousand_images():
    processor = VisionProcessor()
    small = np.zeros((56, 56, 3), np.uint8)

    def run(count: int) -> None:
        for n in range(count):
            small[0, 0] = n & 255, n >> 8, 0
            processor.image(small)

    run(50)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB


def test_a35_messages_are_ours_alone():
    """A decoder's own words have told where objects lie in memory."""
    for data in (
        b"",
        b"II*\0" + bytes(50),
        encoded(noise(9, 9))[:60],
        encoded(noise(9, 9), "TIFF"),
    ):
        with pytest.raises(InputError) as caught:
            load_image(data, "image", VisionLimits())
        assert not re.search("0x[0-9a-f]{6,}|PIL|Pillow|BytesIO|cannot identify", str(caught.value))
        assert caught.value.__cause__ is None


def test_a36_pillows_settings_are_left_alone():
    from PIL import ImageFile, PngImagePlugin

    before = (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
    )
    load_image(encoded(noise(30, 30)), "image", VisionLimits())
    with pytest.raises(LimitError):
        load_image(png_claiming(60000, 60000), "image", VisionLimits())
    assert before == (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        PngImagePlugin.MAX_TEXT_CHUNK,
        PngImagePlugin.MAX_TEXT_MEMORY,
    )


def test_a36_the_sources_name_none_of_pillows_settings():
    import ernie_kernels.vision as package

    for path in Path(package.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "MAX_IMAGE_PIXELS" not in text, path.name
        assert "LOAD_TRUNCATED" not in text, path.name
