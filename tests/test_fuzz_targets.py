"""The fuzz targets run, and their driver tells what goes wrong; .ci/run fuzz searches for longer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ernie_kernels as ek

CI = Path(__file__).parent.parent / ".ci" / "run"
DRIVER = Path(__file__).parent / "fuzz" / "run.py"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in DRIVER.parent.glob("fuzz_*.py"))


def drive(*arguments: object) -> subprocess.CompletedProcess[str]:
    package = str(Path(ek.__file__).parents[1])
    return subprocess.run(
        [sys.executable, str(DRIVER), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": package},
    )  # fmt: skip


def test_every_input_that_is_read_today_has_a_target():
    assert TARGETS == [
        "cache_api", "chat_template", "config", "content_parts", "image_bytes", "op_arguments",
        "scheduler", "shard_index", "tokenizer_file", "video_header",
    ]  # fmt: skip


@pytest.mark.skipif(not CI.exists(), reason="a source distribution has no CI script")
def test_ci_runs_every_target():
    stage = re.search(r"stage_fuzz\(\) \{(.*?)\n\}", CI.read_text(), re.DOTALL)[1]
    searched = [name for names in re.findall(r"--target ([\w ]+)", stage) for name in names.split()]
    assert sorted(name for name in searched if name in TARGETS) == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_search_finds_nothing(target):
    if target in ("content_parts", "image_bytes", "video_header"):
        pytest.importorskip("PIL")
    done = drive("--target", target, "--runs", 150, "--seed", 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: 150 runs" in done.stdout


BROKEN = {
    "foreign": ("raise KeyError('x')", "KeyError: 'x'"),
    "crash": ("import ctypes; ctypes.string_at(8)", "ended by SIGSEGV"),
    "exit": ("import os; os._exit(7)", "exit 7"),
    "hang": ("while True: pass", "took longer than 1 s"),
    "wordy": ("raise ValueError('x' * 513)", "ValueError: xxx"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_driver_reports(tmp_path, kind):
    statement, words = BROKEN[kind]
    (tmp_path / "fuzz_broken.py").write_text(
        textwrap.dedent(f"""\
            ALLOWED = (ValueError,)
            def seeds(): return [[0]]
            def mutated(case, other, draw): return [draw.randrange(9)]
            def run(case):
                if case == [5]:
                    {statement}
            """)
    )
    arguments = ("--folder", tmp_path, "--target", "broken")
    done = drive(*arguments, "--runs", 500, "--limit", 1)
    assert done.returncode == 1
    assert words in done.stdout
    *_, command, reproducer, _ = done.stdout.splitlines()
    assert reproducer == "reproducer, for --replay: [5]"
    again = drive(*arguments, *command.partition("--target broken")[2].split(), "--limit", 1)
    assert again.returncode == 1
    (tmp_path / "case").write_text(json.dumps([4]))
    assert drive(*arguments, "--replay", tmp_path / "case").stdout == "accepted\n"


def test_a_seed_that_is_refused_is_a_failure(tmp_path):
    (tmp_path / "fuzz_broken.py").write_text(
        "ALLOWED = (ValueError,)\ndef seeds(): return [0]\ndef run(case): raise ValueError\n"
    )
    done = drive("--folder", tmp_path, "--target", "broken", "--runs", 1)
    assert done.returncode == 1
    assert "seed 0 is refused: ValueError" in done.stdout
