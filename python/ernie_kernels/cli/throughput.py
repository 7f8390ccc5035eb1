"""How fast a loaded model generates, through the same engine as ``generate``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ernie_kernels import _core
from ernie_kernels.errors import InternalError
from ernie_kernels.llm import LLM
from ernie_kernels.load_model import BLOCK_SIZE
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.experts import MoE
from ernie_kernels.runner.model_runner import kv_cache_bytes_per_block
from ernie_kernels.runner.sampling import SamplingParams

CEILING_BYTES = 256 << 20  # more than any cache holds


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """Medians over the runs of one batch size; seconds, tokens and bytes.

    Attributes:
        prompt_tokens_per_second: of all requests, until the last of them has its first token.
        generated_tokens_per_second: of all requests together, from then on; None for one new token.
        first_token_seconds: from the call to a request's first token, median over the requests.
        token_seconds_p50, token_seconds_p95: between two tokens of one request.
        bytes_per_step: weights and cache that a decode step reads; of experts on average, if the
            router is even.
        read_bytes_per_second: that, over the time of a step.
        drafted_tokens, accepted_tokens: of all runs but the first, and how many proved right. A step
            then brings one token or more: of these the later ones come no time after the first.
    """

    batch_size: int
    prompt_tokens_per_second: float
    generated_tokens_per_second: float | None
    first_token_seconds: float
    token_seconds_p50: float | None
    token_seconds_p95: float | None
    bytes_per_step: int
    read_bytes_per_second: float | None
    drafted_tokens: int
    accepted_tokens: int


class ThroughputBench:
    """Runs batches of random prompts.

    Args:
        llm: loaded, with room for the largest batch.
        prompt_tokens, new_tokens: of every request.
        seed: of the prompts. No two requests begin alike, so that the cache serves none of them.
    """

    def __init__(self, llm: LLM, *, prompt_tokens: int, new_tokens: int, seed: int) -> None:
        self._llm = llm
        self._prompt_tokens = prompt_tokens
        self._new_tokens = new_tokens
        self._rng = np.random.default_rng(seed)
        self._params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        tokens = llm.config.media_tokens
        # What stands for an image without one is refused.
        unused = [] if tokens is None else list(tokens.all)
        self._ids = np.setdiff1d(np.arange(llm.config.vocab_size), unused)

    def measure(self, batch_size: int, repeats: int, done: Callable[[], object]) -> BatchSpeed:
        """``done`` is called after each of the runs, one more than ``repeats``: the first warms up."""
        runs = []
        self._run(batch_size)
        done()
        before = self._llm.stats()
        for _ in range(repeats):
            runs.append(self._run(batch_size))
            done()
        after = self._llm.stats()
        drafted, accepted = (after[k] - before[k] for k in ("drafted_tokens", "accepted_tokens"))
        return self._speed(batch_size, runs, drafted, accepted)

    def _run(self, batch_size: int) -> np.ndarray:
        """Seconds from the call to each token: ``[batch_size, new_tokens]``."""
        prompts = self._rng.choice(self._ids, (batch_size, self._prompt_tokens)).tolist()
        times: list[list[float]] = [[] for _ in range(batch_size)]
        begin = time.perf_counter()
        for chunk in self._llm.generate(prompt_token_ids=prompts, params=self._params, stream=True):
            now = time.perf_counter() - begin
            times[chunk.request_index] += [now] * len(chunk.token_ids)
        if any(len(each) != self._new_tokens for each in times):
            raise InternalError("bench: a request has not generated as many tokens as asked for")
        return np.array(times)

    def _speed(
        self, batch_size: int, runs: list[np.ndarray], drafted: int, accepted: int
    ) -> BatchSpeed:
        all_begun = [float(times[:, 0].max()) for times in runs]
        decode = self._decode_rates(runs)
        gaps = np.concatenate([np.diff(times, axis=1).ravel() for times in runs])
        num_bytes = self.bytes_per_step(batch_size)
        rate = statistics.median(decode) if decode else None
        # A draft that proves right saves a step.
        later = sum(times.size - len(times) for times in runs)
        steps = None if rate is None else rate / batch_size * (1 - accepted / later)
        return BatchSpeed(
            batch_size=batch_size,
            prompt_tokens_per_second=batch_size
            * self._prompt_tokens
            / statistics.median(all_begun),
            generated_tokens_per_second=rate,
            first_token_seconds=statistics.median(float(np.median(t[:, 0])) for t in runs),
            token_seconds_p50=float(np.percentile(gaps, 50)) if gaps.size else None,
            token_seconds_p95=float(np.percentile(gaps, 95)) if gaps.size else None,
            bytes_per_step=num_bytes,
            read_bytes_per_second=None if steps is None else num_bytes * steps,
            drafted_tokens=drafted,
            accepted_tokens=accepted,
        )

    def _decode_rates(self, runs: list[np.ndarray]) -> list[float]:
        """Tokens per second of each run while every request generates and none reads its prompt."""
        rates = []
        for times in runs:
            begin, end = times[:, 0].max(), times[:, -1].min()
            count = int(((times > begin) & (times <= end)).sum())
            if count:
                rates.append(count / (end - begin))
        return rates

    def bytes_per_step(self, batch_size: int) -> int:
        """All weights once, but of an embedding that is not the head as well one row a request, and
        the module and the head again for each draft, and of experts those that are chosen; of every
        request the cache, in the middle of its answer."""
        llm = self._llm
        drafts = llm.num_speculative_tokens
        again = llm.model.lm_head.weight.nbytes + llm.model.mtp_nbytes
        weights = llm.stats()["weight_bytes"] - llm.model.mtp_nbytes + drafts * again
        weights -= llm.model.visual_nbytes  # text is all that is read
        weights -= self._bytes_of_idle_experts(batch_size * (1 + drafts))
        if not llm.model.is_tied:
            table = llm.model.model.embed_tokens.weight.nbytes
            weights -= table - batch_size * table // llm.config.vocab_size
        tokens = self._prompt_tokens + self._new_tokens // 2
        per_block = kv_cache_bytes_per_block(llm.config, BLOCK_SIZE, llm.dtype, with_mtp=drafts > 0)
        return weights + batch_size * tokens * per_block // BLOCK_SIZE

    def _bytes_of_idle_experts(self, num_tokens: int) -> int:
        """Those that none of so many tokens chooses, on average over even and independent choices."""
        config, layers = self._llm.config, self._llm.model.model.layers
        nbytes = 0.0
        for plan, layer in zip(config.layers, layers, strict=True):
            if isinstance(layer.mlp, MoE):
                moe = layer.mlp
                experts = moe.gate_up_proj.nbytes + moe.down_proj.nbytes
                nbytes += experts * (1 - plan.top_k / plan.num_experts) ** num_tokens
                # Text asks none of the other bank.
                others = (*moe.gate_up_projs[1:], *moe.down_projs[1:])
                nbytes += sum(each.nbytes for each in others)
                nbytes += sum(gate.weight.nbytes for gate in moe.router.gates[1:])
                nbytes += moe.router.correction_bias.nbytes * (1 - 1 / len(moe.router.gates))
        return round(nbytes)


def cache_bytes(
    config: ModelConfig, dtype: str, batch_size: int, tokens: int, *, with_mtp: bool = False
) -> int:
    """Of the cache that ``batch_size`` requests of ``tokens`` tokens need at the same time."""
    blocks = batch_size * -(-tokens // BLOCK_SIZE)
    return blocks * kv_cache_bytes_per_block(config, BLOCK_SIZE, dtype, with_mtp=with_mtp)


def read_ceiling(device: str) -> float | None:
    """Bytes per second that this machine reads from memory at best; None for a GPU."""
    if device != "cpu":
        return None
    return max(_core.measure_read_bandwidth(CEILING_BYTES) for _ in range(3))


def as_json(llm: LLM, speeds: list[BatchSpeed], ceiling: float | None) -> dict[str, Any]:
    return {
        "device": llm.device,
        "dtype": llm.dtype,
        "cpu_tier": _core.cpu_tier(),
        "num_threads": _core.num_threads(),
        "weight_bytes": llm.stats()["weight_bytes"],
        "memory_read_bytes_per_second": ceiling,
        "batches": [asdict(speed) for speed in speeds],
    }
