"""Drives the Python fuzz targets: seeded mutations of small valid inputs, in processes that are watched.

    python tests/fuzz/run.py                                # each for $ERNIE_FUZZ_SECONDS, or 20 s
    python tests/fuzz/run.py --target config --runs 1000000 --seed 7
    python tests/fuzz/run.py --target config --replay FILE  # a reproducer once more

A target is a file fuzz_<name>.py with

    ALLOWED          exceptions that may leave it; more precisely is_allowed(error), where there is one
    seeds()          valid inputs: JSON values, which run() must accept as they stand
    mutated(case, other, draw)    the first changed at random, maybe with a part of the second
    run(case)        feeds it to the code under test, and asserts what must hold

Any other exception, a crash of the process, and a case that takes longer than --limit are failures:
the case is printed as bytes, ready for --replay. Case n of seed s is the same wherever it runs.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ASKED_TO_STOP_AFTER = "ERNIE_FUZZ_SECONDS"
MAX_GROWTH = 256 << 20  # bytes of memory that a whole search may leave behind
FAILED = 3  # exit code of a search that found something
STDERR_LIMIT = 1 << 20


def load_target(folder: Path, name: str) -> ModuleType:
    for path in (HERE, HERE.parent, folder):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", folder / f"fuzz_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case_of(target: ModuleType, seeds: list[str], seed: int, number: int) -> Any:
    """The seeds as they stand come first; then every case follows from its own number."""
    if number < len(seeds):
        return json.loads(seeds[number])
    draw = random.Random((seed << 40) + number)
    case = json.loads(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        case = target.mutated(case, json.loads(draw.choice(seeds)), draw)
    return case


def outcome_of(target: ModuleType, case: Any) -> str:
    """ "accepted" or the name of the allowed exception; any other leaves."""
    try:
        target.run(case)
    except BaseException as error:
        is_allowed = getattr(target, "is_allowed", lambda error: isinstance(error, target.ALLOWED))
        if not is_allowed(error) or len(str(error).encode("utf-8", "replace")) > 512:
            raise
        return type(error).__name__
    return "accepted"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (a count, not paths)


def numbers(first: int, runs: int | None, deadline: float) -> Iterator[int]:
    number = first
    while (runs is None or number < first + runs) and time.monotonic() < deadline:
        yield number
        number += 1


def search(folder: Path, name: str, options: argparse.Namespace, progress: Any) -> None:
    """In a process of its own: runs cases until the deadline, the count or a failure."""
    faulthandler.enable()
    logging.disable()
    warnings.simplefilter("ignore")  # of numpy, about the values that a case asks for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the watcher decides
    target = load_target(folder, name)
    seeds = [json.dumps(case) for case in target.seeds()]
    begin = time.monotonic()
    outcomes: Counter[str] = Counter()
    warm = len(seeds) + 200
    held = (resident_bytes(), descriptors())
    for number in numbers(options.first, options.runs, begin + options.seconds):
        progress.value = number
        try:
            outcome = outcome_of(target, case_of(target, seeds, options.seed, number))
            if number < len(seeds) and outcome != "accepted":
                raise AssertionError(f"seed {number} is refused: {outcome}")
        except BaseException:  # noqa: BLE001  (a panic of a library is no Exception)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FAILED)
        outcomes[outcome] += 1
        if number == warm:
            held = (resident_bytes(), descriptors())
        if number % 256 == 0 and os.fstat(2).st_size > STDERR_LIMIT:
            os.ftruncate(2, 0)  # what libraries say of damaged files
    seconds = time.monotonic() - begin
    gc.collect()
    runs = sum(outcomes.values())
    print(
        f"{name}: {runs} runs in {seconds:.1f} s, {runs / seconds:.0f} a second; "
        + ", ".join(f"{kind} {count}" for kind, count in outcomes.most_common()),
        flush=True,
    )
    growth = resident_bytes() - held[0]
    if runs > warm and (growth > MAX_GROWTH or descriptors() > held[1]):
        sys.stderr.write(f"left behind: {growth} bytes, {descriptors() - held[1]} descriptors\n")
        sys.stderr.flush()
        os._exit(FAILED)


@dataclass
class Watched:
    """A search, and what its watcher knows of it."""

    folder: Path
    name: str
    options: argparse.Namespace
    number: Any = field(init=False)
    last_number: int = -1
    last_change: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.number = context.Value("q", -1, lock=False)
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with this object)
        # In memory where there is such a place: targets write a file or more for each case.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.scratch = tempfile.TemporaryDirectory(dir=memory)
        self.process = context.Process(target=self._enter)
        self.process.start()

    def _enter(self) -> None:
        os.dup2(self.said.fileno(), 2)
        tempfile.tempdir = self.scratch.name  # removed by the watcher, however the search ends
        search(self.folder, self.name, self.options, self.number)

    def is_over(self) -> bool:
        """Whether it has ended; one that hangs is made to say where it is, and ended."""
        if not self.process.is_alive():
            return True
        if self.number.value != self.last_number:
            self.last_number, self.last_change = self.number.value, time.monotonic()
        elif self.seconds_at_one_case() > self.options.limit:
            os.kill(self.process.pid, signal.SIGABRT)
            self.process.join()
            return True
        return False

    def seconds_at_one_case(self) -> float:
        return 0 if self.last_number < 0 else time.monotonic() - self.last_change

    def failure(self) -> str | None:
        """How it failed, with the case that did it."""
        self.scratch.cleanup()
        code = self.process.exitcode
        if code == 0:
            return None
        how = (
            "failed"
            if code == FAILED
            else f"ended by {signal.Signals(-code).name}"
            if code < 0
            else f"exit {code}"
        )
        if self.seconds_at_one_case() > self.options.limit:
            how = f"took longer than {self.options.limit:g} s"
        self.said.seek(0)
        said = self.said.read().decode("utf-8", "replace")[-8000:]
        number, seed = self.number.value, self.options.seed
        case = "no case had begun"
        if number >= 0:
            target = load_target(self.folder, self.name)
            case = json.dumps(
                case_of(target, [json.dumps(c) for c in target.seeds()], seed, number)
            )
        return (
            f"{said}\nFAILED: {self.name}: case {number} of seed {seed} {how}\n"
            f"again: python tests/fuzz/run.py --target {self.name} --seed {seed} --first {number} "
            f"--runs 1\nreproducer, for --replay: {case}"
        )


def searches(folder: Path, names: list[str], options: argparse.Namespace) -> list[str]:
    """Runs the searches, --jobs at a time; returns the failures."""
    waiting, active, failures = list(names), [], []
    while waiting or active:
        while waiting and len(active) < options.jobs:
            active.append(Watched(folder, waiting.pop(0), options))
        time.sleep(0.05)
        for watched in [w for w in active if w.is_over()]:
            active.remove(watched)
            failure = watched.failure()
            if failure is not None:
                failures.append(failure)
                print(failure, flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", nargs="+", help="some of --list; all when omitted")
    parser.add_argument("--runs", type=int, help="stop after so many cases, however long it takes")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--limit", type=float, default=30, help="seconds that one case may take")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--replay", type=Path, help="run the case in this file, in this process")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the targets are")
    parser.add_argument("--list", action="store_true", help="print the targets and stop")
    options = parser.parse_args()
    names = sorted(re.sub("^fuzz_", "", path.stem) for path in options.folder.glob("fuzz_*.py"))
    if options.list:
        print("\n".join(names))
        return 0
    if options.target is not None:
        unknown = set(options.target).difference(names)
        if unknown:
            parser.error(f"no target {min(unknown)}; there are: {', '.join(names)}")
        names = options.target
    if options.replay is not None:
        if len(names) != 1:
            parser.error("--replay needs one --target")
        target = load_target(options.folder, names[0])
        print(outcome_of(target, json.loads(options.replay.read_bytes())))
        return 0
    if options.seconds is None:
        by_default = float(os.environ.get(ASKED_TO_STOP_AFTER, "20"))
        options.seconds = by_default if options.runs is None else float("inf")
    failures = searches(options.folder, names, options)
    print(f"{len(names)} targets, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
