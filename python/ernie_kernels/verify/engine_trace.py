"""The engine's own layers, run one at a time, and all that goes in and out of their parts.

The objects are those of the loaded model; batches, buffers and caches are made as the runner makes
them. Each sequence is prefilled but for its last tokens, which come one by one as in generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ernie_kernels import ops
from ernie_kernels._core import Tensor, empty, from_numpy
from ernie_kernels.errors import InternalError
from ernie_kernels.models.config import ModelConfig
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.experts import MoE
from ernie_kernels.models.layers import LayerKVCache, Linear, RMSNorm
from ernie_kernels.models.workspace import Workspace
from ernie_kernels.ops import ExpertWeights
from ernie_kernels.runner.batch import ForwardBatch, TokenSpan
from ernie_kernels.runner.media import PromptMedia
from ernie_kernels.runner.visual_features import Features
from ernie_kernels.verify.expert_trace import ExpertTrace, as_float64, run_experts
from ernie_kernels.verify.formulas import Array

BLOCK_SIZE = 32
DECODED_TOKENS = 4  # at the end of each sequence
NUMPY_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(slots=True)
class LayerTrace:
    """What one layer read and wrote: rows are the tokens of all sequences, end to end.

    ``normed`` and ``middle_normed`` are the results of the two norms, ``middle`` is the residual
    stream between attention and MLP.
    """

    hidden: Array | None  # what the layer before leaves to be added; None before the first
    residual: Array
    entered: Array  # their sum
    normed: Array
    query: Array  # [tokens, heads, head_dim], rotated
    key: Array  # rotated
    value: Array
    attention: Array  # [tokens, heads, head_dim]
    projected: Array  # o_proj
    middle: Array
    middle_normed: Array
    gated: Array | None  # silu(gate) * up; None with experts
    experts: ExpertTrace | None
    down: Array  # what the MLP or the experts make of it


@dataclass(slots=True)
class _Step:
    """A batch, and what the layer before the next has made of its rows."""

    batch: ForwardBatch
    rows: npt.NDArray[np.int64]  # where they belong among the tokens of all sequences
    hidden: Tensor | None
    residual: Tensor


class EngineTrace:
    """Runs a loaded model layer by layer.

    Args:
        prompts: token ids of each sequence, int64.
        device, dtype: those that the model was loaded with.
        media: what each sequence shows, if any does; :meth:`show` gives their features.
        first_vision_id: ids from this one on ask the vision experts; None: by their place.
    """

    def __init__(
        self,
        model: ErnieForCausalLM,
        config: ModelConfig,
        prompts: Sequence[npt.NDArray[np.int64]],
        *,
        device: str,
        dtype: str,
        media: Sequence[PromptMedia | None] | None = None,
        first_vision_id: int | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self._config = config
        self._prompts = prompts
        self._media = [None] * len(prompts) if media is None else list(media)
        self._first_vision_id = first_vision_id
        self._num_tokens = sum(len(ids) for ids in prompts)
        self._num_blocks = sum(-(-len(ids) // BLOCK_SIZE) for ids in prompts)
        self._workspace = Workspace(
            config, self._num_tokens, dtype, device, expert_dtype=model.expert_dtype
        )

    def show(self, features: Tensor) -> None:
        """The features of all that the sequences show, one after the other; before any layer runs."""
        first = 0
        for media in self._media:
            if media is None:
                continue
            for index, part in enumerate(media.parts):
                stop = first + part.item.num_tokens
                media.features[index] = Features(features[first:stop])
                first = stop

    def inputs(self) -> tuple[Array, Array, Array]:
        """What the first layer reads: rows, positions ``[3, num_tokens]`` and banks of all tokens."""
        rows = np.zeros((self._num_tokens, self._config.hidden_size))
        positions, banks = np.zeros((3, self._num_tokens)), np.zeros(self._num_tokens)
        for step in self._steps:
            batch, three = step.batch, step.batch.mrope_positions
            rows[step.rows] = as_float64(step.residual)
            positions[:, step.rows] = as_float64(batch.positions if three is None else three)
            if batch.banks is not None:
                banks[step.rows] = as_float64(batch.banks)
        return rows, positions, banks

    def embedding_rows(self, chunk: int) -> Iterator[tuple[int, Array]]:
        """The whole table as the engine looks it up, ``chunk`` rows at a time."""
        vocab_size = self._config.vocab_size
        for first in range(0, vocab_size, chunk):
            ids = np.arange(first, min(first + chunk, vocab_size), dtype=np.int64)
            out = empty([len(ids), self._config.hidden_size], self.dtype, self.device)
            table = self.model.model.embed_tokens
            yield first, as_float64(table(from_numpy(ids, self.device), out=out))

    def layers(self) -> Iterator[LayerTrace]:
        """Run the next layer over all steps, in order; each yields what it did."""
        for layer in self.model.model.layers:
            cache = self._empty_cache()
            trace = _Recorder(self._num_tokens)
            for step in self._steps:
                trace.rows = step.rows
                self._run_layer(layer, step, cache, trace)
            arrays, experts = trace.arrays, None
            query, key, value = self._heads(arrays.pop("qkv"))
            if isinstance(layer.mlp, MoE):
                experts = ExpertTrace.taken_from(arrays, len(layer.mlp.gate_up_projs))
            yield LayerTrace(
                hidden=arrays.pop("hidden", None),
                query=query,
                key=key,
                value=value,
                gated=arrays.pop("gated", None),
                experts=experts,
                **arrays,
            )

    def final(self) -> tuple[Array, Array, Array, Array]:
        """What the last layer leaves, hidden and residual, their sum, and its norm."""
        trace = _Recorder(self._num_tokens)
        for step in self._steps:
            trace.rows = step.rows
            if step.hidden is None:
                raise InternalError("verify: no layer has run")
            trace.keep(hidden=step.hidden, residual=step.residual)
            normed, entered = self.model.model.norm.add(step.hidden, step.residual)
            trace.keep(normed=normed, entered=entered)
        a = trace.arrays
        return a["hidden"], a["residual"], a["entered"], a["normed"]

    def logits(self, normed: Array) -> Array:
        return as_float64(self.model.logits(self.tensor(normed)))

    def linear(self, layer: Linear, x: Array, *, dtype: str | None = None) -> Array:
        """A linear layer of the model on other inputs; its results are not rounded to 16 bits.

        ``dtype``: of the inputs where it is not that of the activations.
        """
        return as_float64(layer(self.tensor(x, dtype), dtype="float32"))

    def expert_linear(self, experts: ExpertWeights, x: Array) -> Array:
        """All experts on the same few rows, one expert's results below the other's."""
        offsets = np.arange(experts.num_experts + 1) * len(x)
        rows = np.tile(np.arange(len(x), dtype=np.int32), experts.num_experts)
        return as_float64(
            ops.grouped_linear(
                self.tensor(x, "float32"),
                experts,
                from_numpy(offsets, self.device),
                source_rows=from_numpy(rows, self.device),
            )
        )

    def norm(self, norm: RMSNorm, x: Array) -> Array:
        given = self.tensor(x)
        return as_float64(norm(given, out=empty(list(given.shape), self.dtype, self.device)))

    def tensor(self, x: Array, dtype: str | None = None) -> Tensor:
        """Rounded to the dtype of the activations, or to another, on the device."""
        rounded = x.astype(np.float32).astype(NUMPY_DTYPES[dtype or self.dtype])
        return from_numpy(rounded, self.device)

    # ---------------------------------------------------------------------------------------- steps

    @cached_property
    def _steps(self) -> list[_Step]:
        """Made when all features are there."""
        return [self._first_state(*step) for step in self._cut(self._prompts)]

    def _cut(
        self, prompts: Sequence[npt.NDArray[np.int64]]
    ) -> Iterator[tuple[list[TokenSpan], npt.NDArray[np.int64]]]:
        """The spans of each step, and where their rows belong."""
        lengths = [len(ids) for ids in prompts]
        starts = np.cumsum([0, *lengths])
        # In an order of their own, so that a mistake in the block table shows.
        free = np.random.default_rng(0).permutation(self._num_blocks).astype(np.int32)
        blocks = np.split(free, np.cumsum([-(-n // BLOCK_SIZE) for n in lengths])[:-1])
        prefilled = [max(1, n - DECODED_TOKENS) for n in lengths]
        cuts = [(0, p) for p in prefilled]
        while any(begin < end for begin, end in cuts):
            spans, rows = [], []
            for index, (begin, end) in enumerate(cuts):
                if begin < end:
                    ids = prompts[index][begin:end]
                    media = self._media[index]
                    spans.append(TokenSpan(ids, begin, blocks[index], len(ids), media))
                    rows.append(np.arange(begin, end) + starts[index])
            yield spans, np.concatenate(rows)
            cuts = [(end, min(end + 1, n)) for (_, end), n in zip(cuts, lengths, strict=True)]

    def _first_state(self, spans: list[TokenSpan], rows: npt.NDArray[np.int64]) -> _Step:
        batch = ForwardBatch.from_spans(spans, BLOCK_SIZE, self.device, self._first_vision_id)
        residual = empty([len(rows), self._config.hidden_size], self.dtype, self.device)
        return _Step(batch, rows, None, self.model.model.embed(batch, out=residual))

    def _empty_cache(self) -> LayerKVCache:
        config = self._config
        shape = [self._num_blocks, config.num_key_value_heads, BLOCK_SIZE, config.head_dim]
        return LayerKVCache(
            empty(shape, self.dtype, self.device), empty(shape, self.dtype, self.device)
        )

    def _heads(self, qkv: Array) -> list[Array]:
        """Queries, keys and values, which the engine keeps side by side."""
        heads, kv_heads = self._config.num_attention_heads, self._config.num_key_value_heads
        by_head = qkv.reshape(len(qkv), heads + 2 * kv_heads, self._config.head_dim)
        return np.split(by_head, [heads, heads + kv_heads], axis=1)

    def _run_layer(self, layer, step: _Step, cache: LayerKVCache, trace: _Recorder) -> None:
        """As ``DecoderLayer.__call__``, with a look at everything in between."""
        batch = step.batch
        buffers = self._workspace.rows(len(step.rows))
        self.model.model.write_rope_table(batch, out=buffers.rope_table)
        trace.keep(residual=step.residual)
        if step.hidden is None:
            normed = layer.input_layernorm(step.residual, out=buffers.hidden_states)
        else:
            trace.keep(hidden=step.hidden)
            normed, _ = layer.input_layernorm.add(step.hidden, step.residual)
        trace.keep(entered=step.residual, normed=normed)
        layer.self_attn.project(normed, batch, cache, buffers)
        trace.keep(qkv=buffers.qkv)
        projected = layer.self_attn.attend(buffers.query, batch.queries, batch, cache, buffers)
        trace.keep(attention=buffers.attention, projected=projected)
        normed, middle = layer.post_attention_layernorm.add(projected, step.residual)
        trace.keep(middle=middle, middle_normed=normed)
        down = layer.feed_forward(normed, buffers, None, batch.banks)
        trace.keep(down=down)
        # The buffers serve the next step as well.
        step.hidden = from_numpy(down.numpy().copy(), self.device)
        if isinstance(layer.mlp, MoE):
            has_banks = batch.banks is not None
            trace.keep_arrays(
                **run_experts(layer.mlp, normed, buffers.of_experts, has_banks=has_banks)
            )
        else:
            trace.keep(gated=buffers.mlp.gated)


class _Recorder:
    """Copies of tensors by name, the rows of each step where they belong."""

    def __init__(self, num_tokens: int) -> None:
        self.arrays: dict[str, Array] = {}
        self.rows: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._num_tokens = num_tokens

    def keep(self, **tensors: Tensor) -> None:
        self.keep_arrays(**{name: as_float64(tensor) for name, tensor in tensors.items()})

    def keep_arrays(self, **arrays: Array) -> None:
        for name, array in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = np.full((self._num_tokens, *array.shape[1:]), np.nan)
            self.arrays[name][self.rows] = array
