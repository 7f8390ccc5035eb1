"""What a caller asks for, checked completely before anything runs."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.errors import ConfigError, InputError, LimitError
from ernie_kernels.runner.media import MediaPlan, PromptMedia
from ernie_kernels.runner.reasoning import ReasoningLimit
from ernie_kernels.runner.sampler import seed_of_sample
from ernie_kernels.runner.sampling import SamplingParams
from ernie_kernels.runner.sequence import Sequence
from ernie_kernels.tokenizer import Tokenizer, check_text

# Of a prompt's number, ids and name: the ids with media in their places, and where these are.
PlaceMedia = Callable[[int, np.ndarray, str], tuple[np.ndarray, MediaPlan | None]]

MAX_REQUESTS = 1024
NO_TOKENIZER = (
    "the checkpoint has no tokenizer (tokenizer.model or tokenizer.json); pass prompt_token_ids"
)


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What prompts are held against."""

    vocab_size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with its parameters."""

    index: int
    prompt: str | None
    token_ids: np.ndarray  # int64
    params: SamplingParams
    seed: int
    salt: bytes = b""  # cached keys and values are shared with requests of the same salt only
    media: MediaPlan | None = None
    opens_reasoning: bool = False  # its answers begin inside <think>


def checked_ids(ids: Any, where: str, limits: ModelLimits) -> np.ndarray:
    """Token ids of one prompt as int64.

    Raises:
        TypeError: no sequence of integers.
        InputError: no ids, or one out of range.
        LimitError: more than the model length.
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(
                f"{where}: expected a list of token ids or an integer array of rank 1, got an "
                f"array of {ids.dtype}, rank {ids.ndim}"
            )
        ids = ids.tolist()
    if isinstance(ids, (str, bytes)) or not isinstance(ids, AnySequence):
        raise TypeError(f"{where}: expected a list of token ids, got {type(ids).__name__}")
    if len(ids) == 0:
        raise InputError(f"{where}: expected at least one token, got 0 tokens")
    if len(ids) > limits.max_model_len:
        raise LimitError(
            f"{where}: {len(ids)} tokens, more than the model length of {limits.max_model_len}"
        )
    for position, token_id in enumerate(ids):
        try:
            if isinstance(token_id, (bool, np.bool_)):
                raise TypeError
            value = operator.index(token_id)
        except TypeError:
            raise TypeError(
                f"{where}: position {position}: expected an integer, got {type(token_id).__name__}"
            ) from None
        if not 0 <= value < limits.vocab_size:
            raise InputError(
                f"{where}: position {position}: expected an id 0..{limits.vocab_size - 1} "
                f"(vocab_size={limits.vocab_size}), got {quoted(value)}"
            )
    return np.array(ids, np.int64)


def checked_batch(items: Any, where: str) -> list:
    """A list of prompts.

    Raises:
        TypeError: not a list.
        LimitError: too many.
    """
    if isinstance(items, (str, bytes)) or not isinstance(items, AnySequence):
        raise TypeError(f"{where}: expected a list, got {type(items).__name__}")
    if len(items) > MAX_REQUESTS:
        raise LimitError(f"{where}: expected at most {MAX_REQUESTS} prompts, got {len(items)}")
    return list(items)


def make_requests(
    prompts: Any,
    prompt_token_ids: Any,
    params: Any,
    tokenizer: Tokenizer | None,
    limits: ModelLimits,
    place: PlaceMedia | None = None,
) -> list[Request]:
    """Check the arguments of ``LLM.generate`` and encode text.

    ``place`` puts images and videos in their places in prompts of token ids.

    Raises:
        TypeError, InputError, LimitError: as the arguments deserve.
        ConfigError: text or stop strings without a tokenizer.
    """
    if (prompts is None) == (prompt_token_ids is None):
        raise InputError("generate: expected either prompts or prompt_token_ids, got both or none")
    texts: list[str | None]
    if prompts is not None:
        texts = checked_batch([prompts] if isinstance(prompts, str) else prompts, "prompts")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"prompts[{index}]: expected a str, got {type(text).__name__}")
        if texts and tokenizer is None:
            raise ConfigError(f"generate: prompts: {NO_TOKENIZER}")
    else:
        prompt_token_ids = checked_batch(prompt_token_ids, "prompt_token_ids")
        texts = [None] * len(prompt_token_ids)
    all_params = _params_per_request(params, len(texts))
    for each in all_params:
        _check_params(each, tokenizer, limits)

    requests = []
    for index, (text, each) in enumerate(zip(texts, all_params, strict=True)):
        if text is None:
            where, ids = f"prompt_token_ids[{index}]", prompt_token_ids[index]
        else:
            assert tokenizer is not None  # seen above
            where = f"prompts[{index}]"
            check_text(text, where)
            ids = tokenizer.encode(text, add_special_tokens=True)
        media = None
        if place is not None and text is None:
            ids, media = place(index, checked_ids(ids, where, limits), where)
        requests.append(make_request(index, text, ids, each, where, limits, media=media))
    return requests


