"""The planted bugs still fit the sources; tests/planted/run.py builds and runs them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def bugs() -> list:
    spec = importlib.util.spec_from_file_location("planted_bugs", ROOT / "tests/planted/bugs.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module.BUGS


def test_every_bug_has_its_place_and_its_tests():
    wrong = []
    for bug in bugs():
        found = (ROOT / bug.file).read_text().count(bug.old)
        if found != 1:
            wrong.append(f"{bug.name}: its text occurs {found} times in {bug.file}")
        wrong += [f"{bug.name}: no {test}" for test in bug.tests if not (ROOT / test).exists()]
    assert not wrong, "\n".join(wrong)


def test_names_are_distinct():
    names = [bug.name for bug in bugs()]
    assert len(names) == len(set(names))
