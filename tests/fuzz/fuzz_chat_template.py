"""Chat templates and conversations: a prompt that encodes, or a ConfigError, InputError, LimitError."""

from __future__ import annotations

import functools
import random
import tempfile
from pathlib import Path
from typing import Any

from mutation import json_changed, text_changed

from ernie_kernels.chat_template import (
    BUILT_IN_TEXT_TEMPLATE,
    BUILT_IN_VISION_TEMPLATE,
    ChatTemplate,
    load_chat_template,
)
from ernie_kernels.errors import ConfigError, InputError
from ernie_kernels.render_budget import RenderLimits
from ernie_kernels.runner.requests import checked_template_kwargs
from ernie_kernels.tokenizer import load_tokenizer
from tokenizer_files import CONTROL, VOCAB_SIZE, write_tokenizer

FOLDER = tempfile.TemporaryDirectory()
TOKENIZER = load_tokenizer(write_tokenizer(Path(FOLDER.name)), VOCAB_SIZE)
BUILT_IN = load_chat_template(Path(FOLDER.name), TOKENIZER)
# A hundredth of the real ones: what runs away is refused sooner, by the same code.
LIMITS = RenderLimits(
    steps=5_000, value_characters=1 << 18, total_characters=1 << 21, output_characters=1 << 18
)
WORDS = [
    "{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "{# ", " #}", "for m in messages", "endfor", "if ",
    "else", "endif", "set x = ", "macro f(a)", "endmacro", "f(1)", "call f(1)", "endcall",
    "namespace(x=0)", "loop.index", "messages", "message.content", "m.role", "tools", "tojson", " | ",
    "join", "trim", "replace('a', 'b')", "list", "sort", "map('upper')", "range(9)", "range(10**9)",
    " * 99", " * 10**9", " ~ ", " + ", "[1]", "[:]", "['a']", "(", ")", "'", "x", "1", "-1", "1.5",
    "raise_exception('no')", "strftime_now('%Y')", "cycler(1)", "lipsum()", ".__class__", "self",
    "|attr('__class__')", ".format(x)", "'%999999d' % 1", "'{0:>999}'.format(1)", "is defined",
    "include 'a'", "generation", "endgeneration", "break", "raw", "endraw", *CONTROL, "</s>", "\ufdd0",
    "filter upper", "endfilter", "|batch(2)", "|indent(99999)", "|center(10**7)", "dict(a=1)", "not in",
]  # fmt: skip
NAMES = [
    "role", "content", "user", "assistant", "system", "tool", "type", "text", "image_url", "image",
    "tool_calls", "reasoning_content", "self", "messages", "add_generation_prompt", "_private", "range",
    "namespace", "raise_exception", "loop", "bos_token", "enable_thinking", "tools", *CONTROL, "<think>",
]  # fmt: skip
MACROS = """\
{%- macro turn(m) -%}{{ m.role | upper }}: {% for p in m.content.split(' ') %}{{ p ~ ' ' }}{% endfor %}
{%- endmacro -%}
{% set ns = namespace(n=0) %}{% for m in messages if m.content is string %}{% set ns.n = ns.n + 1 %}
{{- turn(m) }}{% else %}none{% endfor %}{{ ns.n }}{{ tools | tojson(indent=2) if tools }}{{ bos_token }}
"""


def is_allowed(error: BaseException) -> bool:
    """TypeError is what chat promises for an argument of another type, which its words begin with."""
    words = (
        "messages: expected a list",
        "tools: expected a list",
        "chat_template_kwargs: expected",
    )
    if isinstance(error, TypeError):
        return str(error).startswith(words)
    return isinstance(error, (ConfigError, InputError))


def seeds() -> list[Any]:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello </s> 12"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nHi"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": [1, None, 0.5]}}}
    return [
        {"template": None, "messages": turns, "tools": None, "extra": {}},
        {"template": BUILT_IN_TEXT_TEMPLATE, "messages": turns[1:], "tools": None, "extra": {"a": 1}},
        {"template": BUILT_IN_VISION_TEMPLATE, "messages": turns, "tools": None, "extra": {}},
        {"template": MACROS, "messages": turns, "tools": [tool], "extra": {"a": "<s>", "b": [{}]}},
    ]  # fmt: skip


def mutated(case: Any, other: Any, draw: random.Random) -> Any:
    if case["template"] is not None and draw.random() < 0.6:
        case["template"] = text_changed(case["template"], WORDS, draw)
        return case
    template = case.pop("template")
    case = json_changed(case, other["messages"], draw, NAMES)
    return {"messages": [], "tools": None, "extra": {}, **case, "template": template}


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, file="chat_template.jinja", tokenizer=TOKENIZER, limits=LIMITS)


def run(case: Any) -> None:
    template = BUILT_IN if case["template"] is None else compiled(case["template"])
    extra = checked_template_kwargs(case["extra"])
    prompt = template.render(case["messages"], tools=case["tools"], **extra)
    assert len(prompt.text) <= LIMITS.output_characters or case["template"] is None
    assert all(0 <= i < VOCAB_SIZE for i in TOKENIZER.encode_prompt(prompt.segments))
