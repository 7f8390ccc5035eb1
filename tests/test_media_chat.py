"""Images and videos in conversations: what the prompt becomes, and what is refused."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ernie_kernels as ek
from ernie_kernels.models.media_positions import token_positions
from ernie_kernels.runner.reasoning import THINK_END
from vision.pictures import gif
from vl_chat_checkpoint import BAIDU_TEMPLATE, IDS, TOKENS, write_vl_chat_checkpoint

OPTIONS = {
    "image_min_pixels": 28 * 28,
    "image_max_pixels": 200 * 200,
    "video_min_pixels": 28 * 28,
    "video_max_pixels": 60 * 60,
    "draw_timestamps": False,
}
PARAMS = ek.SamplingParams(max_tokens=3, ignore_eos=True)
# 6 and 2 tokens; 4 frames of 1 x 2 tokens.
PICTURE = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (28, 56, 3), np.uint8)
FILM = np.random.default_rng(2).integers(0, 256, (4, 28, 56, 3), np.uint8)
# As the hub's templates know the parts.
HUB_TEMPLATE = """{{- cls_token -}}
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == "text" -%}{{- part.text -}}
{%- elif part.type in ["image_url", "image"] -%}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>
{%- elif part.type in ["video_url", "video"] -%}<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>
{%- endif -%}{%- endfor -%}{%- endfor -%}Assistant: """


def load(folder, **changes) -> ek.LLM:
    return ek.LLM.from_pretrained(
        folder, device="cpu", **{"max_model_len": 512, "mm_processor_kwargs": OPTIONS, **changes}
    )


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with load(write_vl_chat_checkpoint(tmp_path_factory.mktemp("vl"))) as model:
        yield model


def encoded(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def data_url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(pixels)).decode()


def user(*parts) -> list[dict]:
    """One message; strings are its text."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def image(source) -> dict:
    return {"type": "image", "image": source}


def video(source, **more) -> dict:
    return {"type": "video", "video": source, **more}


def count(output: ek.RequestOutput, token: str) -> int:
    return output.prompt_token_ids.count(TOKENS[token])


def test_every_way_to_give_an_image_is_the_same_prompt_and_answer(llm, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(PICTURE))
    answers = [
        llm.chat(user("See ", image(source)), PARAMS)
        for source in (
            PICTURE,
            Image.fromarray(PICTURE),
            encoded(PICTURE),
            str(path),
            path,
            path.as_uri(),
            data_url(PICTURE),
        )
    ]
    for url in (data_url(PICTURE), str(path), path.as_uri()):
        for part in ({"url": url}, url):
            message = user("See ", {"type": "image_url", "image_url": part})
            answers.append(llm.chat(message, PARAMS))
    assert count(answers[0], "<|IMAGE_PLACEHOLDER|>") == 6
    for answer in answers:
        assert answer.prompt_token_ids == answers[0].prompt_token_ids
        assert answer.outputs[0].token_ids == answers[0].outputs[0].token_ids
    # The picture was seen once: all others found keys and values.
    assert llm._engine._features.num_encoded == 1


@pytest.mark.parametrize("template", [None, HUB_TEMPLATE])
def test_every_way_to_give_a_video_is_the_same_prompt(tmp_path, template):
    path = tmp_path / "film.gif"
    path.write_bytes(gif(4))
    with load(write_vl_chat_checkpoint(tmp_path / "vl", template=template)) as llm:
        parts = [video(path), video(str(path)), video(path.as_uri()), video(path.read_bytes())]
        encoded_gif = "data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode()
        for url in (str(path), path.as_uri(), encoded_gif):
            parts += [{"type": "video_url", "video_url": value} for value in (url, {"url": url})]
        answers = [llm.chat(user("See ", part, image(OTHER)), PARAMS) for part in parts]
    assert count(answers[0], "<|VIDEO_PLACEHOLDER|>") == 2
    assert len({tuple(answer.prompt_token_ids) for answer in answers}) == 1
    assert len({tuple(answer.outputs[0].token_ids) for answer in answers}) == 1


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
                prompt_token_ids=[[642]],
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


