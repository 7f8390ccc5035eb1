"""Requests with images and videos that are refused: which one is named, and nothing has run."""

from __future__ import annotations

import base64
import io
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
from media_messages import FILM, OTHER, PARAMS, PICTURE, count, data_url, image, load, user, video
from vl_chat_checkpoint import IDS, write_vl_chat_checkpoint

from pictures import encoded, gif, jpeg_claiming, late_jpeg_claiming, png_claiming, webp_claiming

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with load(write_vl_chat_checkpoint(tmp_path_factory.mktemp("vl"))) as model:
        yield model


def refuse(llm, message, error, match):
    before = llm._engine._features.num_encoded
    with pytest.raises(error, match=match) as caught:
        llm.chat(message, PARAMS)
    assert len(str(caught.value).encode()) <= 512
    assert llm._engine._features.num_encoded == before
    llm._engine.check()


@pytest.mark.parametrize(
    ("part", "error", "match"),
    [
        (image(None), ek.InputError, "message 0: content part 1: image: missing"),
        (image(3), TypeError, "message 0: content part 1: expected a path, bytes"),
        (image(b"nothing"), ek.InputError, "content part 1: not a readable PNG"),
        (image("nowhere.png"), ek.InputError, r"'nowhere.png' cannot be read \(ENOENT\)"),
        (image(np.zeros((2, 3, 5), np.float32)), ek.ArgumentError, "content part 1: expected an array"),
        (image(np.zeros((0, 4, 3), np.uint8)), ek.InputError, "sides of at least 1 pixel"),
        (image(np.zeros((1, 60000, 3), np.uint8)), ek.LimitError, "the limit of a side"),
        ({"type": "image_url"}, ek.InputError, "image_url: expected an object with a url"),
        ({"type": "image_url", "image_url": {"url": 3}}, ek.InputError, "expected an object with"),
        ({"type": "image_url", "image_url": "https://a/b.png"}, ek.InputError, "are not fetched"),
        ({"type": "video_url", "video_url": "https://a/b.mp4"}, ek.InputError, "are not fetched"),
        ({"type": "video_url"}, ek.InputError, "video_url: expected an object with a url"),
        ({"type": "video_url", "video_url": [OTHER]}, ek.InputError, "video_url: expected an object"),
        ({"type": "image_url", "image_url": "file://a/b.png"}, ek.InputError, "expected a file URL"),
        ({"type": "image_url", "image_url": {"url": "data:,x"}}, ek.InputError, "data URL"),
        ({**image(OTHER), "fps": 2}, ek.InputError, "fps: expected beside a video alone"),
        (video([]), ek.InputError, "a video without frames"),
        (video(FILM, fps=0), ek.ArgumentError, "frame_rate: expected a number"),
        (video([OTHER, PICTURE]), ek.InputError, "frames of several sizes"),
    ],
)  # fmt: skip
def test_a_bad_part_is_named_and_nothing_runs(llm, part, error, match):
    refuse(llm, user("See ", part), error, match)


def test_too_many(llm):
    refuse(llm, user(*[image(OTHER)] * 65), ek.LimitError, "65 images and videos, the limit is 64")


def test_too_long(llm):
    big = np.zeros((196, 196, 3), np.uint8)
    refuse(
        llm, user(*[image(big)] * 11), ek.LimitError, r"content part \d: 49 tokens, with the rest"
    )


def test_a_model_of_text_alone_says_so():
    with ek.LLM.from_pretrained(device="cpu") as llm:
        with pytest.raises(ek.InputError, match="reads text alone"):
            llm.chat(user(image(OTHER)), PARAMS)
        with pytest.raises(ek.InputError, match="multi_modal_data: this model reads text alone"):
            llm.generate(prompt_token_ids=[[5]], multi_modal_data={"image": OTHER})
    with pytest.raises(
        ek.UnsupportedError, match="mm_processor_kwargs: this model reads text alone"
    ):
        ek.LLM.from_pretrained(device="cpu", mm_processor_kwargs={"fps": 1})


