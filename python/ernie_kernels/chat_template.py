"""From a conversation to a prompt: the checkpoint's chat template, or ERNIE-4.5's own rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_kernels.bounded_template import MAX_SOURCE_CHARACTERS, BoundedTemplate
from ernie_kernels.checkpoint_file import MAX_JSON_DEPTH, nesting, quoted, read_json, read_text
from ernie_kernels.errors import ConfigError, InputError, LimitError
from ernie_kernels.render_budget import RenderLimits
from ernie_kernels.special_tokens import (
    BAIDU_PLACEHOLDERS,
    TOKENIZER_CONFIG_FILE,
    Segment,
    TextGuard,
    TokenMatcher,
)
from ernie_kernels.template_sandbox import TemplateRefusal
from ernie_kernels.tokenizer import MAX_TEXT_BYTES, Tokenizer, check_text

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON_FILE = "chat_template.json"

ROLES = ("system", "user", "assistant", "tool")
MEDIA_PARTS = ("image_url", "image", "video_url", "video")

# "<|begin_of_sentence|>{system}\nUser: {user}\nAssistant: {answer}<|end_of_sentence|>User: ..."
# with "Assistant: " and one trailing space as the generation prompt.
BUILT_IN_TEXT_TEMPLATE = """\
{{- cls_token -}}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{%- if not loop.first -%}
{{- raise_exception("a system message must be the first") -}}
{%- endif -%}
{{- message.content + "\\n" -}}
{%- elif message.role == "user" -%}
{{- "User: " + message.content + "\\n" -}}
{%- elif message.role == "assistant" -%}
{{- "Assistant: " + message.content + sep_token -}}
{%- else -%}
{{- raise_exception("ERNIE-4.5 text models without a chat template have no " + message.role + " role") -}}
{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- raise_exception("this checkpoint has no chat template that lists tools") -}}
{%- endif -%}
{%- if add_generation_prompt -%}{{- "Assistant: " -}}{%- endif -%}
"""

# The vision-language rendering: the newline comes before "Assistant: ", pictures and videos are
# numbered over the whole conversation, and the generation prompt opens or skips the reasoning.
BUILT_IN_VISION_TEMPLATE = """\
{%- set count = namespace(pictures=0, videos=0) -%}
{%- macro body(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- for part in content -%}
{%- if part.type == "text" -%}{{- part.text -}}
{%- elif part.type in ("video", "video_url") -%}
{%- set count.videos = count.videos + 1 -%}
{{- "Video " ~ count.videos ~ ":<|VIDEO_START|>" ~ video_placeholder ~ "<|VIDEO_END|>" -}}
{%- else -%}
{%- set count.pictures = count.pictures + 1 -%}
{{- "Picture " ~ count.pictures ~ ":<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>" -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- cls_token -}}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{%- if not loop.first -%}
{{- raise_exception("a system message must be the first") -}}
{%- endif -%}
{{- body(message.content) + "\\n" -}}
{%- elif message.role == "user" -%}
{{- "User: " + body(message.content) -}}
{%- elif message.role == "assistant" -%}
{%- set answer = body(message.content) -%}
{%- set reasoning = message.reasoning_content or "" -%}
{%- if not reasoning and "</think>" in answer -%}
{%- set reasoning = answer.split("</think>")[0].split("<think>")[-1].strip("\\n") -%}
{%- set answer = answer.split("</think>")[1:] | join("</think>") -%}
{%- set answer = answer.lstrip("\\n") -%}
{%- endif -%}
{{- "\\nAssistant: " -}}
{%- if reasoning -%}{{- "<think>\\n" + reasoning + "\\n</think>\\n" -}}{%- endif -%}
{{- answer + sep_token -}}
{%- else -%}
{{- raise_exception("ERNIE-4.5-VL without a chat template has no " + message.role + " role") -}}
{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- raise_exception("this checkpoint has no chat template that lists tools") -}}
{%- endif -%}
{%- if add_generation_prompt -%}
{{- "\\nAssistant: <think>" if enable_thinking else "\\nAssistant: <think>\\n\\n</think>\\n\\n" -}}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A rendered conversation, for ``Tokenizer.encode_prompt(prompt.segments)``.

    Where it may hold media, for :meth:`.MediaPrompts.encode`, which knows their placeholders.
    """

    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """The prompt as one string: to be shown, not encoded; the user's part may look special."""
        return "".join(segment.text for segment in self.segments)


