"""What is left of a call when it is over: nothing."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from fake_model import fake_engine, fake_request

import ernie_kernels as ek
from ernie_kernels import _core
from tiny_checkpoint import write_checkpoint_with_tokenizer

PARAMS = ek.SamplingParams(max_tokens=1500, ignore_eos=True, seed=3, temperature=1.0, n=3)
SHORT = ek.SamplingParams(max_tokens=40, ignore_eos=True, seed=3, temperature=1.0, n=3)


def run(engine, **changes) -> None:
    for _ in engine.outputs(engine.add_request(fake_request([1, 2, 3], max_tokens=5, **changes))):
        pass


def give_up(engine) -> None:
    ticket = engine.add_request(fake_request([1, 2, 3], n=2, max_tokens=20))
    engine.step()
    ticket.close()


def fail(engine) -> None:
    run_model = engine._runner.run

    def run_out_of_memory(_):
        engine._runner.run = run_model
        raise ek.OutOfMemoryError("no room")

    engine._runner.run = run_out_of_memory
    with pytest.raises(ek.OutOfMemoryError):
        run(engine, n=2)


@pytest.mark.parametrize(
    "act",
    [
        run,
        lambda engine: run(engine, n=3),
        lambda engine: engine.forward([np.array([1, 2, 3])], 50),
        give_up,
        fail,
    ],
    ids=["one answer", "three answers", "forward", "given up", "failed"],
)
def test_no_garbage(act):
    """All is freed at once, without the collector: that may come late, or be switched off."""
    engine = fake_engine()
    act(engine)
    engine.stats()
    gc.collect()
    gc.disable()
    try:
        act(engine)
        engine.stats()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_logits_belong_to_the_caller_alone():
    """They may be gigabytes, and no further call may come."""
    engine = fake_engine()
    logits = engine.forward([np.array([1, 2, 3])], 50)
    watch = weakref.ref(logits[0])
    del logits
    assert watch() is None


# ------------------------------------------------------------------------------- closed and killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint_with_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(folder):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        return llm.generate("Hello", SHORT)[0].outputs


def test_closed_in_the_middle_and_loaded_again(folder, expected):
    gc.collect()
    held = _core.cpu_bytes_allocated()
    for _ in range(3):
        llm = ek.LLM.from_pretrained(folder, device="cpu")
        stream = llm.generate("Hello", PARAMS, stream=True)
        for _ in range(50):
            next(stream)
        llm.close()
        assert _core.cpu_bytes_allocated() == held  # weights, cache and work space
        with pytest.raises(ek.ArgumentError, match="closed"):
            list(stream)
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        assert llm.generate("Hello", SHORT)[0].outputs == expected


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_written(descriptor: Path) -> bool:
    """Whether ``/proc/PID/fd/N`` is a file, maybe one without a name, that is open for writing."""
    info = (descriptor.parent.parent / "fdinfo" / descriptor.name).read_text()
    flags = int(info.split("flags:")[1].split()[0], 8)
    return descriptor.is_file() and bool(flags & os.O_ACCMODE)


GENERATE = """
import sys, ernie_kernels as ek
llm = ek.LLM.from_pretrained(sys.argv[1], device="cpu")
params = ek.SamplingParams(max_tokens=1500, ignore_eos=True, n=3)
while True:
    for _ in llm.generate("Hello", params, stream=True):
        print(".", end="", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_killed_in_the_middle_and_loaded_again(folder, expected, tmp_path):
    """Nothing outlives the process: it writes no file, shares no memory, has no children."""
    before = contents(folder)
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    for delay in (1, 200, 1000):  # tokens
        process = subprocess.Popen(
            [sys.executable, "-c", GENERATE, folder],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, cwd=tmp_path, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout.read(delay) == b"." * delay
            proc = Path("/proc", str(process.pid))
            maps = [line.split(maxsplit=5) for line in (proc / "maps").read_text().splitlines()]
            assert [line for line in maps if "w" in line[1] and "s" in line[1]] == []
            assert [file for file in (proc / "fd").iterdir() if is_written(file)] == []
        finally:
            process.send_signal(signal.SIGKILL)
            process.stdout.close()
            assert process.wait(60) == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert contents(folder) == before
    assert contents(tmp_path) == {}
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        assert llm.generate("Hello", SHORT)[0].outputs == expected
