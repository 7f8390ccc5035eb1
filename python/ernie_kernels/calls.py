"""What the calls of an :class:`~.llm.LLM` do with its engine, once their arguments are understood."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from ernie_kernels.errors import OutOfMemoryError
from ernie_kernels.media_arguments import MediaArguments
from ernie_kernels.memory_errors import out_of_memory
from ernie_kernels.outputs import GenerationChunk, RequestOutput
from ernie_kernels.runner.capacity import available_host_memory
from ernie_kernels.runner.collector import Collector
from ernie_kernels.runner.engine import Engine
from ernie_kernels.runner.requests import ModelLimits, Request, checked_batch, checked_ids


def forward(
    engine: Engine,
    prompt_token_ids: Sequence[Sequence[int]],
    limits: ModelLimits,
    media: MediaArguments,
) -> list[np.ndarray]:
    """See :meth:`.llm.LLM.forward`."""
    batch = checked_batch(prompt_token_ids, "prompt_token_ids")
    prompts = [
        checked_ids(ids, f"prompt_token_ids[{index}]", limits) for index, ids in enumerate(batch)
    ]
    plans = media.plans(prompts)
    needed = sum(len(ids) for ids in prompts) * limits.vocab_size * 4
    if needed > available_host_memory():
        raise OutOfMemoryError(
            f"forward: {needed} bytes of logits needed, {available_host_memory()} available; "
            "pass fewer or shorter sequences"
        )
    try:
        return engine.forward(prompts, limits.vocab_size, plans)
    except MemoryError as error:
        raise out_of_memory(error, "forward") from None


def finish(engine: Engine, requests: list[Request], collector: Collector) -> list[RequestOutput]:
    """Run the requests to their ends."""
    for _ in stream(engine, requests, collector):
        pass
    return collector.outputs


def stream(
    engine: Engine, requests: list[Request], collector: Collector
) -> Generator[GenerationChunk, None, None]:
    """Run the requests, and yield what comes as it comes; who stops listening gives them up."""
    ticket = None
    try:
        ticket = engine.add_requests(requests)
        for taken in engine.outputs(ticket):
            yield from collector.chunks(taken)
    except GeneratorExit:  # as in Engine.outputs
        raise
    except BaseException as error:
        if ticket is not None:
            ticket.close()
        if isinstance(error, MemoryError):
            raise out_of_memory(error, "generation") from None
        raise
    collector.raise_errors()
