"""Messages that show images and videos, and a model that is asked them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ernie_kernels as ek
from vl_chat_checkpoint import TOKENS

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


def load(folder: Path, **changes: Any) -> ek.LLM:
    return ek.LLM.from_pretrained(
        folder, device="cpu", **{"max_model_len": 512, "mm_processor_kwargs": OPTIONS, **changes}
    )


def encoded(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def data_url(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(pixels)).decode()


def user(*parts: str | dict) -> list[dict]:
    """One message; strings are its text."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def image(source: Any) -> dict:
    return {"type": "image", "image": source}


def video(source: Any, **more: Any) -> dict:
    return {"type": "video", "video": source, **more}


def count(output: ek.RequestOutput, token: str) -> int:
    return output.prompt_token_ids.count(TOKENS[token])
