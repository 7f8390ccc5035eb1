"""wint8_linear on CUDA: what is launched, asked without a GPU; and on a GPU, that every kernel is
right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops
from simt import control

import reference
from reference import BF16, F32, on, poisoned

TOKENS = [1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 512, 4096, 100_000]
# out_features, in_features: 0.3B and 21B projections, a router, the vocabulary, awkward ones.
WEIGHTS = [(2560, 1024), (1024, 3072), (2560, 12288), (64, 2560), (103424, 1024), (1, 1), (17, 33)]
STEP = 64


def plan(tokens: int, features: int, depth: int, **kwargs) -> dict:
    kwargs.setdefault("inputs_aligned", depth % 16 == 0)
    return _core.cuda_wint_plan(tokens, features, depth, **kwargs)


@pytest.mark.parametrize("capability", [80, 89, 90, 120])
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("x", ["bfloat16", "float32"])
def test_plan_covers_the_output_and_fits(x, invariant, capability):
    suffix = {"bfloat16": "bf16", "float32": "f32"}[x]
    for tokens, (features, depth) in itertools.product(TOKENS, WEIGHTS):
        p = plan(tokens, features, depth, x=x, batch_invariant=invariant, capability=capability)
        assert 0 <= p["token_blocks"] * p["tile_tokens"] - tokens < p["tile_tokens"]
        assert 0 <= p["feature_blocks"] * p["tile_features"] - features < p["tile_features"]
        assert p["token_blocks"] * p["feature_blocks"] < 2**31
        assert p["shared_bytes"] <= 99 << 10  # what every GPU from 8.0 on has
        assert p["threads"] in (128, 256)
        assert p["kernel"] in {f"narrow_{suffix}", f"tile_{suffix}"}
        if p["kernel"] != "tile_f32":
            assert p["slice"] % STEP == 0
            assert p["slice"] * _core.GEMM_SLICES >= depth
            assert p["slice"] - STEP < max(depth / _core.GEMM_SLICES, 1)


@pytest.mark.parametrize(
    ("tokens", "features", "depth", "h200", "a100"),
    [
        (1, 1024, 3072, "narrow_bf16 8x8x0", "narrow_bf16 8x8x0"),
        (1, 2048, 1024, "narrow_bf16 8x8x0", "narrow_bf16 8x16x0"),
        (1, 6144, 1024, "narrow_bf16 8x16x0", "narrow_bf16 8x16x0"),
        (8, 103424, 1024, "narrow_bf16 8x16x0", "narrow_bf16 8x16x0"),
        (16, 1024, 3072, "narrow_bf16 16x16x0", "narrow_bf16 16x16x0"),
        (32, 2560, 1024, "narrow_bf16 32x16x0", "narrow_bf16 32x16x0"),
        (64, 6144, 1024, "narrow_bf16 64x32x0", "narrow_bf16 64x32x0"),
        (128, 1024, 3072, "narrow_bf16 64x32x0", "narrow_bf16 64x32x0"),
        (128, 6144, 1024, "tile_bf16 64x64x64", "tile_bf16 64x64x64"),
        (512, 6144, 1024, "tile_bf16 128x128x64", "tile_bf16 128x128x64"),
        (512, 1024, 3072, "tile_bf16 64x64x64", "tile_bf16 64x64x64"),
        (4096, 1024, 1020, "tile_bf16 128x128x64", "tile_bf16 128x128x64"),
    ],
)  # fmt: skip
def test_plan_of_model_shapes(tokens, features, depth, h200, a100):
    for capability, sm_count, want in ((90, 132, h200), (80, 108, a100)):
        got = plan(tokens, features, depth, capability=capability, sm_count=sm_count)
        assert got["text"].startswith(want + " stages")


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize(("features", "depth"), WEIGHTS)
def test_plan_keeps_one_arithmetic(features, depth, invariant):
    """Of bfloat16 x always: these two kernels share their order. The float32 ones do not."""
    plans = [plan(tokens, features, depth, batch_invariant=invariant) for tokens in TOKENS]
    assert len({p["slice"] for p in plans}) == 1
    assert {p["kernel"] for p in plans} == {"narrow_bf16", "tile_bf16"}
    plans = [plan(t, features, depth, x="float32", batch_invariant=invariant) for t in TOKENS]
    assert {p["kernel"] for p in plans} == {"narrow_f32"} | (
        {"tile_f32"} if not invariant else set()
    )


def test_plan_refuses_what_no_kernel_takes():
    with pytest.raises(
        ek.DeviceError, match=r"wint8_linear: no kernel for compute capability 7\.5"
    ):
        plan(1, 8, 8, capability=75)
    with pytest.raises(ek.ArgumentError, match="wint8_linear: expected extents >= 0, got num_toke"):
        plan(8, -1, 8)
    with pytest.raises(ek.ArgumentError, match="wint8_linear: sm_count: expected at least 1"):
        plan(8, 8, 8, sm_count=0)
    for extents in ((2**40, 8, 8), (8, 2**40, 8), (8, 8, 2**40)):
        with pytest.raises(ek.UnsupportedError, match=r"wint8_linear.*1099511627776.*split the ca"):
            plan(*extents)


# ------------------------------------------------------------------------------------- every kernel

# num_tokens, out_features, in_features: every kernel and tile of an H200, cut short at its edges,
# with slices of several rounds of loads.
CASES = [
    (1, 1000, 2576),
    (5, 40, 4368),
    (8, 2130, 1200),
    (13, 70, 1216),
    (30, 70, 1216),
    (50, 200, 528),
    (100, 72, 272),
    (3, 70, 1001),
    (20, 70, 333),
    (60, 70, 333),
    (200, 330, 1040),
    (200, 330, 1001),
    (1990, 1992, 400),
    (1500, 1500, 77),
]  # fmt: skip
# The SIMT machine takes seconds for 800 million products: the same with less depth.
SIMT_CASES = [*CASES[:10], (140, 70, 1040), (140, 70, 1001), (1416, 1424, 80), (1416, 1430, 33)]


@pytest.mark.parametrize("cases", [CASES, SIMT_CASES], ids=["gpu", "simt"])
def test_cases_reach_every_bf16_kernel(cases):
    plans = [plan(*case) for case in cases]
    tiles = ["narrow_bf16 8x8", "narrow_bf16 8x16", "narrow_bf16 16x16", "narrow_bf16 32x16",
             "narrow_bf16 64x32", "tile_bf16 64x64", "tile_bf16 128x128"]  # fmt: skip
    reached = {
        f"{p['kernel']} {p['tile_tokens']}x{p['tile_features']} {p['aligned']}" for p in plans
    }
    missing = {f"{tile} {aligned}" for tile in tiles for aligned in (True, False)} - reached
    assert missing == {"narrow_bf16 8x16 False", "narrow_bf16 16x16 False"}  # wide: a test below
    assert any(p["token_blocks"] > 1 for p in plans if p["kernel"] == "narrow_bf16")


def operands(rng, tokens, features, depth, x_dtype):
    x = reference.random(rng, (tokens, depth), x_dtype)
    weight = rng.integers(-128, 128, (features, depth)).astype(np.int8)
    return x, weight, rng.uniform(0.001, 0.1, features).astype(F32)


@pytest.mark.cuda
@pytest.mark.parametrize(("out", "bias"), [(BF16, F32), (F32, BF16), (BF16, None)], ids=str)
@pytest.mark.parametrize(("tokens", "features", "depth"), control.smaller(CASES, SIMT_CASES))
def test_bf16_on_every_kernel(rng, tokens, features, depth, out, bias):
    if control.is_loaded() and tokens > 1000 and bias is None:
        pytest.skip("a second of the machine's time for what smaller ones show as well")
    x, weight, scale = operands(rng, tokens, features, depth, BF16)
    b = None if bias is None else reference.random(rng, (features,), bias)
    y = poisoned((tokens, features), out, "cuda")
    on_device = [None if a is None else on(a, "cuda") for a in (x, weight, scale, b)]
    ops.wint8_linear(*on_device, out=y)
    expected, magnitude = reference.wint8_linear(x, weight, scale, b)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("tokens", "features", "depth"), [(5, 40, 640), (50, 70, 272), (50, 70, 33)]
)
def test_float32_on_every_kernel(rng, tokens, features, depth):
    x, weight, scale = operands(rng, tokens, features, depth, F32)
    bias = reference.random(rng, (features,), BF16)
    y = poisoned((tokens, features), F32, "cuda")
    ops.wint8_linear(*(on(a, "cuda") for a in (x, weight, scale, bias)), out=y)
    expected, magnitude = reference.wint8_linear(x, weight, scale, bias)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("tokens", [1, 8, 16, 32, 64, 256])
def test_every_byte_at_every_k_is_exact(tokens, dtype):
    """x picks one weight an output, and the weights of a row are all that there are."""
    weight = (np.arange(17)[:, None] * 7 + np.arange(256)).astype(np.uint8).view(np.int8)
    scale = np.random.default_rng(1).uniform(0.001, 0.1, 17).astype(F32)
    device_weight, device_scale = on(weight, "cuda"), on(scale, "cuda")
    for first in range(0, 256, max(tokens, 64)):
        x = np.eye(256, dtype=dtype)[first : first + tokens]
        got = ops.wint8_linear(on(x, "cuda"), device_weight, device_scale, dtype="float32")
        expected = weight.T[first : first + tokens].astype(F32) * scale
        np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("tokens", [3, 12, 30, 60, 140])
@pytest.mark.parametrize("off", ["x", "weight", "x's rows", "out"])
def test_rows_off_16_bytes(rng, tokens, off):
    features, depth = 2130 if tokens == 3 else 40, 80  # 3 tokens: of 16 features a block
    x, weight, scale = operands(rng, tokens, features, depth, BF16)
    wide = np.full((tokens, depth + 16), np.nan, F32).astype(BF16)
    first = {"x": 1, "x's rows": 8}.get(off, 0)
    wide[:, first : first + depth] = x
    width = depth + {"x": 16, "x's rows": 9}.get(off, 8)
    given_x = on(wide[:, :width].copy(), "cuda")[:, first : first + depth]
    skip = 1 if off == "weight" else 16
    flat = np.concatenate([np.zeros(skip, np.int8), weight.ravel()])
    given_weight = on(flat, "cuda")[skip:].reshape(features, depth)
    room = on(np.full((tokens, features + 3), 7, F32).astype(BF16), "cuda")
    begin = 1 if off == "out" else 0
    out = room[:, begin : begin + features]
    ops.wint8_linear(given_x, given_weight, on(scale, "cuda"), out=out)
    expected, magnitude = reference.wint8_linear(x, weight, scale, None)
    reference.check(
        room.numpy()[:, begin : begin + features], expected, magnitude=magnitude, terms=depth
    )
    assert np.all(room.numpy()[:, :begin] == 7)
    assert np.all(room.numpy()[:, begin + features :] == 7)


# ----------------------------------------------------------------------------------- a row's bits


@pytest.fixture(params=[False, pytest.param(True, id="invariant")])
def invariant(request):
    _core.set_batch_invariant(request.param)
    yield request.param
    _core.set_batch_invariant(False)


@pytest.mark.one_seed
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize(("features", "depth"), [(2130, 80), (150, 1296), (65, 333)])
def test_row_depends_on_itself_alone_on_cuda(rng, invariant, features, depth, dtype):
    if dtype == F32:
        if not invariant:
            pytest.skip("float32 x has two orders unless one asks for one")
        features = min(features, 150)  # the SIMT machine takes 20 s for more
    x, weight, scale = operands(rng, 150, features, depth, dtype)
    weight, scale = on(weight, "cuda"), on(scale, "cuda")

    def rows(begin: int, end: int) -> np.ndarray:
        return ops.wint8_linear(on(x[begin:end].copy(), "cuda"), weight, scale).numpy()

    together = rows(0, 150)
    for begin, end in [(0, 1), (149, 150), (5, 13), (0, 17), (100, 140), (1, 65), (30, 130)]:
        np.testing.assert_array_equal(rows(begin, end), together[begin:end])
