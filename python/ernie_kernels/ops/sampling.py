"""From logits to the next token. C++ contract: csrc/ops/sampling.h."""

from __future__ import annotations

from numbers import Integral, Real

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.errors import ArgumentError


def apply_penalties(
    logits: Tensor,
    token_ids: Tensor,
    cu_tokens: Tensor,
    prompt_lens: Tensor,
    *,
    repetition_penalty: float | Tensor,
    presence_penalty: float | Tensor,
    frequency_penalty: float | Tensor,
) -> Tensor:
    """Make tokens that have occurred less likely, in place.

    For every distinct id of a row's tokens, with ``l`` its logit and ``count`` how often it occurs
    in the output: ``l = l / repetition if l > 0 else l * repetition``; then, where ``count > 0``,
    ``l = l - frequency * count - presence``. Computed in float32.

    Args:
        logits: ``[num_seqs, vocab_size]``, float32, last stride 1; read and written.
        token_ids: ``[total]``, int64, contiguous, each in ``[0, vocab_size)``: the tokens of all
            rows end to end, of each row first the prompt, then the output.
        cu_tokens: ``[num_seqs + 1]``, int32, contiguous: where each row's tokens begin; 0 first,
            ``total`` last.
        prompt_lens: ``[num_seqs]``, int32, contiguous: how many of a row's tokens are prompt.
        repetition_penalty: ``[num_seqs]``, float32, contiguous, finite, > 0; or one value for all
            rows. 1 changes nothing.
        presence_penalty: the same, finite. 0 changes nothing.
        frequency_penalty: the same, finite. 0 changes nothing.

    Returns:
        ``logits``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above; on the CPU also
            a value. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Keskar et al. 2019, arXiv:1909.05858, for the repetition penalty; the OpenAI API for
    the others.
    """
    op = "apply_penalties"
    rows = _core.sample_rows(logits, op)
    _core.apply_penalties(
        logits,
        token_ids,
        cu_tokens,
        prompt_lens,
        _per_row(op, "repetition_penalty", repetition_penalty, "float32", rows),
        _per_row(op, "presence_penalty", presence_penalty, "float32", rows),
        _per_row(op, "frequency_penalty", frequency_penalty, "float32", rows),
    )
    return logits


def sample(
    logits: Tensor,
    *,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
    seed: int | Tensor,
    position: int | Tensor,
    vocab_limit: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw one token per row. The filters apply in the order of the arguments.

    A row's token depends on its own logits and parameters alone. The random number is
    Philox4x32-10 with the seed as key and the position as counter, so that a sequence's tokens can
    be drawn again in any batch. Every parameter is a tensor with one value per row, contiguous, or
    one Python number for all rows, which on CUDA is copied there and waited for.

    Args:
        logits: ``[num_seqs, vocab_size]``, float32, last stride 1.
        temperature: float32, finite, >= 0. 0 takes the largest logit, of equal ones the lower id;
            else logits are divided by it.
        top_k: int32, >= 0: only the k largest logits stay, of equal ones the lower ids. 0 = all.
        top_p: float32, in (0, 1]: of those in descending order the shortest prefix whose
            probabilities sum to ``top_p`` or more.
        min_p: float32, in [0, 1]: only what has at least ``min_p`` times the largest probability.
        seed: int64.
        position: int64: index of the drawn token in its sequence.
        vocab_limit: ids from here on are never chosen, nor looked at; 1 to ``vocab_size``, which
            is the default.
        out: where to write, ``[num_seqs]``, int64, contiguous. Allocated when omitted.

    Returns:
        ``out``. A row with a NaN or an infinity > 0, or without any finite logit, gets -1.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above; on the CPU also
            a value. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: Holtzman et al. 2019, arXiv:1904.09751 (top_p); Nguyen et al. 2024, arXiv:2407.01082
    (min_p); Salmon et al. 2011, doi:10.1145/2063384.2063405 (Philox).
    """
    op = "sample"
    rows = _core.sample_rows(logits, op)
    if out is None:
        out = _core.sample_out(logits, op)
    _core.sample(
        out,
        logits,
        _per_row(op, "temperature", temperature, "float32", rows),
        _per_row(op, "top_k", top_k, "int32", rows),
        _per_row(op, "top_p", top_p, "float32", rows),
        _per_row(op, "min_p", min_p, "float32", rows),
        _per_row(op, "seed", seed, "int64", rows),
        _per_row(op, "position", position, "int64", rows),
        vocab_limit,
    )
    return out


def _per_row(op: str, name: str, value: Real | Tensor, dtype: str, rows: tuple[int, str]) -> Tensor:
    """A number once for each of ``rows``, their count and device; anything else as it is."""
    import numpy as np  # not at the top: it would be most of what importing the package takes

    if not isinstance(value, Real):
        return value
    if dtype != "float32":
        if not isinstance(value, Integral):
            kind = type(value).__name__
            raise TypeError(f"{op}: {name}: expected an integer or a tensor, got {kind}")
        info = np.iinfo(dtype)
        if not info.min <= int(value) <= info.max:
            raise ArgumentError(f"{op}: {name}: expected {dtype}, got an integer beyond it")
    try:
        count, device = rows
        with np.errstate(over="ignore"):  # the op refuses an infinity
            values = np.full(count, value, dtype)
    except OverflowError:  # an integer beyond float64
        raise ArgumentError(f"{op}: {name}: expected float32, got a number beyond it") from None
    return values if device == "cpu" else _core.from_numpy(values, device)
