"""Many images at once: refused for all their pixels together, from headers, before one is decoded."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.media_prompts import MediaPrompts
from ernie_kernels.media_sources import MediaSource, budgets_of
from ernie_kernels.models.media_positions import IMAGE, VIDEO
from ernie_kernels.models.vision_config import MediaTokens
from ernie_kernels.vision import processor as processor_module
from ernie_kernels.vision.limits import VisionLimits
from ernie_kernels.vision.processor import VisionProcessor
from ernie_kernels.vision.settings import VisionSettings
from ernie_kernels.vision.told_size import told_size
from vision.pictures import encoded, noise, png_claiming

TOKENS = MediaTokens(90, 91, 92, 93, 94, 95)
LIMITS = VisionLimits(request_pixels=40_000, call_pixels=60_000)
SETTINGS = VisionSettings(
    image_min_pixels=784, video_min_pixels=784, min_frames=1, draw_timestamps=False
)


def prompts_of(limits: VisionLimits = LIMITS) -> MediaPrompts:
    return MediaPrompts(TOKENS, VisionProcessor(SETTINGS, limits), 10_000)


def images(*sources) -> list[MediaSource]:
    return [MediaSource("image", each, f"image {n}") for n, each in enumerate(sources)]


def place(media: MediaPrompts, sources: list[MediaSource], budget=None):
    kinds = [IMAGE if each.kind == "image" else VIDEO for each in sources]
    ids = np.array([TOKENS.image if kind == IMAGE else TOKENS.video for kind in kinds])
    return media.place(ids, np.array(kinds, np.uint8), sources, "prompt", budget)


@pytest.fixture
def undecoded(monkeypatch):
    """What has been decoded."""
    seen = []
    load = processor_module.load_image

    def remembered(source, where, limits):
        seen.append(where)
        return load(source, where, limits)

    monkeypatch.setattr(processor_module, "load_image", remembered)
    return seen


@pytest.mark.parametrize("form", ["array", "png", "jpeg", "url", "path", "pillow"])
def test_images_of_a_request(tmp_path, undecoded, form):
    pillow = pytest.importorskip("PIL.Image")
    pixels = noise(100, 200)
    source = {
        "array": lambda: pixels,
        "png": lambda: encoded(pixels),
        "jpeg": lambda: encoded(pixels, "JPEG"),
        "url": lambda: "data:image/png;base64," + base64.b64encode(encoded(pixels)).decode(),
        "path": lambda: (tmp_path / "picture.png").write_bytes(encoded(pixels)) and str(tmp_path / "picture.png"),
        "pillow": lambda: pillow.fromarray(pixels),
    }[form]()  # fmt: skip
    assert told_size(source, "image", LIMITS) == (100, 200)
    place(prompts_of(), images(source, source))
    assert len(undecoded) == 2
    undecoded.clear()
    match = (
        "image 2: with it the images and videos of this request have 60000 pixels, the limit is 40000; "
        "send fewer, or scale them down"
    )
    with pytest.raises(ek.LimitError, match=match):
        place(prompts_of(), images(source, source, source))
    assert undecoded == []


def test_all_headers_are_seen_before_the_first_is_decoded(undecoded):
    bomb = png_claiming(60_000, 60_000)
    with pytest.raises(ek.LimitError, match="image 1: 60000 x 60000 pixels"):
        place(prompts_of(), images(noise(20, 20), bomb))
    assert undecoded == []


def test_images_of_a_call_as_they_are_kept(undecoded):
    """Small ones are scaled up to what the model reads at least."""
    media = MediaPrompts(
        TOKENS,
        VisionProcessor(replace(SETTINGS, image_min_pixels=20_000), LIMITS),
        10_000,
    )
    requests = [images(noise(30, 30)) for _ in range(2)]
    for budget, sources in zip(budgets_of(requests, media.processor), requests, strict=True):
        place(media, sources, budget)
    undecoded.clear()
    with pytest.raises(
        ek.LimitError, match=r"of this call, resized, have .* fewer prompts at a time"
    ):
        budgets_of([images(noise(30, 30)) for _ in range(3)], media.processor)
    assert undecoded == []


def test_videos_take_theirs_before_they_are_decoded():
    film = np.zeros((6, 60, 60, 3), np.uint8)  # 21,600 pixels, all kept
    sources = [MediaSource("video", film, f"video {n}") for n in range(2)]
    place(prompts_of(), sources[:1])
    with pytest.raises(ek.LimitError, match=r"video 1: with it .* of this request have 43200"):
        place(prompts_of(), sources)
    mixed = [*images(noise(100, 200)), sources[0]]
    with pytest.raises(ek.LimitError, match=r"video 0: with it .* of this request have 41600"):
        place(prompts_of(), mixed)
    limits = VisionLimits(call_pixels=30_000)
    requests = [[source] for source in sources]
    media = prompts_of(limits)
    budgets = budgets_of(requests, media.processor)
    place(media, requests[0], budgets[0])
    with pytest.raises(ek.LimitError, match=r"video 1: with it .* of this call, resized,"):
        place(media, requests[1], budgets[1])


@pytest.mark.parametrize("way", ["bytes", "path", "url", "view"])
def test_a_size_stands_where_it_likes(tmp_path, way):
    """Behind 128 KiB of what a camera has to say of it."""
    jpeg = encoded(noise(100, 200), "JPEG")
    padding = b"".join(b"\xff\xe5\xff\xff" + bytes(0xFFFD) for _ in range(2)) + b"\xff" * 2000
    late = jpeg[:2] + padding + jpeg[2:]
    if way == "path":
        (tmp_path / "late.jpg").write_bytes(late)
        late = tmp_path / "late.jpg"
    elif way == "url":
        late = "data:image/jpeg;base64," + base64.b64encode(late).decode()
    elif way == "view":
        late = memoryview(bytearray(late))
    assert told_size(late, "image", LIMITS) == (100, 200)
    with pytest.raises(ek.LimitError, match=r"image 2: with it .* have 60000 pixels"):
        place(prompts_of(), images(late, late, late))


@pytest.mark.parametrize(
    "source",
    [b"", b"text", "data:image/png;base64,%%%", "data:none", "/no/such/file.png", 3, None, [1],
     np.zeros(5), np.zeros((0, 5)), encoded(noise(9, 9))[:20]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_image_is_left_to_who_decodes_it(source):
    assert told_size(source, "image", LIMITS) is None


def test_the_limits_as_they_are():
    """As many pixels as a video may have, and 3 GiB of them in memory."""
    assert VisionLimits().request_pixels == VisionLimits().video_pixels == 1 << 30
    assert 3 * VisionLimits().call_pixels == 3 << 30
