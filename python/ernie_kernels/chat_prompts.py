"""From the messages of a conversation to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ernie_kernels.chat_template import ChatTemplate
from ernie_kernels.media_prompts import MediaPrompts
from ernie_kernels.media_sources import sources_of_messages
from ernie_kernels.runner.reasoning import opens_reasoning
from ernie_kernels.runner.requests import (
    ModelLimits,
    Request,
    checked_params,
    checked_template_kwargs,
    make_request,
)
from ernie_kernels.tokenizer import Tokenizer

WHERE = "messages"


class ChatPrompts:
    """Makes the requests of :meth:`.llm.LLM.chat`; may be used from several threads.

    Args:
        media: None for a model of text alone.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        limits: ModelLimits,
        media: MediaPrompts | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._limits = limits
        self._media = media

    def request(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: Any,
        *,
        enable_thinking: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        chat_template_kwargs: Mapping[str, Any] | None,
    ) -> Request:
        """See :meth:`.llm.LLM.chat`."""
        checked = checked_params(params, self._tokenizer, self._limits)
        extra = checked_template_kwargs(chat_template_kwargs)
        extra["enable_thinking"] = enable_thinking
        segments = self._template.render(messages, tools=tools, **extra).segments
        plan = None
        ids: Any
        if self._media is None:
            ids = self._tokenizer.encode_prompt(segments)
        else:
            ids, types = self._media.encode(self._tokenizer, segments)
            ids, plan = self._media.place(ids, types, sources_of_messages(messages), WHERE)
        return make_request(
            0,
            None,
            ids,
            checked,
            WHERE,
            self._limits,
            media=plan,
            opens_reasoning=opens_reasoning(segments),
        )
