"""The training text: what Python's standard library says about itself.

Every machine with Python has it: docstrings of modules, classes and functions (read from the
sources with ``ast``, nothing is imported), docstrings of compiled modules, longer comments, and
the language reference behind ``help("topics")``. One :class:`Passage` is one docstring, one
comment or one section; one :class:`Document` is what belongs together, such as a class with its
methods.

Documents are held out whole, by a hash of their text. Because the library repeats itself (the
same sentence documents the C and the Python version of a module), a passage whose five-word
sequences were mostly seen before is dropped, and a held-out passage that shares more than a
quarter of them with the training text is dropped too: what remains is text the model never saw.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.machinery import BuiltinImporter, ExtensionFileLoader
from pathlib import Path

# Not documentation of the library: its tests, an editor, a museum of grammars, and what the
# machine's owner installed. `this` and `antigravity` act when imported, and say little.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "idle_test", "lib2to3", "site-packages"}
SHINGLE_WORDS = 5
SEEN_BEFORE = 0.6  # share of a passage's shingles that makes it a near-duplicate
LEAKED = 0.25  # the same, for a held-out passage against the training text


@dataclass(frozen=True)
class Passage:
    """One piece of documentation.

    ``kind`` is "module", "class", "function", "comment" or "section"; ``signature`` is a line such
    as ``def name(args):``, or "" where there is none.
    """

    name: str
    kind: str
    signature: str
    text: str


@dataclass(frozen=True)
class Document:
    """Passages that belong together, held out or trained on as one."""

    passages: tuple[Passage, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(
            f"{passage.signature}\n{passage.text}" if passage.signature else passage.text
            for passage in self.passages
        )

    def bucket(self) -> int:
        """0..99, from the text alone, so that it is the same on every machine."""
        digest = hashlib.blake2b(self.text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % 100


@dataclass(frozen=True)
class Split:
    """``tuning`` chooses among models and smoothings; ``held_out`` is only ever measured."""

    train: list[Document]
    tuning: list[Document]
    held_out: list[Document]


def load() -> Split:
    """Collects, deduplicates and splits: about 3 % held out, 2 % for tuning."""
    train: list[Document] = []
    tuning: list[Document] = []
    held_out: list[Document] = []
    for document in _without_repetition(_collect()):
        bucket = document.bucket()
        (held_out if bucket < 3 else tuning if bucket < 5 else train).append(document)
    known = {shingle for document in train for shingle in _shingles(document.text)}
    return Split(train, _unseen(tuning, known), _unseen(held_out, known))


# --- deduplication ---------------------------------------------------------------------------


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    last = max(len(words) - SHINGLE_WORDS, 0)
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(last + 1)}


def _without_repetition(documents: Iterable[Document]) -> Iterator[Document]:
    seen: set[tuple[str, ...]] = set()
    for document in documents:
        kept = []
        for passage in document.passages:
            shingles = _shingles(passage.text)
            if len(shingles & seen) < SEEN_BEFORE * len(shingles):
                kept.append(passage)
            seen |= shingles
        if kept:
            yield replace(document, passages=tuple(kept))


def _unseen(documents: Iterable[Document], known: set[tuple[str, ...]]) -> list[Document]:
    remaining = []
    for document in documents:
        kept = []
        for passage in document.passages:
            shingles = _shingles(passage.text)
            if len(shingles & known) <= LEAKED * len(shingles):
                kept.append(passage)
        if kept:
            remaining.append(replace(document, passages=tuple(kept)))
    return remaining


# --- collection ------------------------------------------------------------------------------


def _collect() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        # "config-3.11-..." and the like hold build settings, not modules.
        if SKIPPED_FOLDERS.isdisjoint(parts) and all(part.isidentifier() for part in parts):
            yield from _from_source(path, ".".join(parts).removesuffix(".__init__"))
    for name in sorted(sys.stdlib_module_names):
        yield from _from_compiled_module(name)


def _from_source(path: Path, module_name: str) -> Iterator[Document]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return  # A template or a file in an old encoding: it documents nothing.
    if module_name == "pydoc_data.topics":
        yield from _from_topics(tree)
        return
    yield from _documents([_passage(module_name, "module", "", ast.get_docstring(tree))])
    yield from _from_definitions(tree, module_name)
    for block in re.findall(r"(?m)(?:^[ \t]*#.*\n){3,}", source):
        text = re.sub(r"(?m)^[ \t]*#+ ?", "", block)
        yield from _documents([_passage(module_name, "comment", "", text)])


def _from_definitions(parent: ast.AST, prefix: str) -> Iterator[Document]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documents([_function_passage(node, prefix)])
        elif isinstance(node, ast.ClassDef):
            name = f"{prefix}.{node.name}"
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            signature = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
            methods = [
                _function_passage(child, name)
                for child in node.body
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            yield from _documents(
                [_passage(name, "class", signature, ast.get_docstring(node)), *methods]
            )
            for child in node.body:
                if isinstance(child, ast.ClassDef):
                    yield from _from_definitions(ast.Module([child], []), name)
        else:  # definitions under `if` and `try`
            yield from _from_definitions(node, prefix)


def _function_passage(node: ast.FunctionDef | ast.AsyncFunctionDef, prefix: str) -> Passage | None:
    arguments = ast.unparse(node.args)
    signature = f"def {node.name}({arguments if len(arguments) < 80 else '...'}):"
    return _passage(f"{prefix}.{node.name}", "function", signature, ast.get_docstring(node))


def _from_topics(tree: ast.Module) -> Iterator[Document]:
    topics = next(
        ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    )
    for name, text in sorted(topics.items()):
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        # A paragraph is the unit of repetition here: the topics quote one another at length.
        yield from _documents(
            [_passage(name, "section", "", paragraph) for paragraph in paragraphs]
        )


def _from_compiled_module(name: str) -> Iterator[Document]:
    specification = importlib.util.find_spec(name) if not name.startswith("_test") else None
    loader = specification.loader if specification else None
    if loader is not BuiltinImporter and not isinstance(loader, ExtensionFileLoader):
        return
    try:
        module = importlib.import_module(name)
    except ImportError:
        return  # compiled against a library that this machine lacks
    yield from _documents([_passage(name, "module", "", module.__doc__)])
    for key, value in sorted(vars(module).items()):
        passages = [_compiled_passage(f"{name}.{key}", value)]
        if isinstance(value, type):
            passages += [
                _compiled_passage(f"{name}.{key}.{member}", inner)
                for member, inner in sorted(vars(value).items())
                if not member.startswith("__")
            ]
        if getattr(value, "__module__", name) in (name, name.removeprefix("_"), None):
            yield from _documents(passages)


def _compiled_passage(name: str, value: object) -> Passage | None:
    documentation = getattr(value, "__doc__", None)
    if not (callable(value) or inspect.isdatadescriptor(value)):
        return None  # a constant shows the docstring of its type
    arguments = getattr(value, "__text_signature__", None) or "(...)"
    arguments = re.sub(r"\$module,? ?|, /|/, ", "", arguments).replace("$", "")
    kind, keyword = ("class", "class") if isinstance(value, type) else ("function", "def")
    signature = f"{keyword} {name.rpartition('.')[2]}{arguments}:"
    return _passage(name, kind, signature, documentation)


def _passage(name: str, kind: str, signature: str, text: object) -> Passage | None:
    """Cleans the text; None if too little of it is language."""
    if not isinstance(text, str):
        return None
    text = inspect.cleandoc(text)
    text = re.sub(r"(?m)[ \t]+$", "", text)
    text = re.sub(r"(?m)^[-=*#~+_ ]{4,}$\n?", "", text)  # rulers
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    letters = sum(character.isascii() and character.isalpha() for character in text)
    if len(text) < 20 or letters < (0.7 if kind == "comment" else 0.55) * len(text):
        return None
    return Passage(name, kind, signature, text)


def _documents(passages: Iterable[Passage | None]) -> Iterator[Document]:
    kept = tuple(passage for passage in passages if passage is not None)
    if kept:
        yield Document(kept)
