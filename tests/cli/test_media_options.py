"""``--image`` and ``--video`` of ``generate`` and ``chat``."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from commands import run
from PIL import Image

import ernie_kernels as ek
from test_media_chat import OTHER, PICTURE, encoded, image, load, user
from vl_chat_checkpoint import TOKENS, write_vl_chat_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_vl_chat_checkpoint(tmp_path_factory.mktemp("vl"))
    # Small, so that a picture has few tokens.
    sizes = {"size": {"shortest_edge": 784, "longest_edge": 40000}}
    (path / "preprocessor_config.json").write_text(json.dumps(sizes))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for name, pixels in (("one", PICTURE), ("two", OTHER)):
        (path / f"{name}.png").write_bytes(encoded(pixels))
    frames = [Image.fromarray(np.full((28, 28, 3), n * 60, np.uint8)) for n in range(4)]
    frames[0].save(path / "film.gif", save_all=True, append_images=frames[1:], duration=500)
    return path


def model(folder) -> list[str]:
    return [
        "--model_path",
        str(folder),
        "--device",
        "cpu",
        "--max-model-len",
        "2048",
        "--max-length",
        "3",
    ]


def test_generate_shows_images_and_videos_in_order(capfd, folder, pictures):
    code, out, err = run(
        capfd, "generate", *model(folder), "--json", "--prompt", "What?", "--prompt", "And?",
        "--image", str(pictures / "one.png"), "--video", str(pictures / "film.gif"),
        "--image", str(pictures / "two.png"),
    )  # fmt: skip
    assert code == 0, err
    requests = json.loads(out)["requests"]
    assert len(requests) == 2
    for request in requests:
        ids = request["prompt_token_ids"]
        starts = [TOKENS["<|IMAGE_START|>"], TOKENS["<|VIDEO_START|>"]]
        assert [i for i in ids if i in starts] == [starts[0], starts[0], starts[1]]
        assert ids.count(TOKENS["<|IMAGE_PLACEHOLDER|>"]) == 6 + 2
        assert len(request["outputs"][0]["token_ids"]) <= 3
    assert requests[0]["prompt_token_ids"] != requests[1]["prompt_token_ids"]


def test_generate_is_what_chat_answers(capfd, folder, pictures):
    code, out, err = run(
        capfd, "generate", *model(folder), "--prompt", "What?", "--image", str(pictures / "two.png")
    )
    assert code == 0, err
    with load(folder, max_model_len=2048) as llm:
        expected = llm.chat(user(image(OTHER), "What?"), ek.SamplingParams(max_tokens=3))
    assert out == expected.outputs[0].text + "\n"


def conversation(capfd, monkeypatch, lines: str, *arguments: str) -> tuple[list, str]:
    """What the model was asked, message by message, and stderr."""
    asked = []
    chat = ek.LLM.chat
    monkeypatch.setattr(
        ek.LLM, "chat", lambda self, messages, *rest, **named: (
            asked.append(messages), chat(self, messages, *rest, **named))[1],
    )  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, _, err = run(capfd, "chat", *arguments)
    assert code == 0, err
    return asked, err


def test_chat_shows_them_with_the_first_message(capfd, folder, pictures, monkeypatch):
    path = str(pictures / "two.png")
    asked, _ = conversation(
        capfd, monkeypatch, "One\nTwo\nclear\nThree\n", *model(folder), "--image", path,
        "--enable-thinking", "--reasoning-max-tokens", "1",
    )  # fmt: skip
    shown = [{"type": "image", "image": path}, {"type": "text", "text": "One"}]
    assert asked[0] == [{"role": "user", "content": shown}]
    assert asked[1][0] == asked[0][0]
    assert asked[1][2] == {"role": "user", "content": "Two"}
    assert asked[2][0]["content"][0] == shown[0]
    assert len(asked[2]) == 1


def test_a_conversation_is_shown_files_in_between(capfd, folder, pictures, monkeypatch):
    one, two, film = (str(pictures / name) for name in ("one.png", "two.png", "film.gif"))
    lines = f"Hello\n/image {one}\n/video '{film}'\nWhat?\n/image {two}\nclear\nAnd now?\n"
    asked, _ = conversation(capfd, monkeypatch, lines, *model(folder))
    assert [messages[-1]["content"] for messages in asked] == [
        "Hello",
        [{"type": "image", "image": one}, {"type": "video", "video": film},
         {"type": "text", "text": "What?"}],
        "And now?",
    ]  # fmt: skip
    assert [len(messages) for messages in asked] == [1, 3, 1]


def test_what_cannot_be_shown_ends_no_conversation(capfd, folder, pictures, monkeypatch):
    (pictures / "words.png").write_text("no picture")
    lines = (
        f"/image\n/image ~nobody-here/no.png\n/video {pictures}\n/image {pictures / 'words.png'}\n"
        "What?\nHello\n/imagine that\n"
    )
    asked, err = conversation(capfd, monkeypatch, lines, *model(folder))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: /image: expected the name of a file, as in '/image FILE'"
    assert errors[1] == "error: /image: '~nobody-here/no.png': there is no such file"
    assert errors[2].startswith("error: /video: '")
    assert errors[3].startswith("error: image 'words.png': not a readable PNG")
    # The refused message is forgotten with what it showed.
    assert asked[1] == [{"role": "user", "content": "Hello"}]
    assert asked[2][-1]["content"] == "/imagine that"


def test_an_error_names_the_file(capfd, folder, pictures):
    (pictures / "words.png").write_text("no picture")
    code, _, err = run(
        capfd, "generate", *model(folder), "--prompt", "What?",
        "--image", str(pictures / "one.png"), "--image", str(pictures / "words.png"),
    )  # fmt: skip
    assert code == 2
    assert err.startswith("error: image 'words.png': not a readable PNG, JPEG or WebP image")


def test_how_they_are_prepared(capfd, folder, pictures):
    """``one.png`` has six tokens as the folder's file says."""
    lengths = []
    for size in ("40000", "784"):
        options = json.dumps({"image_min_pixels": 784, "image_max_pixels": int(size)})
        code, out, err = run(
            capfd, "generate", *model(folder), "--prompt", "What?", "--json",
            "--image", str(pictures / "one.png"), "--mm_processor_kwargs", options,
        )  # fmt: skip
        assert code == 0, err
        ids = json.loads(out)["requests"][0]["prompt_token_ids"]
        lengths.append(ids.count(TOKENS["<|IMAGE_PLACEHOLDER|>"]))
    assert lengths[0] > lengths[1] == 1