def test_the_built_in_template_names_and_counts_what_it_shows(llm):
    messages = user("First ", image(PICTURE), video(FILM, fps=2.0), " and ", image(OTHER), "?")
    messages += [{"role": "assistant", "content": "Yes"}, *user(image(OTHER), " again")]
    output = llm.chat(messages, PARAMS)
    shown = llm.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    shown = shown.replace("<|begin_of_sentence|>", "")
    picture = "<|IMAGE_START|>" + "<|IMAGE_PLACEHOLDER|>" * 2 + "<|IMAGE_END|>"
    assert shown == (
        "User: First Picture 1:<|IMAGE_START|>" + "<|IMAGE_PLACEHOLDER|>" * 6 + "<|IMAGE_END|>"
        "Video 1:<|VIDEO_START|>" + "<|VIDEO_PLACEHOLDER|>" * 4 + "<|VIDEO_END|>"
        f" and Picture 2:{picture}?\nAssistant: Yes<|end_of_sentence|>"
        f"User: Picture 3:{picture} again\nAssistant: <think>\n\n</think>\n\n"
    )  # fmt: skip


@pytest.fixture
def plans(monkeypatch):
    """The plans of all prompts that are made."""
    made = []
    make = ek.runner.requests.Request.__init__

    def keep(self, *arguments, **named):
        make(self, *arguments, **named)
        made.append(self.media)

    monkeypatch.setattr(ek.runner.requests.Request, "__init__", keep)
    return made


@pytest.mark.parametrize("has_video_token", [True, False])
@pytest.mark.parametrize("template", [None, BAIDU_TEMPLATE])
def test_both_conventions_place_the_same(tmp_path, plans, has_video_token, template):
    folder = write_vl_chat_checkpoint(
        tmp_path / "vl", has_video_token=has_video_token, template=template
    )
    with load(folder) as llm:
        parts = (image(PICTURE), video(FILM, fps=2.0), "and", image(OTHER))
        output = llm.chat(user(*parts), PARAMS)
        ids = np.array(output.prompt_token_ids)
        (plan,) = plans
        placeholder = "VIDEO" if has_video_token and template is None else "IMAGE"
        film = np.flatnonzero(ids == TOKENS["<|VIDEO_START|>"])[0] + 1
        assert (ids[film : film + 4] == TOKENS[f"<|{placeholder}_PLACEHOLDER|>"]).all()
        assert [item.kind for item in plan.items] == ["image", "video", "image"]
        types = np.zeros(len(ids), int)
        types[plan.rows] = [1] * 6 + [2] * 4 + [1] * 2
        grids = [item.grid_thw for item in plan.items]
        positions, delta = token_positions(types, grids[::2], grids[1:2])
        assert np.array_equal(plan.positions, positions)
        assert plan.position_delta == delta
        assert np.array_equal(plan.banks, np.isin(ids, list(set(IDS.values()))))


def test_typed_placeholders_are_text(llm):
    """Row 27 of the failures of others: what a user types never stands for an image."""
    typed = "".join(TOKENS) + "<|image@placeholder|><|video@placeholder|>"
    output = llm.chat(user(typed, image(OTHER), typed), PARAMS)
    assert count(output, "<|IMAGE_PLACEHOLDER|>") == 2
    assert count(output, "<|VIDEO_PLACEHOLDER|>") == count(output, "<|VIDEO_START|>") == 0
    output = llm.chat([{"role": "user", "content": typed}], PARAMS)
    assert not set(output.prompt_token_ids) & set(IDS.values())
    (output,) = llm.generate(typed, PARAMS)
    assert not set(output.prompt_token_ids) & set(IDS.values())


def test_baidus_placeholders_typed_are_text(tmp_path):
    with load(write_vl_chat_checkpoint(tmp_path / "vl", template=BAIDU_TEMPLATE)) as llm:
        output = llm.chat(user("<|image@placeholder|>", image(OTHER)), PARAMS)
        assert count(output, "<|IMAGE_PLACEHOLDER|>") == 2
        for half in (("<|image@", "placeholder|>"), ("<|image@placeholder|", ">")):
            with pytest.raises(ek.InputError, match=r"0 image placeholders, 1 images given"):
                llm._media.place(*llm._media.encode(
                    llm.tokenizer, llm._chat_prompts._template.render(user(*half)).segments
                ), ek.media_sources.sources_of_messages(user(image(OTHER))), "messages")  # fmt: skip