@pytest.mark.parametrize(
    ("ids", "data", "error", "match"),
    [
        ([642, 5], None, ek.InputError, "1 image placeholders, 0 images given"),
        ([5], {"image": OTHER}, ek.InputError, "0 image placeholders, 1 images given"),
        ([642, 642, 642], {"image": OTHER}, ek.InputError, "3 image placeholders; expected 1, one"),
        ([647], {"image": OTHER}, ek.InputError, "0 image placeholders, 1 images given"),
        ([642], {"audio": OTHER}, ek.InputError, "expected the keys image and video, got 'audio'"),
        ([642], [None, None], ek.InputError, "expected one for each of 1 prompts, got 2"),
        ([642], 3, TypeError, "multi_modal_data: expected a list"),
        ([642], [3], TypeError, r"multi_modal_data\[0\]: expected a dict"),
    ],
)
def test_placeholders_and_media_that_do_not_go_together(llm, ids, data, error, match):
    with pytest.raises(error, match=match):
        llm.generate(prompt_token_ids=[ids], multi_modal_data=data, params=PARAMS)


def test_media_beside_text(llm):
    with pytest.raises(ek.InputError, match="text has no place for an image"):
        llm.generate("See", PARAMS, multi_modal_data={"image": OTHER})


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ({"image": [OTHER, b"nothing"]}, ek.InputError, r"multi_modal_data\[1\]: image 1: not a readable"),
        ({"image": [OTHER, OTHER[:0]]}, ek.InputError, "image 1: expected sides of at least 1 pixel"),
        ({"image": [OTHER, png_claiming(50000, 1)]}, ek.LimitError, "image 1: 50000 x 1 pixels"),
        ({"image": [OTHER, OTHER / 2]}, ek.ArgumentError, "image 1: .* got float64"),
        ({"image": OTHER, "video": [[]]}, ek.InputError, r"multi_modal_data\[1\]: video 0: .* without frames"),
        ({"image": OTHER, "video": b"no"}, ek.InputError, "video 0: not a readable MP4"),
        ({"image": OTHER, "video": [[OTHER, PICTURE]]}, ek.InputError, "video 0: frames of several"),
    ],
    ids=["format", "extent", "size", "array", "no frames", "no video", "frames"],
)  # fmt: skip
def test_a_bad_item_of_the_second_prompt_lets_none_run(llm, data, error, match):
    """Rows 40 to 45, and everything is looked at before anything runs."""
    picture, film = IDS["im_patch_id"], IDS["video_token_id"]
    ids = [5, picture, 6, film if "video" in data else picture, 7]
    before = llm._engine._features.num_encoded
    with pytest.raises(error, match=match):
        llm.generate(
            prompt_token_ids=[[5, picture], ids],
            multi_modal_data=[{"image": PICTURE}, data],
            params=PARAMS,
        )
    assert llm._engine._features.num_encoded == before
    assert llm.stats()["running"] == llm.stats()["waiting"] == 0
    llm._engine.check()


@pytest.mark.parametrize(
    "template", ["", "{{ '<|IMAGE_PLACEHOLDER|>' * 2 }}"], ids=["drops", "twice"]
)
def test_a_template_that_does_not_show_what_there_is(tmp_path, template):
    """Row 39: it drops an image, or shows it twice."""
    text = "{{ cls_token }}{{ messages[0].content[0].text }}" + template
    with load(write_vl_chat_checkpoint(tmp_path / "vl", template=text)) as llm:
        expected = (
            "0 image placeholders, 1 images given" if not template else "2 image placeholders"
        )
        refuse(llm, user("See ", image(PICTURE)), ek.InputError, expected)


