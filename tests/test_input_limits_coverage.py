"""Which test shows what each kind of bad input gets, and what is not there yet.

The tests of input_limits are looked up, so that none can be renamed or removed unnoticed.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from input_limits import checkpoints, models, requests, running

TESTS = Path(__file__).parent
ROWS = {**checkpoints.ROWS, **models.ROWS, **requests.ROWS, **running.ROWS}


@functools.cache
def names_of(file: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The test functions of a file, and its strings: among them the ids of cases."""
    nodes = list(ast.walk(ast.parse((TESTS / file).read_text())))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    strings = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return frozenset(functions), tuple(strings)


def test_every_row_is_here():
    assert list(ROWS) == list(range(1, 64))


@pytest.mark.parametrize("number", ROWS)
def test_row_has_tests_or_a_reason(number):
    row = ROWS[number]
    assert row.tests or row.not_yet
    for test in row.tests:
        file, _, name = test.partition("::")
        function, _, case = name.partition("[")
        functions, strings = names_of(file)
        assert function in functions, f"{row.what}: no {test}"
        # "row 1" is no case of "row 10"
        assert not case or any(f"{string} ".startswith(f"{case} ") for string in strings), test


def test_a_test_that_names_a_row_is_listed_there():
    wrong = []
    for path in sorted(TESTS.rglob("test_*.py")):
        file = path.relative_to(TESTS).as_posix()
        for name, number in re.findall(
            r"^def (test_(?:[a-z0-9]+_)?row_(\d+)_\w+)", path.read_text(), re.MULTILINE
        ):
            if f"{file}::{name}" not in ROWS[int(number)].tests:
                wrong.append(f"row {number} lacks {file}::{name}")
    assert not wrong, "\n".join(wrong)
