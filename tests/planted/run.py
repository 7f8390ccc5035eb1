"""Plant one bug at a time and expect the tests to notice.

    python tests/planted/run.py                 # all of the C++ and Python: some minutes
    python tests/planted/run.py --cuda          # all of the CUDA kernels, on the SIMT machine: half an hour
    python tests/planted/run.py --only linear   # those whose name contains a word
    python tests/planted/run.py --count 3       # three of them, spread over the list
    python tests/planted/run.py --list

Each bug is a replacement in one source file: those of host_bugs/, or with --cuda those of cuda_bugs/
and every barrier that barriers.py finds. The script copies the tree to a scratch folder, builds it,
sees the tests pass, and then for each bug: patches, rebuilds, runs the tests that should catch it,
and restores. A bug that no test notices is reported, and the exit code is 1.

Of a bug in a kernel it says by which check of the machine it was caught, and whether that is the
one named with the bug. `--cuda --table tests/planted/CAUGHT.md` writes that down.
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
import caught
from backends import CUDA, HOST, Backend, CannotRun
from barriers import barrier_bugs
from bug import Bug
from cuda_bugs import CUDA_BUGS
from host_bugs import HOST_BUGS

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


def plant(bug: Bug, tree: Path, backend: Backend) -> str | None:
    """By which check the bug is caught, or None."""
    path = tree / bug.file
    original, times = path.read_text(), path.stat()
    if original.count(bug.old) != 1:
        raise CannotRun(
            f"{bug.name}: expected its text once in {bug.file}, found {original.count(bug.old)} "
            "times; bring the list up to date with the source"
        )

    def write(text: str) -> None:
        path.write_text(text)
        if bug.unit:  # the header looks as old as it was; what is compiled again is the unit alone
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            (tree / bug.unit).touch()

    def build() -> None:
        if path.suffix != ".py":
            backend.build(tree)

    write(original.replace(bug.old, bug.new))
    try:
        build()
        return backend.first_failure(tree, bug.tests, backend.seeds)
    except CannotRun as error:
        raise CannotRun(f"{bug.name}: {error}") from None
    finally:
        write(original)
        build()  # now: together with the next bug, this unit would be left with that one in it


def all_bugs(cuda: bool) -> list[Bug]:
    return [*CUDA_BUGS, *barrier_bugs(ROOT)] if cuda else HOST_BUGS


def run(bugs: list[Bug], tree: Path, backend: Backend) -> dict[str, str | None]:
    """Name: the check that caught it, or None."""
    copy_tree(tree)
    backend.build(tree)
    everything = sorted({test for bug in bugs for test in bug.tests})
    if backend.first_failure(tree, everything, seeds=1) is not None:
        raise CannotRun("the tests fail before any bug is planted")
    results = {}
    for i, bug in enumerate(bugs, 1):
        begin = time.monotonic()
        check = results[bug.name] = plant(bug, tree, backend)
        verdict = "NOT CAUGHT" if check is None else "caught"
        if bug.checks and check is not None:
            verdict = f"caught: {check}"
            if check not in bug.checks:
                verdict += f", NOT AS EXPECTED: {' or '.join(bug.checks)}"
        took = time.monotonic() - begin
        print(f"[{i:3}/{len(bugs)}] {bug.name:60} {verdict} ({took:.0f} s)", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuda", action="store_true", help="the bugs of the CUDA kernels")
    parser.add_argument("--only", default="", help="bugs whose name contains this")
    parser.add_argument("--count", type=int, help="plant at most this many")
    parser.add_argument("--list", action="store_true", help="print the bugs and stop")
    parser.add_argument("--table", type=Path, help="with --cuda: write down what caught each bug")
    parser.add_argument("--tree", type=Path, default=ROOT / "build" / "planted")
    args = parser.parse_args()
    bugs = [bug for bug in all_bugs(args.cuda) if args.only in bug.name]
    count = len(bugs) if args.count is None else args.count
    if count < 1 or not bugs:
        parser.error("no bug to plant")
    bugs = bugs[:: -(-len(bugs) // count)]
    if args.list:
        for bug in bugs:
            print(f"{bug.name:60} {bug.file}")
        return 0

    begin = time.monotonic()
    tree = args.tree.resolve()  # the tests run inside it
    try:
        results = run(bugs, tree, CUDA if args.cuda else HOST)
    except CannotRun as error:
        raise SystemExit(str(error)) from None
    survived = [name for name, check in results.items() if check is None]
    print(
        f"{len(bugs) - len(survived)} caught, {len(survived)} not caught, "
        f"{time.monotonic() - begin:.0f} s"
    )
    if args.table:
        caught.update(args.table, all_bugs(cuda=True), results)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