def test_local_files_are_those_of_one_folder(tmp_path):
    for name in ("media", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").write_bytes(encoded(OTHER))
        (tmp_path / name / "film.gif").write_bytes(gif(4))
    inside, outside = tmp_path / "media", tmp_path / "secret"
    folder = write_vl_chat_checkpoint(tmp_path / "vl")
    with load(folder, allowed_local_media_path=inside) as llm:
        output = llm.chat(user(*named_parts(inside)), PARAMS)
        assert count(output, "<|IMAGE_PLACEHOLDER|>") == 2 * 5
        for part in [*named_parts(outside), *named_parts(inside / ".." / "secret")]:
            refuse(llm, user(part), ek.InputError, "is not in the folder that files may be read")
        with pytest.raises(ek.InputError, match="is not in the folder"):
            llm.generate(
                prompt_token_ids=[[IDS["im_patch_id"]]],
                multi_modal_data={"image": str(outside / "picture.png")},
                params=PARAMS,
            )
    with load(folder, allowed_local_media_path="") as llm:
        for part in named_parts(inside):
            refuse(llm, user(part), ek.InputError, "files are not read here")
        assert count(llm.chat(user(image(data_url(OTHER))), PARAMS), "<|IMAGE_PLACEHOLDER|>") == 2


def named_parts(folder: Path) -> list[dict]:
    """Every part that can name a file; five show an image of two tokens."""
    picture, film = str(folder / "picture.png"), str(folder / "film.gif")
    return [
        image(picture),
        image(folder / "picture.png"),
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "image_url", "image_url": "file://" + picture},
        image("file://localhost" + picture),
        video(film),
        video([picture, picture]),
        {"type": "video_url", "video_url": {"url": film}},
        {"type": "video_url", "video_url": "file://" + film},
    ]


def test_a_model_of_text_alone_takes_the_folder_too(tmp_path):
    ek.LLM.from_pretrained(device="cpu", allowed_local_media_path=tmp_path).close()
    with pytest.raises(ek.ArgumentError, match="allowed_local_media_path: 'no' is not a folder"):
        ek.LLM.from_pretrained(device="cpu", allowed_local_media_path=tmp_path / "no")


BOMBS = {
    "png": lambda: png_claiming(16384, 16384, b"x" * (31 << 20)),
    "jpeg": lambda: jpeg_claiming(65500, 65500) + bytes(31 << 20),
    "late": lambda: late_jpeg_claiming(65500, 65500) + b"\xff\0" * (31 << 19),
    "webp": lambda: webp_claiming(1 << 24, 1 << 24) + bytes(31 << 20),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("way", ["bytes", "path", "url"])
def test_a_bomb_in_a_request_costs_little(llm, tmp_path, kind, way):
    """Row 41: files as large as may be, pixels worth gigabytes."""
    source = BOMBS[kind]()
    if way == "path":
        (tmp_path / "bomb").write_bytes(source)
        source = tmp_path / "bomb"
    elif way == "url":
        source = "data:image/png;base64," + base64.b64encode(source).decode()
    message = user("See ", image(source))
    refuse(llm, message, ek.LimitError, "content part 1: .* pixels, the limit")  # imports, too
    tracemalloc.start()
    try:
        begin = time.process_time()
        refuse(llm, message, ek.LimitError, "content part 1: .* pixels, the limit")
        seconds = time.process_time() - begin
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 1 << 20
    assert seconds <= 0.05


def test_a_picture_of_pillow_is_refused_before_it_is_decoded(llm, monkeypatch):
    """Row 41: what was opened and not read yet."""
    picture = Image.open(io.BytesIO(encoded(np.zeros((1, 17000, 3), np.uint8))))
    monkeypatch.setattr(picture, "load", lambda: pytest.fail("decoded"))
    refuse(
        llm, user("See ", image(picture)), ek.LimitError, "17000 x 1 pixels, the limit of a side"
    )


def test_a_tokenizer_of_other_ids_is_refused(tmp_path):
    folder = write_vl_chat_checkpoint(tmp_path / "vl", image_start_token_id=650)
    with pytest.raises(ek.ConfigError, match=r"image_start_token_id is 650, and the tokenizer's"):
        load(folder)