# ---------------------------------------------------------------------------------------- refused


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


def test_one_placeholder_or_one_for_each_feature(llm):
    one, all_, behind_start = (
        llm.generate(prompt_token_ids=[ids], multi_modal_data={kind: source}, params=PARAMS)[0]
        for ids, kind, source in (
            ([5, 640, 642, 641], "image", OTHER),
            ([5, 640, 642, 642, 641], "image", OTHER),
            ([5, 645, 642, 646], "video", [FILM]),
        )
    )
    assert one.prompt_token_ids == all_.prompt_token_ids == [5, 640, 642, 642, 641]
    assert one.outputs[0].token_ids == all_.outputs[0].token_ids
    assert behind_start.prompt_token_ids == [5, 645, *[642] * 4, 646]


def test_a_tokenizer_of_other_ids_is_refused(tmp_path):
    folder = write_vl_chat_checkpoint(tmp_path / "vl", image_start_token_id=650)
    with pytest.raises(ek.ConfigError, match=r"image_start_token_id is 650, and the tokenizer's"):
        load(folder)


# -------------------------------------------------------------------------------------- reasoning


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_reasoning_ends_where_it_must(llm, limit):
    params = ek.SamplingParams(max_tokens=12, ignore_eos=True, reasoning_max_tokens=limit)
    free = ek.SamplingParams(max_tokens=12, ignore_eos=True)
    messages = user("Think about ", image(PICTURE))
    (answer,) = llm.chat(messages, params, enable_thinking=True).outputs
    (thought,) = llm.chat(messages, free, enable_thinking=True).outputs
    assert answer.token_ids[:limit] == thought.token_ids[:limit]
    assert answer.token_ids[limit] == TOKENS[THINK_END]
    assert answer.reasoning == llm.tokenizer.decode(answer.token_ids[:limit])
    assert answer.text == llm.tokenizer.decode(answer.token_ids[limit + 1 :]).lstrip("\n")
    assert thought.text == ""
    # An answer without reasoning is not touched.
    (plain,) = llm.chat(messages, params).outputs
    assert plain.reasoning is None
    assert TOKENS[THINK_END] not in plain.token_ids


def test_reasoning_that_has_ended_is_left_alone(llm):
    limit = ek.runner.reasoning.ReasoningLimit(llm.tokenizer, 3)
    end = TOKENS[THINK_END]
    assert limit.next_token(np.array([5, 6, 7]), 9) == end
    assert limit.next_token(np.array([5, end, 7]), 9) == 9
    assert limit.next_token(np.array([5, 6]), 9) == 9
    assert limit.next_token(np.array([5, 6, 7, end]), 9) == 9
    assert limit.next_token(np.array([5, 6, 7]), -1) == -1


def test_an_end_of_several_tokens():
    with ek.LLM.from_pretrained(device="cpu") as llm:
        pieces = llm.tokenizer.encode_with_special(THINK_END)
        limit = ek.runner.reasoning.ReasoningLimit(llm.tokenizer, 2)
        ids = [5, 6]
        while len(ids) < 2 + len(pieces) + 1:
            ids.append(limit.next_token(np.array(ids), 9))
        assert ids == [5, 6, *pieces, 9]


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ek.InputError), (True, TypeError), ("3", TypeError)]
)
def test_reasoning_max_tokens_is_checked(value, error):
    with pytest.raises(error, match="reasoning_max_tokens"):
        ek.SamplingParams(reasoning_max_tokens=value)


def test_environment_is_not_read_for_files(llm, monkeypatch, tmp_path):
    """A relative path is one of the working folder, and nothing is expanded in it."""
    (tmp_path / "$HOME.png").write_bytes(encoded(OTHER))
    monkeypatch.chdir(tmp_path)
    assert os.environ.get("HOME")
    assert count(llm.chat(user(image("$HOME.png")), PARAMS), "<|IMAGE_PLACEHOLDER|>") == 2
