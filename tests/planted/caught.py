"""The table of the CUDA bugs: which file, and which check caught it. Written by run.py --table."""

from __future__ import annotations

import re
from pathlib import Path

from bug import Bug

HEAD = """\
# Planted CUDA bugs

One line for each bug that `python tests/planted/run.py --cuda` plants, with the check of the SIMT
machine that caught it; "wrong result" is a test's own comparison. Written by that command with
`--table tests/planted/CAUGHT.md`; `tests/test_planted_bugs.py` holds it against the lists.

| bug | file | caught by |
|---|---|---|
"""
ROW = re.compile(r"^\| (.+) \| `(.+)` \| (.+) \|$", re.MULTILINE)


def rows(path: Path) -> dict[str, tuple[str, str]]:
    """Name: file and check."""
    text = path.read_text() if path.exists() else ""
    return {name: (file, check) for name, file, check in ROW.findall(text)}


def update(path: Path, bugs: list[Bug], results: dict[str, str | None]) -> None:
    """The lines of `bugs`, in order: those of ``results`` anew, the others as they were."""
    before = rows(path)
    lines = []
    for bug in bugs:
        known = before.get(bug.name, (bug.file, "not yet run"))[1]
        check = results[bug.name] or "nothing" if bug.name in results else known
        lines.append(f"| {bug.name} | `{bug.file}` | {check} |\n")
    path.write_text(HEAD + "".join(lines))
