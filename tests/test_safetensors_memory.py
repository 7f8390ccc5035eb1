"""How much memory it takes to read the header of a safetensors file, whatever it claims."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import ernie_kernels
from ernie_kernels import _core
from ernie_kernels.errors import FormatError
from safetensors_bytes import with_length


def peak_memory(statement: str, path: Path) -> int:
    """Growth of the resident set's peak, in bytes, over one statement in a process of its own."""
    script = f"""
import os, re
from ernie_kernels import _core
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
path = os.fsencode({str(path)!r})
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew from what is resident now
before = peak()
try:
    {statement}
except ValueError:
    pass
print(peak() - before)
"""
    package = Path(ernie_kernels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
        check=True,
    )
    return int(done.stdout)


def many_tensors() -> bytes:
    entries = (
        f'"{i:x}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{i + 1}]}}' for i in range(199_000)
    )
    return ("{" + ",".join(entries) + "}").encode()


def much_metadata() -> bytes:
    return ('{"__metadata__":{' + ",".join(f'"{i:x}":""' for i in range(900_000)) + "}}").encode()


@pytest.mark.parametrize("header", [many_tensors, much_metadata])
def test_parsing_takes_at_most_eight_times_the_header(tmp_path, header):
    text = header()
    path = tmp_path / "model.safetensors"
    path.write_bytes(with_length(text, bytes(199_000) if header is many_tensors else b""))
    assert peak_memory("file = _core.SafetensorsFile(path)", path) <= 8 * len(text)
    assert len(_core.SafetensorsFile(os.fsencode(path)).names) in (0, 199_000)


def test_a_claimed_size_allocates_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 32 << 20) + b"{}")
    assert peak_memory("_core.SafetensorsFile(path)", path) < 1 << 20
    tracemalloc.start()
    with pytest.raises(FormatError):
        _core.SafetensorsFile(os.fsencode(path))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
