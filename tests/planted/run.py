"""Plant one bug at a time and expect the tests to notice.

    python tests/planted/run.py                 # all of them: some minutes
    python tests/planted/run.py --only linear   # those whose name contains a word
    python tests/planted/run.py --count 3     # three of them, spread over the list
    python tests/planted/run.py --list

Each bug of bugs.py is a replacement in one source file. The script copies the tree to a scratch
folder, builds it, sees the tests pass, and then for each bug: patches, rebuilds, runs the tests that
should catch it, and restores. A bug that no test notices is reported, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]


def copy_tree(to: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        source, target = ROOT / name, to / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # An unchanged file keeps its time, so that a second run builds little.
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copy(source, target)


def build(tree: Path) -> str | None:
    """Builds into the tree's own package folder; returns the compiler's words on failure."""
    commands = [
        ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", "-DERNIE_CUDA=OFF"],
        ["cmake", "--build", "build", "-j2"],
        ["cmake", "--install", "build", "--prefix", "python"],
    ]
    if (tree / "build" / "build.ninja").exists():
        commands = commands[1:]
    for command in commands:
        done = subprocess.run(command, cwd=tree, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            return done.stdout[-2000:] + done.stderr[-2000:]
    return None


def tests_pass(tree: Path, tests: list[str]) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree, check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tree / "python"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    # Below zero: a signal ended it, which is one way to notice a bug. 3 and up: a mistake in the call.
    if done.returncode > 2:
        raise SystemExit(f"pytest could not run {tests}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def is_caught(bug: Bug, tree: Path) -> bool:
    path = tree / bug.file
    original = path.read_text()
    if original.count(bug.old) != 1:
        raise SystemExit(
            f"{bug.name}: expected its text once in {bug.file}, found {original.count(bug.old)} "
            "times; bring bugs.py up to date with the source"
        )
    path.write_text(original.replace(bug.old, bug.new))
    try:
        if path.suffix == ".py":
            return not tests_pass(tree, bug.tests)
        failed = build(tree)
        if failed is not None:
            raise SystemExit(f"{bug.name}: the planted bug does not compile:\n{failed}")
        return not tests_pass(tree, bug.tests)
    finally:
        path.write_text(original)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    parser.add_argument("--count", type=int, default=len(BUGS), help="plant at most this many")
    parser.add_argument("--list", action="store_true", help="print the bugs and stop")
    parser.add_argument("--tree", type=Path, default=ROOT / "build" / "planted")
    args = parser.parse_args()
    args.tree = args.tree.resolve()  # the tests run inside it
    bugs = [bug for bug in BUGS if args.only in bug.name]
    if args.count < 1 or not bugs:
        parser.error("no bug to plant")
    bugs = bugs[:: -(-len(bugs) // args.count)]
    if args.list:
        for bug in bugs:
            print(f"{bug.name:44} {bug.file}")
        return 0

    copy_tree(args.tree)
    failed = build(args.tree)
    if failed is not None:
        raise SystemExit(failed)
    everything = sorted({test for bug in bugs for test in bug.tests})
    if not tests_pass(args.tree, everything):
        raise SystemExit("the tests fail before any bug is planted")

    survived = []
    for i, bug in enumerate(bugs, 1):
        begin = time.monotonic()
        caught = is_caught(bug, args.tree)
        survived += [] if caught else [bug.name]
        verdict = "caught" if caught else "NOT CAUGHT"
        took = time.monotonic() - begin
        print(f"[{i:2}/{len(bugs)}] {bug.name:44} {verdict} ({took:.0f} s)", flush=True)
    build(args.tree)
    print(f"{len(bugs) - len(survived)} caught, {len(survived)} not caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