def test_a_name_may_begin_at_home(capfd, folder, pictures, monkeypatch):
    """As in ``--image=~/one.png``, which a shell leaves as it is; and means and deviations are lists."""
    monkeypatch.setenv("HOME", str(pictures))
    options = json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})
    code, _, err = run(
        capfd, "generate", *model(folder), "--prompt", "What?", "--image=~/one.png",
        "--mm-processor-kwargs", options,
    )  # fmt: skip
    assert code == 0, err


def test_a_file_named_in_a_conversation_about_text_alone(capfd, pictures, monkeypatch):
    lines = f"/image {pictures / 'one.png'}\nHello\n"
    asked, err = conversation(capfd, monkeypatch, lines, "--device", "cpu", "--max-length", "2")
    assert "error: /image: this model reads text alone" in err
    assert asked == [[{"role": "user", "content": "Hello"}]]


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("option", ["--image", "--video"])
def test_a_model_of_text_alone_says_so(capfd, pictures, monkeypatch, command, option):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    prompt = ["--prompt", "Hello"] if command == "generate" else []
    code, _, err = run(
        capfd, command, *prompt, option, str(pictures / "one.png"), "--device", "cpu"
    )
    assert code != 0
    assert f"{option}: this model reads text alone" in err
    assert "--model_path" in err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_a_file_that_is_not_there_is_named(capfd, monkeypatch, command):
    """Before a model is loaded."""
    monkeypatch.delattr(ek.LLM, "from_pretrained")
    prompt = ["--prompt", "What?"] if command == "generate" else []
    code, _, err = run(capfd, command, *prompt, "--image", "nowhere/no.png")
    assert code == 2
    assert err == "error: --image: 'nowhere/no.png': there is no such file\n"


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_tells_of_them(capfd, command):
    code, out, _ = run(capfd, command, "--help")
    assert code == 0
    for word in ("--image FILE", "--video FILE", "PNG", "MP4", "several times", "photo.jpg"):
        assert word in out
