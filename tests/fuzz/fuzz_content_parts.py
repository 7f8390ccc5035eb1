"""Content parts of conversations: a prompt whose places are its images' and videos', or an error of ours.

All that :meth:`.LLM.chat` does before the model runs. What JSON cannot spell stands as an object with
the key "$"; FOLDER is the one folder that files may be read from.
"""

from __future__ import annotations

import base64
import random
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from mutation import bytes_changed, json_changed
from PIL import Image

from ernie_kernels.chat_prompts import ChatPrompts
from ernie_kernels.chat_template import load_chat_template
from ernie_kernels.errors import ArgumentError, ConfigError, InputError
from ernie_kernels.media_prompts import MediaPrompts
from ernie_kernels.media_sources import sources_of_messages
from ernie_kernels.models.config import load_config
from ernie_kernels.runner.requests import ModelLimits
from ernie_kernels.tokenizer import load_tokenizer
from ernie_kernels.vision import VisionLimits, VisionProcessor, VisionSettings
from tokenizer_files import VOCAB_SIZE
from vision.pictures import encoded, gif, noise
from vl_chat_checkpoint import BAIDU_TEMPLATE, write_vl_chat_checkpoint

MAX_MODEL_LEN = 600
ROOT = tempfile.TemporaryDirectory()
FOLDER = Path(ROOT.name, "media")
OPENED: list[str] = []  # of what is not to be read
ADDRESS = re.compile("0x[0-9a-f]{6,}")
WHERE = re.compile(r"messages: |message \d+: |built-in chat template: |chat_template\.jinja: ")
WORDS = [
    "type", "text", "image", "image_url", "video", "video_url", "url", "fps", "role", "content", "$",
    "user", "assistant", "system", "data:", "data:image/png;base64,", ";base64,", "AAAA", "R0lGODlh",
    "file://", "file:///", "file://localhost", "http://a/b.png", "FOLDER", "FOLDER/a.png", "/../",
    "FOLDER/../secret.png", "FOLDER/link", "FOLDER/fifo", "%2e%2e/", "%00", "?", "#", "/dev/zero",
    "/proc/self/environ", "bytes", "array", "pillow", "path", "float32", "bool", "<|IMAGE_PLACEHOLDER|>",
    "<|video@placeholder|>", "<|IMAGE_START|>", "<think>",
]  # fmt: skip
DTYPES = ("uint8", "float32", "int64", "bool", "object")


def prompts(template: str | None) -> ChatPrompts:
    folder = write_vl_chat_checkpoint(Path(tempfile.mkdtemp(dir=ROOT.name)), template=template)
    tokens = load_config(folder).media_tokens
    assert tokens is not None
    tokenizer = load_tokenizer(folder, VOCAB_SIZE, tokens.all)
    settings = VisionSettings(
        image_min_pixels=784, image_max_pixels=7840, video_min_pixels=784, video_max_pixels=7840,
        min_frames=2, max_frames=16, draw_timestamps=False,
    )  # fmt: skip
    limits = VisionLimits(
        side=256, image_pixels=1 << 14, frames=24, video_pixels=1 << 17, images_per_request=8,
        decode_seconds=10, allowed_local_media_path=FOLDER,
    )  # fmt: skip
    media = MediaPrompts(tokens, VisionProcessor(settings, limits), MAX_MODEL_LEN)
    return ChatPrompts(
        tokenizer,
        load_chat_template(folder, tokenizer, accepts_media=True),
        ModelLimits(VOCAB_SIZE, MAX_MODEL_LEN),
        media,
    )


def prepare() -> list[ChatPrompts]:
    FOLDER.mkdir()
    for name in ("a.png", "../secret.png"):
        (FOLDER / name).write_bytes(encoded(noise(20, 30)))
    (FOLDER / "a.gif").write_bytes(gif(3))
    (FOLDER / "link").symlink_to("../secret.png")
    sys.addaudithook(
        lambda event, arguments: (
            OPENED.append(str(arguments[0]))
            if event == "open" and "secret" in str(arguments[0])
            else None
        )
    )
    return [prompts(None), prompts(BAIDU_TEMPLATE)]


