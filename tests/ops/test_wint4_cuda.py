"""wint4_linear on CUDA: what is launched, asked without a GPU; and on a GPU, that every kernel is
right. The kernels are those of wint8_linear with another weight, the plans too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops
from simt import control

import reference
from reference import BF16, F32, on, poisoned

TOKENS = [1, 8, 9, 16, 17, 32, 33, 64, 65, 129, 512, 100_000]
# out_features, in_features: projections of 0.3B and 21B, the vocabulary, awkward ones.
WEIGHTS = [(2560, 1024), (1024, 3072), (2560, 12288), (103424, 1024), (1, 1), (17, 33)]
STEP = 128


def plan(tokens: int, features: int, depth: int, **kwargs) -> dict:
    kwargs.setdefault("inputs_aligned", depth % 32 == 0)
    return _core.cuda_wint_plan(tokens, features, depth, weight="uint8", **kwargs)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("x", ["bfloat16", "float32"])
def test_plan_covers_the_output_and_fits(x, capability):
    for tokens, (features, depth) in itertools.product(TOKENS, WEIGHTS):
        p = plan(tokens, features, depth, x=x, capability=capability)
        assert 0 <= p["token_blocks"] * p["tile_tokens"] - tokens < p["tile_tokens"]
        assert 0 <= p["feature_blocks"] * p["tile_features"] - features < p["tile_features"]
        assert p["shared_bytes"] <= 99 << 10  # what every GPU from 8.0 on has
        if p["kernel"] != "tile_f32":
            assert p["slice"] % STEP == 0
            assert p["slice"] * _core.GEMM_SLICES >= depth


def test_bfloat16_x_has_one_arithmetic():
    for features, depth in WEIGHTS:
        plans = [plan(tokens, features, depth) for tokens in TOKENS]
        assert len({p["slice"] for p in plans}) == 1
        assert {p["kernel"] for p in plans} == {"narrow_bf16", "tile_bf16"}


def test_plan_refuses_what_no_kernel_takes():
    with pytest.raises(ek.DeviceError, match=r"wint4_linear: no kernel for compute capability 7"):
        plan(1, 8, 8, capability=75)


# ------------------------------------------------------------------------------------- every kernel

# num_tokens, out_features, in_features: every kernel and tile of an H200, cut short at its edges,
# with slices of several rounds of loads.
CASES = [
    (1, 1000, 5152),
    (5, 40, 8736),
    (8, 2130, 1184),
    (13, 70, 2432),
    (30, 70, 2432),
    (50, 200, 1056),
    (3, 70, 2001),
    (20, 70, 333),
    (60, 70, 333),
    (200, 330, 2080),
    (200, 330, 1001),
    (1990, 1992, 416),
    (1500, 1500, 77),
]  # fmt: skip
# The SIMT machine takes seconds for 800 million products: the same with less depth.
SIMT_CASES = [
    (1, 200, 5152),
    *CASES[1:9],
    (140, 70, 1056),
    (140, 70, 1001),
    (1416, 1424, 160),
    (1416, 1430, 33),
]


@pytest.mark.parametrize("cases", [CASES, SIMT_CASES], ids=["gpu", "simt"])
def test_cases_reach_every_bf16_kernel(cases):
    tiles = ["narrow_bf16 8x8", "narrow_bf16 8x16", "narrow_bf16 16x16", "narrow_bf16 32x16",
             "narrow_bf16 64x32", "tile_bf16 64x64", "tile_bf16 128x128"]  # fmt: skip
    reached = {
        f"{p['kernel']} {p['tile_tokens']}x{p['tile_features']} {p['aligned']}"
        for p in (plan(*case) for case in cases)
    }
    missing = {f"{tile} {aligned}" for tile in tiles for aligned in (True, False)} - reached
    unaligned = {"8x16", "16x16"}  # in a test below
    never = {"64x32"}
    assert missing == {f"narrow_bf16 {tile} False" for tile in unaligned | never}


def operands(rng, tokens, features, depth, x_dtype):
    """x, the weight's values, the weight, its scales."""
    x = reference.random(rng, (tokens, depth), x_dtype)
    values = rng.integers(-8, 8, (features, depth)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, features).astype(F32)
    return x, values, reference.nibbles(values), scale


