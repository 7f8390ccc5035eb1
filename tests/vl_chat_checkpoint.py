"""A tiny vision-language checkpoint with a tokenizer: all that ``LLM.chat`` needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizer_files import ADDED, MODEL_PIECES, VOCAB_SIZE, write_tokenizer
from vl_checkpoint import write_vl_checkpoint

TOKENS = {
    **ADDED,
    "<|VIDEO_START|>": MODEL_PIECES + 5,
    "<|VIDEO_END|>": MODEL_PIECES + 6,
    "<|VIDEO_PLACEHOLDER|>": MODEL_PIECES + 7,
}
IDS = {
    "im_patch_id": TOKENS["<|IMAGE_PLACEHOLDER|>"],
    "video_token_id": TOKENS["<|VIDEO_PLACEHOLDER|>"],
    "image_start_token_id": TOKENS["<|IMAGE_START|>"],
    "image_end_token_id": TOKENS["<|IMAGE_END|>"],
    "video_start_token_id": TOKENS["<|VIDEO_START|>"],
    "video_end_token_id": TOKENS["<|VIDEO_END|>"],
}
# Baidu's: no tokens stand for media, and videos have what images have.
BAIDU_TEMPLATE = """{{- cls_token -}}
{%- for message in messages -%}{%- for part in message.content -%}
{%- if part.type == "text" -%}{{- part.text -}}
{%- elif part.type in ["video", "video_url"] -%}<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>
{%- else -%}<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>{%- endif -%}
{%- endfor -%}{%- endfor -%}Assistant: """


def write_vl_chat_checkpoint(
    folder: Path, *, has_video_token: bool = True, template: str | None = None, **changes: Any
) -> Path:
    """``has_video_token``: as transformers has it; else as in Baidu's own files."""
    ids = dict(IDS)
    tokens = dict(TOKENS)
    if not has_video_token:
        del ids["video_token_id"], tokens["<|VIDEO_PLACEHOLDER|>"]
        changes["video_token_id"] = None
    write_vl_checkpoint(folder, **{"vocab_size": VOCAB_SIZE, **ids, **changes})
    write_tokenizer(folder)
    (folder / "added_tokens.json").write_text(json.dumps(tokens))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
