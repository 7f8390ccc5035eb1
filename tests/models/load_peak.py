"""What a load takes of the host's memory, measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ernie_kernels as ek

LOAD = """
import re, sys
import ernie_kernels as ek
from ernie_kernels import ops

ek.LLM  # imports what a load needs

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

before = peak()
llm = ek.LLM.from_pretrained(
    sys.argv[1], device="cpu", quantization=sys.argv[2] or None, max_model_len=32, max_num_seqs=1,
    kv_cache_memory=1 << 20, num_threads=2,
)
print(peak() - before, llm.stats()["weight_bytes"])
"""


def peak_of_load(folder: Path, quantization: str | None) -> tuple[int, int]:
    """Bytes over what the process had before, and those of the weights that stay."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), quantization or ""],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(ek.__file__).parents[1])},
        check=True,
    )
    peak, held = map(int, done.stdout.split())
    return peak, held
