"""Runs a CUDA compile command and keeps what ptxas reports of its kernels beside the object.

usage: keep_ptxas_log.py OBJECT COMMAND...

Writes OBJECT.ptxas; everything else that the compiler says passes through. A report that lies
beside its object stays true over incremental and cached builds, where a build log would not.
"""

import subprocess
import sys
from pathlib import Path


def main() -> int:
    target, command = Path(sys.argv[1] + ".ptxas"), sys.argv[2:]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    report, rest = [], []
    for line in done.stderr.splitlines():
        indented = line.startswith("    ") and "bytes stack frame" in line
        (report if line.startswith("ptxas info") or indented else rest).append(line)
    if rest:
        print("\n".join(rest), file=sys.stderr)
    if done.returncode == 0:
        target.write_text("\n".join(report) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
