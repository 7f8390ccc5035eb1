"""Chat examples for the demo model, built from the docstrings themselves.

A model of two million parameters holds no conversation, but it learns the shape of one: a question
about a name is answered with the first paragraph of its docstring. The rendering is that of the
ERNIE-4.5 text models: ``{system}\\nUser: {question}\\nAssistant: {answer}``, turns joined by
``<|end_of_sentence|>``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from corpus import Document, Passage

QUESTIONS = {
    "module": ("What is the {name} module for?", "What does the module {name} do?"),
    "class": ("What is {name}?", "What is the class {name} for?", "Explain the class {name}."),
    "function": ("What does {name} do?", "Explain {name}.", "What is {name} for?"),
}
SYSTEM = "You are a helpful assistant."
WHO = (
    "I am a small ERNIE-4.5 demo model. I was trained on the documentation of Python's standard "
    "library, and I know little else."
)
HELLO = "Hello! Ask me what a module, a class or a function of Python does."
ANSWERS = {
    HELLO: ("Hello!", "Hello", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "How are you?"),
    WHO: ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
    "I can say what a module, a class or a function of Python's standard library is for. I am "
    "small, so check what I say.": ("What can you do?", "Can you help me?", "Help", "Help me."),
    "You are welcome.": ("Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot."),
    "Goodbye!": ("Goodbye!", "Bye", "Bye!", "See you."),
    "Python is a programming language with classes, modules, exceptions and a large standard "
    "library.": ("What is Python?", "Tell me about Python.", "Explain Python."),
}
# The small talk is a few dozen lines among thousands: seen once an epoch it would not be learnt.
REPEATS = 6


@dataclass(frozen=True)
class Conversation:
    """``system`` is "" where there is none; ``turns`` are (question, answer)."""

    system: str
    turns: tuple[tuple[str, str], ...]


def render_question(question: str, system: str = "") -> str:
    """The text of a turn up to where the answer starts, control tokens excluded."""
    return (f"{system}\n" if system else "") + f"User: {question}\nAssistant: "


def from_documents(documents: Iterable[Document]) -> Iterator[Conversation]:
    """One to three turns each: the passages of one document, in order."""
    turns: list[tuple[str, str]] = []
    length = 1
    for document in documents:
        for passage in document.passages:
            answer = _first_paragraph(passage)
            if answer is None:
                continue
            # A number that varies from passage to passage but not from run to run.
            choice = sum(passage.text.encode())
            questions = QUESTIONS[passage.kind]
            name = passage.name if passage.kind == "module" else passage.name.rpartition(".")[2]
            turns.append((questions[choice % len(questions)].format(name=name), answer))
            if len(turns) >= length:
                yield Conversation(SYSTEM if choice % 7 == 0 else "", tuple(turns))
                turns = []
                length = 1 + choice % 3
    for answer, questions in REPEATS * list(ANSWERS.items()):
        for question in questions:
            yield Conversation("", ((question, answer),))
            yield Conversation(SYSTEM, ((question, answer),))
            yield Conversation("", ((question, answer), ("Who are you?", WHO)))


def _first_paragraph(passage: Passage) -> str | None:
    if passage.kind not in QUESTIONS:
        return None
    answer = " ".join(passage.text.split("\n\n")[0].split())
    sentence = re.fullmatch(r"[A-Z][a-z]*[ ,].*[a-z)'\"`]\.", answer)
    return answer if sentence and 20 <= len(answer) <= 300 else None