class ChatTemplate:
    """A chat template bound to a tokenizer; may be used from several threads.

    Args:
        source: jinja2.
        file: where it comes from, for messages.
        tokenizer: gives the control tokens and the variables ``bos_token``, ``eos_token``,
            ``cls_token``, ``sep_token`` and so on, as far as its files name them.
        accepts_media: whether messages may hold pictures and videos.
        limits: what one rendering may consume.
        required_tokens: control tokens without which the template makes no sense.

    Raises:
        ConfigError: the template is too long, too deep, malformed or does what is forbidden.
    """

    def __init__(
        self,
        source: str,
        *,
        file: str,
        tokenizer: Tokenizer,
        accepts_media: bool = False,
        limits: RenderLimits | None = None,
        required_tokens: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.file = file
        self._tokenizer = tokenizer
        self._accepts_media = accepts_media
        self._matcher = tokenizer.matcher
        if accepts_media:
            self._matcher = TokenMatcher([*tokenizer.special_tokens, *BAIDU_PLACEHOLDERS])
        self._template = BoundedTemplate(source, file, limits)
        self._required_tokens = tuple(required_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,  # a template's variables may have any name, "self" too
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **template_kwargs: Any,
    ) -> RenderedPrompt:
        """Render a conversation.

        Args:
            messages: each with ``role`` (system, user, assistant, tool) and ``content``, a string
                or a list of parts ``{"type": "text", "text": ...}``, ``{"type": "image_url", ...}``,
                ``image``, ``video_url`` or ``video``. For a text model the text parts are joined by newlines.
                Other fields (``tool_calls``, ``reasoning_content``, ...) reach the template.
            add_generation_prompt: end with what opens the assistant's next turn.
            tools: descriptions of tools, if the template lists them.
            template_kwargs: further variables, such as ``enable_thinking``.

        Raises:
            TypeError: messages or tools is no list.
            InputError: a message is malformed (its number and the field are named), or the
                template refuses the conversation.
            LimitError: too much text, or the template ran into a limit.
            ConfigError: the template fails, or its control tokens are not in the tokenizer.
        """
        for token in self._required_tokens:
            if token not in self._tokenizer.special_tokens:
                raise ConfigError(
                    f"{self.file}: the tokenizer has no special token {quoted(token)}; a chat "
                    f"template of the checkpoint's own ({TEMPLATE_FILE}) is needed"
                )
        if not isinstance(messages, (list, tuple)):
            raise TypeError(f"messages: expected a list, got {type(messages).__name__}")
        if tools is not None and not isinstance(tools, (list, tuple)):
            raise TypeError(f"tools: expected a list, got {type(tools).__name__}")
        if not messages:
            raise InputError("messages: expected at least one message, got 0")
        checked = [
            _checked_message(message, index, self._accepts_media)
            for index, message in enumerate(messages)
        ]
        variables: dict[str, Any] = {}
        for name, value in {**template_kwargs, "tools": tools}.items():
            if name.startswith("_"):
                raise InputError(
                    f"template argument {quoted(name)}: expected no leading underscore"
                )
            variables[name] = _plain_data(value, f"template argument {quoted(name)}")
        outside = [*checked, variables]
        if _total_characters(outside) > MAX_TEXT_BYTES:
            raise LimitError(f"messages: expected at most {MAX_TEXT_BYTES} characters in all")

        guard = TextGuard(self._matcher, outside)
        variables = {name: guard.protect(value) for name, value in variables.items()}
        variables |= self._tokenizer.roles
        variables |= {
            "messages": [
                guard.protect(message, is_answer=message["role"] == "assistant")
                for message in checked
            ],
            "add_generation_prompt": bool(add_generation_prompt),
        }
        if self.file == _BUILT_IN_FILE:
            variables |= self._built_in_variables()
        try:
            return RenderedPrompt(guard.split(self._template.render(variables)))
        except TemplateRefusal as error:
            # What the template says may quote a message: take the marks out of it.
            reason = quoted(guard.clean(str(error)))
            raise InputError(f"{self.file}: refuses these messages: {reason}") from None

    def _built_in_variables(self) -> dict[str, str]:
        video = "<|VIDEO_PLACEHOLDER|>"
        if video not in self._tokenizer.special_tokens:
            video = "<|IMAGE_PLACEHOLDER|>"  # in Baidu's own prompts it stands for both
        return {"cls_token": BEGIN_TOKEN, "sep_token": END_TOKEN, "video_placeholder": video}


BEGIN_TOKEN = "<|begin_of_sentence|>"
END_TOKEN = "<|end_of_sentence|>"
_BUILT_IN_FILE = "built-in chat template"
_BUILT_IN_TOKENS = (BEGIN_TOKEN, END_TOKEN)
_VISION_TOKENS = ("<|IMAGE_START|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_END|>")


def load_chat_template(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    accepts_media: bool = False,
    limits: RenderLimits | None = None,
) -> ChatTemplate:
    """The chat template of the checkpoint in ``folder``, else the built-in rendering.

    Looked for in this order: ``chat_template.jinja``, ``chat_template.json``, and
    ``chat_template`` in ``tokenizer_config.json``, a string or a list of named templates of which
    ``default`` is taken. Templates never come from a request.

    Raises:
        ConfigError: a file is malformed, or the template cannot be used.
    """
    folder = Path(folder)
    source, file = _find_source(folder)
    required: tuple[str, ...] = ()
    if source is None:
        source = BUILT_IN_VISION_TEMPLATE if accepts_media else BUILT_IN_TEXT_TEMPLATE
        file = _BUILT_IN_FILE
        required = _BUILT_IN_TOKENS + (_VISION_TOKENS if accepts_media else ())
    return ChatTemplate(
        source,
        file=file,
        tokenizer=tokenizer,
        accepts_media=accepts_media,
        limits=limits,
        required_tokens=required,
    )


def _find_source(folder: Path) -> tuple[str | None, str]:
    if (folder / TEMPLATE_FILE).exists():
        return read_text(folder / TEMPLATE_FILE, 4 * MAX_SOURCE_CHARACTERS), TEMPLATE_FILE
    for file in (TEMPLATE_JSON_FILE, TOKENIZER_CONFIG_FILE):
        if not (folder / file).exists():
            continue
        found = read_json(folder / file).get("chat_template")
        if isinstance(found, list):
            named = {
                item.get("name"): item.get("template") for item in found if isinstance(item, dict)
            }
            found = named.get("default", found)
        if isinstance(found, str):
            return found, file
        if found is not None:
            raise ConfigError(
                f"{file}: chat_template: expected a string, or a list with a template named "
                f"'default', got {quoted(found)}"
            )
    return None, ""


# ----------------------------------------------------------------------------- checking of messages


def _checked_message(message: object, index: int, accepts_media: bool) -> dict[str, Any]:
    """A message rebuilt from plain data; errors name its number and the field."""
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise InputError(
            f"{where}: expected an object with role and content, got {quoted(message)}"
        )
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}: role: expected one of {', '.join(ROLES)}, got {quoted(role)}")
    checked = {"role": str(role)}
    for key, value in message.items():
        if not isinstance(key, str):
            raise InputError(f"{where}: expected field names as strings, got {quoted(key)}")
        if key == "content":
            checked["content"] = _checked_content(value, role, where, accepts_media)
        elif key != "role":
            checked[key] = _plain_data(value, f"{where}: {quoted(key)}")
    if "content" not in checked:
        checked["content"] = _checked_content(message.get("content"), role, where, accepts_media)
    return checked


