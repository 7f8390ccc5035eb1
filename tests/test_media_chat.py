"""Images and videos in conversations: what the prompt becomes."""

from __future__ import annotations

import base64
import os

import numpy as np
import pytest
from PIL import Image

import ernie_kernels as ek
from ernie_kernels.models.media_positions import token_positions
from ernie_kernels.runner.reasoning import THINK_END
from media_messages import (
    FILM,
    OTHER,
    PARAMS,
    PICTURE,
    count,
    data_url,
    encoded,
    image,
    load,
    user,
    video,
)
from vision.pictures import gif
from vl_chat_checkpoint import IDS, TOKENS, write_vl_chat_checkpoint

# As the hub's templates know the parts.
HUB_TEMPLATE = """{{- cls_token -}}
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == "text" -%}{{- part.text -}}
{%- elif part.type in ["image_url", "image"] -%}<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>
{%- elif part.type in ["video_url", "video"] -%}<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>
{%- endif -%}{%- endfor -%}{%- endfor -%}Assistant: """
# Baidu's: no tokens stand for media, and videos have what images have.
BAIDU_TEMPLATE = """{{- cls_token -}}
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == "text" -%}{{- part.text -}}
{%- elif part.type == "video" -%}<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>
{%- else -%}<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>{%- endif -%}
{%- endfor -%}{%- endfor -%}Assistant: """


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with load(write_vl_chat_checkpoint(tmp_path_factory.mktemp("vl"))) as model:
        yield model


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
