"""Steps in which every sequence has one new token, on a GPU: kept as CUDA graphs and repeated.

Launching the kernels of such a step one by one takes the host longer than the GPU takes to run them.
A graph has fixed shapes and addresses, so a step is padded to one of few sizes, each with its own
buffers: rows up to a power of two, the longest sequence up to a power of four. What changes from step
to step goes to the GPU in one copy, the graph's first node.

Rows of padding have a sequence of no tokens, write to no slot of the cache, and nobody reads them.
With ``ERNIE_CUDA_GRAPHS=0`` in the environment, and where a GPU cannot capture, the same padded steps
run kernel by kernel, so that the results are the same to the bit. Unless the batch-invariant kernels
are chosen, the order of summation depends on the padded size, as it does on any number of rows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ernie_kernels import _core
from ernie_kernels._core import Graph, Tensor, empty, from_numpy
from ernie_kernels.errors import UnsupportedError
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.models.layers import LayerKVCache
from ernie_kernels.models.workspace import LayerBuffers, Workspace
from ernie_kernels.runner.batch import ForwardBatch, QueryRows, TokenSpan
from ernie_kernels.runner.transfers import Transfers, Upload

logger = logging.getLogger("ernie_kernels")

# Up to this many keys attention is not split; beyond, a longer bound costs some blocks that find
# nothing to do. Few lengths mean few graphs.
SHORTEST_LENGTH, LENGTH_FACTOR = 256, 4


def rows_for(num_seqs: int, max_num_seqs: int) -> int:
    """Rows of the step that ``num_seqs`` sequences take part in."""
    return min(1 << (num_seqs - 1).bit_length(), max_num_seqs)


def length_for(seq_len: int, max_seq_len: int) -> int:
    """The bound of the step whose longest sequence has ``seq_len`` tokens."""
    length = SHORTEST_LENGTH
    while length < seq_len:
        length *= LENGTH_FACTOR
    return min(length, max_seq_len)


def graphs_are_wanted() -> bool:
    return os.environ.get("ERNIE_CUDA_GRAPHS") != "0"


class DecodeStep:
    """Steps of one padded size, over fixed memory.

    Args:
        buffers: of as many rows as ``cu_seqlens_q`` has sequences.
        logits: ``[num_rows, vocab_size]`` float32, written.
        max_seq_len: bound of the sequences, in tokens.
    """

    def __init__(
        self,
        model: ErnieForCausalLM,
        kv_caches: list[LayerKVCache],
        buffers: LayerBuffers,
        logits: Tensor,
        cu_seqlens_q: Tensor,
        transfers: Transfers,
        *,
        max_seq_len: int,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._buffers = buffers
        self._logits = logits
        self._block_size = block_size
        num_rows = len(logits)
        self._upload = Upload(
            transfers,
            {
                "input_ids": (np.int64, (num_rows,)),
                "positions": (np.int64, (num_rows,)),
                "seq_lens": (np.int32, (num_rows,)),
                "slot_mapping": (np.int32, (num_rows,)),
                "block_table": (np.int32, (num_rows, -(-max_seq_len // block_size))),
                "flags": (np.uint8, (num_rows,)),
            },
        )
        every_row = QueryRows(None, cu_seqlens_q, max_seqlen_q=1)
        self._batch = ForwardBatch(
            **self._upload.tensors, queries=every_row, outputs=every_row, max_seq_len=max_seq_len
        )
        self._has_run = False
        self._graph: Graph | None = None

    @property
    def flags(self) -> Tensor:
        """What routers have said of each row, as in :class:`ForwardBatch`."""
        return self._batch.flags

    def fill(self, spans: Sequence[TokenSpan]) -> None:
        """Let the next run be about these sequences, as many as there are rows or fewer."""
        count, size = len(spans), self._block_size
        arrays = self._upload.arrays()
        positions, table = arrays["positions"], arrays["block_table"]
        arrays["input_ids"][:count] = [span.token_ids[0] for span in spans]
        arrays["input_ids"][count:] = 0
        numbers = np.array([span.start for span in spans])
        positions[:count] = numbers + [span.position_delta for span in spans]
        positions[count:] = 0
        arrays["seq_lens"][:count] = numbers + 1
        arrays["seq_lens"][count:] = 0
        for row, span in zip(table, spans, strict=False):
            used = -(-span.stop // size)
            row[:used] = span.blocks[:used]
        blocks = table[np.arange(count), numbers // size]
        arrays["slot_mapping"][:count] = blocks * size + numbers % size
        arrays["slot_mapping"][count:] = -1

    def queue(self) -> None:
        """Queue the step, kernel by kernel."""
        self._upload.send()
        hidden_states = self._model(self._batch, self._kv_caches, self._buffers)
        self._model.logits(hidden_states, out=self._logits)
        self._has_run = True

    def queue_graph(self, device: str) -> None:
        """Queue the step as a graph, from the second time on.

        The first time loads kernels and asks what the GPU is, which a capture may forbid.

        Raises:
            UnsupportedError: there can be no graph; nothing has been queued.
        """
        if not self._has_run:
            return self.queue()
        if self._graph is None:
            self._graph = Graph(device, self.queue)
        return self._graph.launch()


class DecodeSteps:
    """All padded sizes of a model; a size comes into being when a step first needs it.

    Args:
        max_num_seqs: sequences of a step.
        max_seq_len: tokens of a sequence.
    """

    def __init__(
        self,
        model: ErnieForCausalLM,
        kv_caches: list[LayerKVCache],
        workspace: Workspace,
        vocab_size: int,
        transfers: Transfers,
        *,
        max_num_seqs: int,
        max_seq_len: int,
        block_size: int,
    ) -> None:
        self._model = model
        self._kv_caches = kv_caches
        self._workspace = workspace
        self._transfers = transfers
        self._max_num_seqs = max_num_seqs
        self._max_seq_len = max_seq_len
        self._block_size = block_size
        self._logits = empty([max_num_seqs, vocab_size], "float32", transfers.device)
        first_rows = np.arange(max_num_seqs + 1, dtype=np.int32)
        self._cu_seqlens_q = from_numpy(first_rows, transfers.device)
        nbytes = max(self._attention_bytes(*size) for size in self._sizes())
        self._attention_workspace = empty([nbytes], "uint8", transfers.device)
        self._steps: dict[tuple[int, int, bool], DecodeStep] = {}
        self._use_graphs = graphs_are_wanted()

    def logits(self, spans: Sequence[TokenSpan]) -> tuple[Tensor, Tensor]:
        """Run one step of one token for each span, without waiting for it.

        Returns:
            Logits of each span's next token: float32 ``[len(spans), vocab_size]``; and the flags of
            each row. Valid until the next call.
        """
        step = self._step_for(spans)
        step.fill(spans)
        if self._use_graphs:
            try:
                step.queue_graph(self._transfers.device)
            except UnsupportedError as error:
                logger.warning("decoding without CUDA graphs: %s", error)
                self._use_graphs = False
        if not self._use_graphs:
            step.queue()
        return self._logits[: len(spans)], step.flags[: len(spans)]

    def _step_for(self, spans: Sequence[TokenSpan]) -> DecodeStep:
        num_rows = rows_for(len(spans), self._max_num_seqs)
        length = length_for(max(span.stop for span in spans), self._max_seq_len)
        # Kernels are chosen when the graph is made.
        size = num_rows, length, _core.batch_invariant()
        step = self._steps.get(size)
        if step is None:
            buffers = self._workspace.rows(num_rows)
            step = self._steps[size] = DecodeStep(
                self._model,
                self._kv_caches,
                replace(buffers, attention_workspace=self._attention_workspace),
                self._logits[:num_rows],
                self._cu_seqlens_q[: num_rows + 1],
                self._transfers,
                max_seq_len=length,
                block_size=self._block_size,
            )
        return step

    def _sizes(self) -> set[tuple[int, int]]:
        """Rows and lengths of all padded sizes."""
        lengths, rows = {self._max_seq_len}, {self._max_num_seqs}
        length = SHORTEST_LENGTH
        while length < self._max_seq_len:
            lengths.add(length)
            length *= LENGTH_FACTOR
        rows |= {1 << bit for bit in range(self._max_num_seqs.bit_length())}
        return {(count, length) for count in rows for length in lengths}

    def _attention_bytes(self, num_rows: int, length: int) -> int:
        # Lengths of sequences: only how many there are is looked at.
        seq_lens = self._cu_seqlens_q[:num_rows]
        return _core.attention_workspace_size(
            self._workspace.rows(num_rows).query,
            self._kv_caches[0].k_cache,
            seq_lens,
            1,
            length,
        )