PROMPTS = prepare()


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def seeds() -> list[Any]:
    picture = encoded(noise(20, 30))
    frames = {"$": "array", "shape": [3, 20, 30, 3], "dtype": "uint8"}
    parts = [
        [
            {"type": "text", "text": "See "},
            {"type": "image_url", "image_url": {"url": url(picture)}},
        ],
        [
            {"type": "image", "image": url(encoded(noise(9, 14), "JPEG"))},
            {"type": "text", "text": "?"},
        ],
        [{"type": "video_url", "video_url": url(gif(3), "image/gif")}],
        [{"type": "image", "image": {"$": "bytes", "data": picture.decode("latin-1")}}],
        [{"type": "video", "video": {"$": "bytes", "data": gif(2).decode("latin-1")}}],
        [{"type": "image", "image": {"$": "array", "shape": [20, 30, 3], "dtype": "uint8"}}],
        [{"type": "image", "image": {"$": "pillow", "mode": "RGBA", "size": [30, 20]}}],
        [{"type": "video", "video": frames, "fps": 2.0}],
        [{"type": "video", "video": ["FOLDER/a.png", url(picture), "file://FOLDER/a.png"]}],
        [{"type": "image_url", "image_url": "file://FOLDER/a.png"}],
        [{"type": "image", "image": {"$": "path", "name": "FOLDER/a.png"}}],
        [{"type": "video_url", "video_url": {"url": "FOLDER/a.gif"}}],
    ]
    cases = [[{"role": "user", "content": content}] for content in parts]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "<think>x"}]}
    talk = [*cases[0], answer, *cases[5], *cases[8]]
    return [
        {"template": number, "messages": messages}
        for number in range(len(PROMPTS))
        for messages in [*cases, talk]
    ]


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    messages = case["messages"]
    kind = draw.random()
    if kind < 0.15 and isinstance(messages, list) and messages:
        message = draw.choice(messages)
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            message["content"] = (content * draw.choice((2, 9, 70)))[:300]
    elif kind < 0.4:
        messages = damaged(messages, draw)
    else:
        messages = json_changed(messages, other["messages"], draw, WORDS)
    return {"template": case["template"], "messages": messages}


def damaged(value: Any, draw: random.Random) -> Any:
    """With each encoded picture or film changed, under the base64 or in it."""
    if isinstance(value, dict):
        return {key: damaged(item, draw) for key, item in value.items()}
    if isinstance(value, list):
        return [damaged(item, draw) for item in value]
    if not isinstance(value, str) or len(value) < 40:
        return value
    head, comma, tail = value.partition(";base64,")
    if not comma or draw.random() < 0.3:
        data = value.encode("utf-8", "replace")
        return bytes_changed(data, data, draw).decode("latin-1")
    try:
        data = base64.b64decode(tail)
    except ValueError:
        return value
    return head + comma + base64.b64encode(bytes_changed(data, data, draw)).decode()


def given(value: Any) -> Any:
    """What a case spells."""
    if isinstance(value, str):
        return value.replace("FOLDER", str(FOLDER))
    if isinstance(value, list):
        return [given(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("$")
    if kind == "bytes":
        return str(value.get("data")).encode("latin-1", "replace")
    if kind == "path":
        return Path(given(str(value.get("name"))))
    if kind in ("array", "pillow"):
        sides = value.get("shape" if kind == "array" else "size")
        numbers = [n for n in sides if type(n) is int] if isinstance(sides, list) else []
        sides = [min(abs(n), 1 << 31) for n in numbers][:8]
        if kind == "pillow":
            mode = value.get("mode") if value.get("mode") in Image.MODES else "P"
            width, height = (*(min(side, 600) for side in sides), 1, 1)[:2]
            return Image.new(mode, (width, height))
        dtype = value.get("dtype") if value.get("dtype") in DTYPES else "uint16"
        try:  # of any size, and without memory
            return np.broadcast_to(np.ones((), dtype), sides)
        except ValueError:
            return np.ones(3, dtype)
    return {key: given(item) for key, item in value.items()}


def is_allowed(error: BaseException) -> bool:
    said = str(error)
    # Of a file the name alone is told, but what stands where no file is expected is.
    if (ROOT.name in said and "got '" not in said) or ADDRESS.search(said) or not WHERE.match(said):
        return False
    return isinstance(error, (InputError, ArgumentError, ConfigError, TypeError))


def run(case: Any) -> None:
    messages = given(case["messages"])
    try:
        request = PROMPTS[case["template"]].request(
            messages, None, enable_thinking=False, tools=None, chat_template_kwargs=None
        )
    finally:
        assert not OPENED
    assert 1 <= len(request.token_ids) <= MAX_MODEL_LEN
    sources = sources_of_messages(messages)
    plan = request.media
    assert (plan is None) == (not sources)
    if plan is not None:
        assert [item.kind for item in plan.items] == [source.kind for source in sources]
        assert len(plan.rows) == sum(item.num_tokens for item in plan.items)
        assert plan.positions.shape == (3, len(request.token_ids))
