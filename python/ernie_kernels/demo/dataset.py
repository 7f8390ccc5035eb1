"""The training text as token ids: three renderings to train on, one to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import conversations
import corpus
import numpy as np
from vocabulary import Vocabulary, train_model


@dataclass(frozen=True)
class TokenSets:
    """Token ids; a row per document, ``<s>`` first and ``</s>`` last."""

    train: list[np.ndarray]  # everything that is trained on, some texts in several renderings
    train_documents: list[np.ndarray]  # every training document once
    tuning: list[np.ndarray]
    held_out: list[np.ndarray]


def tokenize(split: corpus.Split, vocab_size: int) -> tuple[bytes, Vocabulary, TokenSets]:
    """Trains the tokenizer on the training text and encodes everything with it."""
    dialogues = list(conversations.from_documents(split.train))
    model_proto = train_model(_lines(split.train, dialogues), vocab_size)
    vocabulary = Vocabulary(model_proto)

    def rows(documents: list[corpus.Document]) -> list[np.ndarray]:
        return [np.array(vocabulary.encode_text(document.text)) for document in documents]

    # Some docstrings once more without the signature above them: a text may start with one.
    bare = [
        np.array(vocabulary.encode_text(passage.text))
        for document in split.train
        for passage in document.passages
        if passage.signature and len(passage.text) % 3 == 0
    ]
    spoken = [np.array(vocabulary.encode_conversation(dialogue)) for dialogue in dialogues]
    documents = rows(split.train)
    tokens = TokenSets(
        train=documents + bare + spoken,
        train_documents=documents,
        tuning=rows(split.tuning),
        held_out=rows(split.held_out),
    )
    return model_proto, vocabulary, tokens


def _lines(
    documents: list[corpus.Document], dialogues: list[conversations.Conversation]
) -> Iterator[str]:
    for document in documents:
        yield from filter(None, document.text.split("\n"))
    for dialogue in dialogues:
        for question, answer in dialogue.turns:
            yield from (conversations.render_question(question) + answer).split("\n")


def token_stream(rows: list[np.ndarray], length: int, seed: int) -> Iterator[np.ndarray]:
    """``length`` + 1 tokens at a time, the documents in a new order in each pass."""
    random = np.random.default_rng(seed)
    pending = np.zeros(0, dtype=np.int64)
    while True:
        order = random.permutation(len(rows))
        pending = np.concatenate([pending, *(rows[i] for i in order)])
        while len(pending) > length:
            yield pending[: length + 1]
            pending = pending[length:]


def digest(documents: list[corpus.Document]) -> str:
    """SHA-256 of the text: equal on two machines if and only if they train on the same text."""
    joined = "\0".join(document.text for document in documents)
    return hashlib.sha256(joined.encode()).hexdigest()


def byte_count(documents: list[corpus.Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)