@pytest.mark.cuda
@pytest.mark.parametrize(("out", "bias"), [(BF16, F32), (F32, BF16), (BF16, None)], ids=str)
@pytest.mark.parametrize(("tokens", "features", "depth"), control.smaller(CASES, SIMT_CASES))
def test_bf16_on_every_kernel(rng, tokens, features, depth, out, bias):
    if control.is_loaded() and tokens > 1000 and (bias is None or out == F32):
        pytest.skip("a second of the machine's time for what smaller ones show as well")
    x, values, weight, scale = operands(rng, tokens, features, depth, BF16)
    b = None if bias is None else reference.random(rng, (features,), bias)
    y = poisoned((tokens, features), out, "cuda")
    ops.wint4_linear(*(None if a is None else on(a, "cuda") for a in (x, weight, scale, b)), out=y)
    expected, magnitude = reference.wint8_linear(x, values, scale, b)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("tokens", "features", "depth"), [(5, 40, 640), (50, 70, 288), (50, 70, 33), (3, 70, 301)]
)
def test_float32_on_every_kernel(rng, tokens, features, depth):
    x, values, weight, scale = operands(rng, tokens, features, depth, F32)
    y = poisoned((tokens, features), F32, "cuda")
    ops.wint4_linear(on(x, "cuda"), on(weight, "cuda"), on(scale, "cuda"), out=y)
    expected, magnitude = reference.wint8_linear(x, values, scale, None)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 64, 256])
def test_every_value_at_every_k_is_exact(tokens, dtype):
    """x picks one weight an output: all sixteen of them stand at every k."""
    values = ((np.arange(17)[:, None] + np.arange(256)) % 16 - 8).astype(np.int8)
    scale = np.random.default_rng(1).uniform(0.001, 0.1, 17).astype(F32)
    weight = on(reference.nibbles(values), "cuda"), on(scale, "cuda")
    for first in range(0, 256, max(tokens, 32)):
        x = on(np.eye(256, dtype=dtype)[first : first + tokens], "cuda")
        got = ops.wint4_linear(x, *weight, dtype="float32").numpy()
        np.testing.assert_array_equal(got, values.T[first : first + tokens].astype(F32) * scale)


@pytest.mark.cuda
@pytest.mark.parametrize("tokens", [3, 12, 30, 60, 140])
@pytest.mark.parametrize("off", ["weight", "x's rows"])
def test_rows_off_16_bytes(rng, tokens, off):
    features, depth = 2130 if tokens == 3 else 40, 160  # 3 tokens: of 16 features a block
    x, values, weight, scale = operands(rng, tokens, features, depth, BF16)
    wide = np.full((tokens, depth + 9), np.nan, F32).astype(BF16)
    first = 8 if off == "x's rows" else 0
    wide[:, first : first + depth] = x
    given_x = on(wide, "cuda")[:, first : first + depth] if first else on(x, "cuda")
    skip = 1 if off == "weight" else 16
    flat = np.concatenate([np.full(skip, 0x77, np.uint8), weight.ravel()])
    given = on(flat, "cuda")[skip:].reshape(*weight.shape)
    out = ops.wint4_linear(given_x, given, on(scale, "cuda"))
    expected, magnitude = reference.wint8_linear(x, values, scale, None)
    reference.check(out, expected, magnitude=magnitude, terms=depth)


@pytest.mark.one_seed
@pytest.mark.cuda
@pytest.mark.parametrize(("features", "depth"), [(2130, 160), (150, 1312), (65, 333)])
def test_row_depends_on_itself_alone_on_cuda(rng, features, depth):
    x, _, *weight = operands(rng, 150, features, depth, BF16)
    weight = [on(a, "cuda") for a in weight]

    def rows(begin: int, end: int) -> np.ndarray:
        return ops.wint4_linear(on(x[begin:end].copy(), "cuda"), *weight).numpy()

    together = rows(0, 150)
    for begin, end in [(0, 1), (149, 150), (5, 13), (100, 140), (1, 65)]:
        np.testing.assert_array_equal(rows(begin, end), together[begin:end])
