"""The demo model's tokenizer: sentencepiece BPE in the arrangement of the ERNIE-4.5 family.

``<unk>`` 0 (also padding), ``<s>`` 1, ``</s>`` 2, the digits 3..12, byte ``b`` at 13 + b, then what
BPE learned, and the two control tokens of the chat template at the very end, separator first.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

import sentencepiece
from conversations import Conversation, render_question

BOS, EOS = 1, 2
SEPARATOR, CLASSIFIER = "<|end_of_sentence|>", "<|begin_of_sentence|>"
CHAT_TEMPLATE = (
    "{{ '<|begin_of_sentence|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '<|end_of_sentence|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def train_model(lines: Iterable[str], size: int) -> bytes:
    """Trains on ``lines`` (no newlines inside: a newline is always its byte token).

    Returns:
        The serialised model, ``size`` pieces, the same for the same lines.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size - 2,  # the control tokens follow
        byte_fallback=True,
        user_defined_symbols=list("0123456789"),
        split_digits=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9998,  # the odd accented name is spelled in bytes
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        minloglevel=1,
    )
    # sentencepiece numbers its own control symbols before all else. Serialised protocol buffers
    # concatenate, so the two pieces are appended where the family has them.
    return model.getvalue() + _control_piece(SEPARATOR) + _control_piece(CLASSIFIER)


def _control_piece(piece: str) -> bytes:
    """``ModelProto.pieces`` (field 1) with piece (1), score (2) and type (3) = CONTROL (3)."""
    text = piece.encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x03"
    return b"\x0a" + bytes([len(body)]) + body


class Vocabulary:
    """Text and conversations to token ids."""

    def __init__(self, model: bytes) -> None:
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.separator = self.processor.piece_to_id(SEPARATOR)
        self.classifier = self.processor.piece_to_id(CLASSIFIER)

    def __len__(self) -> int:
        return self.processor.get_piece_size()

    def encode_text(self, text: str) -> list[int]:
        """``<s> text </s>``."""
        return [BOS, *self.processor.encode(text), EOS]

    def encode_conversation(self, conversation: Conversation) -> list[int]:
        """As the chat template renders it, the last answer ending with ``</s>``.

        Question and answer are encoded apart, as they are when the model is asked: "Assistant: "
        ends with a space of its own, and the answer begins without one.
        """
        ids = [self.classifier]
        system = conversation.system
        for question, answer in conversation.turns:
            ids += self.processor.encode(render_question(question, system))
            ids += [*self.processor.encode(answer), self.separator]
            system = ""
        return [*ids[:-1], EOS]


def tokenizer_config(max_length: int) -> dict[str, object]:
    """The content of ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "Ernie4_5_Tokenizer",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": SEPARATOR,
        "cls_token": CLASSIFIER,
        "chat_template": CHAT_TEMPLATE,
    }