def make_request(
    index: int,
    prompt: str | None,
    ids: Any,
    params: SamplingParams,
    where: str,
    limits: ModelLimits,
    *,
    media: MediaPlan | None = None,
    opens_reasoning: bool = False,
) -> Request:
    """One request; see :func:`make_requests`."""
    token_ids = checked_ids(ids, where, limits)
    total = len(token_ids) + params.max_tokens
    if total > limits.max_model_len:
        raise LimitError(
            f"{where}: {len(token_ids)} tokens and max_tokens={params.max_tokens} make {total}, "
            f"more than the model length of {limits.max_model_len}; shorten the prompt or lower "
            "max_tokens"
        )
    seed = params.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(8), "little", signed=True)
    return Request(
        index, prompt, token_ids, params, seed, media=media, opens_reasoning=opens_reasoning
    )


def checked_params(params: Any, tokenizer: Tokenizer | None, limits: ModelLimits) -> SamplingParams:
    """The parameters of one request, defaults for None; see :func:`make_requests`."""
    each = _params_per_request(params, 1)[0]
    _check_params(each, tokenizer, limits)
    return each


def checked_template_kwargs(variables: Any) -> dict[str, Any]:
    """Further variables of the chat template, by name.

    Raises:
        TypeError: no mapping of names.
        InputError: a name that ``LLM.chat`` has an argument for.
    """
    if variables is None:
        return {}
    where = "chat_template_kwargs"
    if not isinstance(variables, Mapping):
        raise TypeError(f"{where}: expected a dict, got {type(variables).__name__}")
    for name in variables:
        if not isinstance(name, str):
            raise TypeError(f"{where}: expected names as keys, got {type(name).__name__}")
        if name in ("messages", "tools", "enable_thinking"):
            raise InputError(
                f"{where}: {quoted(name)} is an argument of chat itself; pass it there"
            )
    return dict(variables)


def _params_per_request(params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    every = params if isinstance(params, (list, tuple)) else [params] * count
    for each in every:
        if not isinstance(each, SamplingParams):
            raise TypeError(f"params: expected SamplingParams, got {type(each).__name__}")
    if len(every) != count:
        raise InputError(f"params: expected one for each of {count} prompts, got {len(every)}")
    return list(every)


def _check_params(params: SamplingParams, tokenizer: Tokenizer | None, limits: ModelLimits) -> None:
    if params.stop and tokenizer is None:
        raise ConfigError(f"stop: {NO_TOKENIZER} and stop_token_ids")
    for position, token_id in enumerate(params.stop_token_ids or ()):
        if token_id >= limits.vocab_size:
            raise InputError(
                f"stop_token_ids: position {position}: expected an id 0..{limits.vocab_size - 1} "
                f"(vocab_size={limits.vocab_size}), got {token_id}"
            )


def make_sequences(request: Request, tokenizer: Tokenizer | None) -> list[Sequence]:
    """The ``n`` answers that a request asks for."""
    prompt = request.token_ids
    media = None if request.media is None else PromptMedia(request.media)
    limit = None
    if tokenizer is not None and request.opens_reasoning:
        most = request.params.reasoning_max_tokens
        limit = None if most is None else ReasoningLimit(tokenizer, most)
    sequences = []
    for index in range(request.params.n):
        token_ids = np.zeros(len(prompt) + request.params.max_tokens, np.int64)
        token_ids[: len(prompt)] = prompt
        sequences.append(
            Sequence(
                request_index=request.index,
                index=index,
                params=request.params,
                seed=seed_of_sample(request.seed, index),
                token_ids=token_ids,
                num_prompt_tokens=len(prompt),
                tokenizer=tokenizer,
                salt=request.salt,
                media=media,
                reasoning_limit=limit,
            )
        )
    return sequences


def make_prompt_sequence(
    index: int, token_ids: np.ndarray, logits: np.ndarray, media: MediaPlan | None = None
) -> Sequence:
    """A prompt that is only read, for its logits."""
    return Sequence(
        request_index=index,
        index=0,
        params=SamplingParams(),
        seed=0,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        media=None if media is None else PromptMedia(media),
        logits=logits,
    )