def _checked_content(content: object, role: str, where: str, accepts_media: bool) -> Any:
    if content is None and role == "assistant":
        return ""  # a turn that holds tool calls or reasoning alone
    if isinstance(content, str):
        check_text(content, f"{where}: content")
        return str(content)
    if not isinstance(content, (list, tuple)):
        raise InputError(
            f"{where}: content: expected a string or a list of parts, got {quoted(content)}"
        )
    parts = [
        _checked_part(part, f"{where}: content part {number}", accepts_media)
        for number, part in enumerate(content)
    ]
    return parts if accepts_media else "\n".join(part["text"] for part in parts)


def _checked_part(part: object, where: str, accepts_media: bool) -> dict[str, str]:
    kinds = ("text", *MEDIA_PARTS)
    if not isinstance(part, Mapping) or part.get("type") not in kinds:
        got = part.get("type") if isinstance(part, Mapping) else part
        raise InputError(f"{where}: type: expected one of {', '.join(kinds)}, got {quoted(got)}")
    kind = part["type"]
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise InputError(f"{where}: text: expected a string, got {quoted(text)}")
        check_text(text, f"{where}: text")
        return {"type": "text", "text": str(text)}
    if not accepts_media:
        raise InputError(f"{where}: {kind}: this model reads text alone; remove the part")
    # The template sees that there is a picture, never the picture.
    return {"type": kind, kind: kind}


def _plain_data(value: object, where: str) -> Any:
    """``value`` rebuilt from JSON's types, so that a template meets no object with methods."""
    if nesting(value) > MAX_JSON_DEPTH:
        raise InputError(f"{where}: expected nesting of at most {MAX_JSON_DEPTH}, got more")
    return _rebuilt(value, where)


def _rebuilt(value: object, where: str) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        check_text(value, where)
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_rebuilt(item, where) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where}: expected keys as strings, got {quoted(key)}")
        return {_rebuilt(key, where): _rebuilt(item, where) for key, item in value.items()}
    raise InputError(f"{where}: expected JSON data, got {quoted(value)}")


def _total_characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _total_characters(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_total_characters, value))
    return 0
