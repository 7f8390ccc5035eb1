"""How far from float64 any float32 engine of a w8a8 model must be: what the last bits are worth.

    python tests/long/w8a8_noise.py FOLDER [TOKENS]      # a dense checkpoint; the 0.3B takes 8 GB

A value near a half becomes one integer or the next by its last bit; each such choice moves the input
of a product by up to 1/254 of its group's largest value, and the layers behind carry that on. The
script runs the float64 model that rounds weights and activations as w8a8 does, then again with the
activations off by a little before they are rounded, then the engine, and prints the mean KL
divergence of each from the first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import ernie_kernels as ek
from ernie_kernels.models.config import load_config
from ernie_kernels.models.ernie import HEAD, weight_specs
from ernie_kernels.models.loader import open_checkpoint

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "models")]

from test_quantization import as_rounded, divergence, rounded_activations

import reference_model


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        specs = weight_specs(load_config(folder))
        checkpoint.require(specs, optional=[HEAD])
        return {
            name: np.array(checkpoint.tensor(name, dtype=checkpoint.dtype))
            for name in specs
            if name in checkpoint
        }


def off_by(relative: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    return lambda x: rounded_activations(x * (1 + relative * rng.standard_normal(x.shape)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", type=int, nargs="?", default=40, help="of each of two prompts")
    args = parser.parse_args()
    config = json.loads((args.folder / "config.json").read_text())
    config["rope_theta"] = load_config(args.folder).rope_theta  # old files leave it out
    weights = as_rounded(config, read_weights(args.folder))
    rng = np.random.default_rng(5)
    prompts = [rng.integers(3, config["vocab_size"], args.tokens).tolist() for _ in range(2)]

    def run(rounded):
        return [reference_model.forward(config, weights, ids, rounded) for ids in prompts]

    exact = run(rounded_activations)
    others = {f"float64, off by {n:.1e}": run(off_by(n)) for n in (2.0**-24, 1e-9)}
    others["float64, activations not rounded"] = run(lambda x: x)
    for dtype in ("float32", "bfloat16"):
        options = {"device": "cpu", "quantization": "w8a8", "dtype": dtype, "max_num_seqs": 2}
        with ek.LLM.from_pretrained(args.folder, max_model_len=args.tokens + 1, **options) as llm:
            others[f"engine, {dtype}"] = llm.forward(prompts)
    for name, logits in others.items():
        kl, same = divergence(exact, logits)
        print(f"{name:34} mean KL {kl:.1e}, the same first token {same:.1%}")


if __name__ == "__main__":
    main()
