"""4-bit linear layers beside our own bfloat16 and int8, and ggml's Q4_0.

python bench/bench_wint4.py [--threads 2] [--json results.jsonl]

To expect: one token takes bytes / read rate, so a quarter of bfloat16's time and half of int8's; many
tokens take as long as in bfloat16, of which a layer is expanded anew for every 96 rows. ggml (where
llama-cpp-python is installed) rounds the activations to int8 and scales every 32 columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from ggml_peer import Q4_0, ggml_linear, has_ggml
from harness import Case, copies_beyond_cache, main, rotated

# out_features, in_features of ERNIE-4.5-0.3B: q/k/v, gate/up, down.
LAYERS = [(2560, 1024), (6144, 1024), (1024, 3072)]
TOKENS = [1, 8, 64, 512]


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for out_features, in_features in LAYERS:
        for num_tokens in TOKENS if device == "cpu" else ():
            yield wint4_case(rng, num_tokens, out_features, in_features)


def wint4_case(rng, num_tokens: int, out_features: int, in_features: int) -> Case:
    values = (rng.standard_normal((out_features, in_features)) * 0.02).astype(ml_dtypes.bfloat16)
    x = rng.standard_normal((num_tokens, in_features)).astype(ml_dtypes.bfloat16)
    packed, scale = ops.wint4_quantize_and_pack(values)
    count = copies_beyond_cache(packed.nbytes, 200 << 20) if num_tokens <= 8 else 1
    ours = rotated([ops.wint4_quantize_and_pack(values)[0] for _ in range(count)])
    bfloat16 = rotated([ops.linear_pack(values) for _ in range(min(count, 64))])
    int8_scale = ops.wint8_quantize_and_pack(values)[1]
    int8s = rotated([ops.wint8_quantize_and_pack(values)[0] for _ in range(min(count, 128))])
    rows = ek.from_numpy(x)

    def run():
        return ops.wint4_linear(rows, ours(), scale)

    peers = {
        "bfloat16": lambda: ops.linear(rows, bfloat16()),
        "wint8": lambda: ops.wint8_linear(rows, int8s(), int8_scale),
    }
    if has_ggml():
        peers["ggml Q4_0"] = ggml_linear(values, x, count, ek.num_threads(), Q4_0)

    def check():
        expected = ops.linear(rows, ops.linear_pack(values)).numpy().astype(np.float32)
        got = run().numpy().astype(np.float32)
        # The error of rounding to 15 values, as a standard deviation: a twelfth of a step's square.
        step = np.abs(values.astype(np.float32)).max(axis=1).mean() / 7
        deviation = step / np.sqrt(12) * np.sqrt(in_features)
        assert 0.5 < (got - expected).std() / deviation < 2

    return Case(
        "wint4",
        f"num_tokens={num_tokens} {out_features}x{in_features}",
        run,
        peers,
        nbytes=packed.nbytes + scale.nbytes + x.nbytes + 2 * num_tokens * out_features,
        flops=2 * num_tokens * out_features * in_features,
        check=check,
    )


if __name__ == "__main__":
    main(cases, __doc__)
