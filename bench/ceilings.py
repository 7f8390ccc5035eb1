"""What the GPU can do at most, by torch: copy bandwidth and bfloat16 matrix rate.

python bench/ceilings.py [--device cuda:1] [--json ceilings.json]

Every GPU figure of the benches is read as a share of these two, taken in the same run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from harness import CudaClock, read_bandwidth


def bf16_tflops(device: str, size: int = 8192) -> float:
    """Rate of one large matrix product on random data: on zeros the clock stays higher."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    clock = CudaClock()
    for _ in range(3):
        torch.matmul(a, b)
    microseconds = sorted(clock.sample(lambda: torch.matmul(a, b)) for _ in range(10))[5]
    return 2 * size**3 / microseconds / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.cuda.set_device(args.device)
    ceilings = {
        "copy_gbytes_per_s": round(read_bandwidth(args.device), 1),
        "bf16_matmul_tflops": round(bf16_tflops(args.device), 1),
    }
    print(ceilings)
    if args.json:
        args.json.write_text(json.dumps(ceilings) + "\n")


if __name__ == "__main__":
    main()
