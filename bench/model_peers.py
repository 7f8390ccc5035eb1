"""The engines that ``bench_model.py`` runs side by side, ours and the peers, behind one shape."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import ernie_kernels as ek
from model_sizes import read_per_token

MAX_MODEL_LEN = 1024
# What LLM.from_pretrained takes for words that it has not.
ALL_WINT4 = "wint4-all"
MIXED = {ALL_WINT4: {"dense_quant_type": "wint4", "moe_quant_type": "wint4"}}

# Of one weight of an expert, scales included where they are many.
BITS = {
    "bfloat16": 16,
    "float32": 32,
    "wint8": 8,
    "w8a8": 8,
    "wint4": 4,
    ALL_WINT4: 4,
    "BF16": 16,
    "F16": 16,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
    "Q4_K": 4.5,
}


def read_of(folder: Path, kind: str, nbytes: int) -> int:
    """Bytes that a decoded token reads of a model's weights."""
    config = json.loads((folder / "config.json").read_text())
    return read_per_token(nbytes, BITS[kind], config)


class Engine(Protocol):
    """A loaded model that answers one request at a time.

    Attributes:
        name: ``"ours wint8"``, ``"transformers float32"``, ``"llama.cpp Q8_0"``.
        weight_bytes: read for every decoded token.
        options: settings of which the faster one counts; engines of one name differ in them.
    """

    name: str
    weight_bytes: int
    options: dict[str, Any]

    def set_threads(self, count: int) -> None: ...

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Of every position: float32 ``[len(ids), vocab_size]``."""
        ...

    def stream(self, ids: Sequence[int], count: int) -> Iterator[int]:
        """Greedy tokens, one by one; the first one costs the prefill."""
        ...


class OurEngine:
    """The way of ``LLM.generate``: scheduler, sampler and streaming included."""

    def __init__(self, folder: Path, dtype: str, quantization: str | None) -> None:
        self._llm = ek.LLM.from_pretrained(
            folder,
            device="cpu",
            dtype=dtype,
            quantization=MIXED.get(quantization, quantization),
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=1,
        )
        self.name = f"ours {quantization or self._llm.dtype}"
        self.options: dict[str, Any] = {}
        kind = quantization or self._llm.dtype
        self.weight_bytes = read_of(folder, kind, self._llm.stats()["weight_bytes"])

    def set_threads(self, count: int) -> None:
        ek.set_num_threads(count)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._llm.forward([ids])[0]

    def stream(self, ids: Sequence[int], count: int) -> Iterator[int]:
        params = ek.SamplingParams(max_tokens=count, ignore_eos=True)
        known = self._llm.stats()["prefix_hit_tokens"]
        for chunk in self._llm.generate(prompt_token_ids=[ids], params=params, stream=True):
            yield from chunk.token_ids
        if self._llm.stats()["prefix_hit_tokens"] != known:
            raise RuntimeError(f"{self.name}: part of the prompt came from the prefix cache")


class TransformersEngine:
    """``Ernie4_5ForCausalLM`` with its SDPA attention and dynamic cache."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_grad_enabled(False)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self.name = f"transformers {dtype}"
        self.options: dict[str, Any] = {}
        # Tied weights are one parameter.
        nbytes = sum(p.nbytes for p in self._model.parameters())
        self.weight_bytes = read_of(folder, dtype, nbytes)

    def set_threads(self, count: int) -> None:
        self._torch.set_num_threads(count)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._model(self._torch.tensor([ids])).logits[0].float().numpy()

    def stream(self, ids: Sequence[int], count: int) -> Iterator[int]:
        new, cache = self._torch.tensor([ids]), None
        for _ in range(count):
            out = self._model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            new = out.logits[:, -1].argmax(-1, keepdim=True)
            yield new.item()


def our_engines(folder: Path, dtype: str, quantizations: Sequence[str]) -> list[Engine]:
    """One for each word; "none" runs the weights as they are stored."""
    engines: list[Engine] = []
    for word in quantizations:
        try:
            engines.append(OurEngine(folder, dtype, None if word == "none" else word))
        except (ek.ArgumentError, ek.UnsupportedError) as error:
            print(f"left out: ours {word}: {error}", file=sys.stderr)
    return engines


def transformers_engines(folder: Path, dtypes: Sequence[str]) -> list[Engine]:
    return [TransformersEngine(folder, dtype) for dtype in dtypes]


def llama_engines(folder: Path, kinds: Sequence[str], cache: Path) -> list[Engine]:
    """Each type with and without flash attention."""
    import gguf  # noqa: F401  (named here, rather than from within a conversion)

    from gguf_file import gguf_file
    from llama_peer import LlamaEngine, LlamaModel

    engines: list[Engine] = []
    for kind in kinds:
        model = LlamaModel(gguf_file(folder, cache, kind))
        for flash in (True, False):
            engine = LlamaEngine(f"llama.cpp {kind}", model, flash_attention=flash)
            engine.weight_bytes = read_of(folder, kind, model.nbytes)
            engines.append(engine)
    return engines


def peer_engines(folder: Path, peers: Sequence[str], cache: Path) -> list[Engine]:
    """Those of ``--peers``; what is not installed is named and left out.

    Args:
        peers: ``transformers/DTYPE`` and ``llama.cpp/TYPE``.
        cache: where GGUF files are kept.
    """
    words = {"transformers": [], "llama.cpp": []}
    for peer in peers:
        family, _, kind = peer.partition("/")
        words[family].append(kind)
    makers: dict[str, tuple[Callable[[], list[Engine]], str]] = {
        "transformers": (
            lambda: transformers_engines(folder, words["transformers"]),
            "pip install torch transformers",
        ),
        "llama.cpp": (
            lambda: llama_engines(folder, words["llama.cpp"], cache),
            "pip install gguf llama-cpp-python (the latter is compiled for this CPU)",
        ),
    }
    engines: list[Engine] = []
    for family, (make, how) in makers.items():
        if not words[family]:
            continue
        try:
            engines += make()
        except ImportError as error:
            print(f"left out: {family}: {error}; {how}", file=sys.stderr)
    return engines
