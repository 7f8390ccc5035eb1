"""llama.cpp as a peer of the whole model, through the C functions that ``llama_cpp`` declares.

A batch goes in as token ids, the logits of its last token come out: no tokenizer, no sampler and no
Python object per token between the library and the clock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np

BATCH = 512
FILE_TYPES = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
}


@llama_cpp.llama_log_callback
def _keep_quiet(level, text, user_data):
    pass


llama_cpp.llama_log_set(_keep_quiet, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


def quantize(source: Path, target: Path, kind: str) -> None:
    """Writes ``source`` with all matrices of one type, embeddings and head included."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.pure = True
    params.allow_requantize = True
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise RuntimeError(f"llama.cpp could not quantise {source.name} to {kind}")


class LlamaModel:
    """A loaded GGUF file. Repacking of weights for this CPU is on, as by default."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # anonymous memory, like the others
        params.n_gpu_layers = 0
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise RuntimeError(f"llama.cpp could not load {path.name}")
        self.nbytes = llama_cpp.llama_model_size(self.handle)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.handle)
        )


class LlamaEngine:
    """One way to run a model: with or without llama.cpp's flash attention."""

    def __init__(self, name: str, model: LlamaModel, *, flash_attention: bool) -> None:
        self.name = name
        self.options = {"flash_attention": flash_attention}
        self.weight_bytes = model.nbytes
        self._model = model
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 2 * BATCH
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = 1
        params.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if flash_attention
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._context = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context for {name}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def set_threads(self, count: int) -> None:
        llama_cpp.llama_set_n_threads(self._context, count, count)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        llama_cpp.llama_memory_clear(self._memory, True)
        self._decode(ids, 0, range(len(ids)))
        return np.stack([self._logits_of(row) for row in range(len(ids))])

    def stream(self, ids: Sequence[int], count: int) -> Iterator[int]:
        """Greedy tokens; the first one costs the prefill."""
        llama_cpp.llama_memory_clear(self._memory, False)
        position, new = 0, list(ids)
        for _ in range(count):
            self._decode(new, position, (len(new) - 1,))
            position += len(new)
            new = [int(self._logits_of(len(new) - 1).argmax())]
            yield new[0]

    def _decode(self, ids: Sequence[int], position: int, outputs: Sequence[int]) -> None:
        batch = self._batch
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row] = token
            batch.pos[row] = position + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = row in outputs
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"{self.name}: llama_decode failed")

    def _logits_of(self, row: int) -> np.ndarray:
        """A view, valid until the next batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._model.vocab_size,))
