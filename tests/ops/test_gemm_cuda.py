"""linear on CUDA: what is launched, asked without a GPU; and on a GPU, that every kernel is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ernie_kernels as ek
import reference_vision
from ernie_kernels import _core, ops
from simt import control

import reference
from reference import BF16, F32, on, poisoned

CUTLASS = {"sm80", "sm90"}
TOKENS = [1, 2, 8, 16, 17, 32, 33, 64, 65, 128, 129, 512, 4096, 100_000]
# out_features, in_features: 0.3B and 21B projections, a router, the vocabulary, awkward ones.
WEIGHTS = [(2048, 1024), (1024, 3072), (2560, 12288), (64, 2560), (103424, 1024), (1, 1), (17, 33)]
DTYPES = list(itertools.product(["bfloat16", "float32"], repeat=3))
DTYPES = [d for d in DTYPES if d[1] == "bfloat16" or d[0] == "float32"]
DTYPES = [d for d in DTYPES if d[0] == "bfloat16" or d[2] == "float32"]


def plan(tokens: int, features: int, depth: int, **kwargs) -> dict:
    kwargs.setdefault("inputs_aligned", depth % 8 == 0)
    kwargs.setdefault("outputs_aligned", features % 8 == 0)
    return _core.cuda_gemm_plan(tokens, features, depth, **kwargs)


@pytest.mark.parametrize("capability", [80, 89, 90, 120])
@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
def test_plan_covers_the_output_and_fits(dtypes, invariant, capability):
    x, weight, out = dtypes
    for tokens, (features, depth) in itertools.product(TOKENS, WEIGHTS):
        kwargs = {"x": x, "weight": weight, "out": out, "capability": capability}
        p = plan(tokens, features, depth, batch_invariant=invariant, **kwargs)
        assert 0 <= p["token_blocks"] * p["tile_tokens"] - tokens < p["tile_tokens"]
        assert 0 <= p["feature_blocks"] * p["tile_features"] - features < p["tile_features"]
        assert p["token_blocks"] * p["feature_blocks"] < 2**31
        assert p["shared_bytes"] <= 99 << 10  # what every GPU from 8.0 on has
        assert p["threads"] in (128, 256, 384)
        activated = plan(
            tokens, features, depth, activated=True, batch_invariant=invariant, **kwargs
        )
        if activated["kernel"] in CUTLASS:
            assert out == "bfloat16"
            assert activated["tile_features"] == 128
        assert (x == "float32") == p["kernel"].endswith("f32")
        if p["kernel"].startswith(("narrow", "tile_bf16")):
            assert p["slice"] % 32 == 0
            assert p["slice"] * _core.GEMM_SLICES >= depth
        if p["kernel"] in CUTLASS:
            assert p["kernel"] == ("sm90" if capability == 90 else "sm80")
            assert not invariant
            assert depth % 8 == 0
            assert features % 8 == 0


# On an H200 and an A100. Few tokens stream; CUTLASS begins where its tiles occupy the GPU.
@pytest.mark.parametrize(
    ("tokens", "features", "depth", "out", "h200", "a100"),
    [
        (1, 2048, 1024, "bfloat16", "narrow_bf16 16x8x0", "narrow_bf16 16x8x0"),
        (32, 103424, 1024, "float32", "narrow_bf16 32x16x0", "narrow_bf16 32x16x0"),
        (64, 1024, 3072, "bfloat16", "narrow_bf16 64x16x0", "narrow_bf16 64x16x0"),
        (64, 103424, 1024, "float32", "sm90 64x128x64", "narrow_bf16 64x16x0"),
        (256, 1024, 1024, "bfloat16", "sm90 64x128x64", "sm80 128x128x32"),
        (4096, 6144, 1024, "bfloat16", "sm90 128x256x64", "sm80 128x128x32"),
        (4096, 1024, 3072, "bfloat16", "sm90 128x256x64", "sm80 128x128x32"),
        (2176, 2048, 1024, "bfloat16", "sm90 64x128x64", "sm80 128x128x32"),
        (4096, 6144, 1024, "float32", "sm90 64x128x64", "tile_bf16 128x128x32"),
        (4096, 6144, 1020, "bfloat16", "tile_bf16 128x128x32", "tile_bf16 128x128x32"),
        (4096, 6141, 1024, "bfloat16", "tile_bf16 128x128x32", "tile_bf16 128x128x32"),
        (256, 1000, 1020, "bfloat16", "tile_bf16 64x64x32", "tile_bf16 64x64x32"),
    ],
)
def test_plan_of_model_shapes(tokens, features, depth, out, h200, a100):
    for capability, sm_count, want in ((90, 132, h200), (80, 108, a100)):
        got = plan(tokens, features, depth, out=out, capability=capability, sm_count=sm_count)
        assert got["text"].startswith(want + " stages")


# The vision tower's fc1 and the resampler: tiles whose epilogue another warpgroup's products hide.
@pytest.mark.parametrize(
    ("tokens", "features", "depth", "out", "h200", "a100"),
    [
        (16, 5120, 1280, "bfloat16", "narrow_bf16 16x8x0", "narrow_bf16 16x8x0"),
        (4096, 5120, 1280, "bfloat16", "sm90 64x128x64", "sm80 128x128x32"),
        (1024, 5120, 5120, "bfloat16", "sm90 64x128x64", "sm80 128x128x32"),
        (4096, 5120, 1280, "float32", "tile_bf16 128x128x32", "tile_bf16 128x128x32"),
    ],
)
def test_plan_of_activated_model_shapes(tokens, features, depth, out, h200, a100):
    for capability, sm_count, want in ((90, 132, h200), (80, 108, a100)):
        kwargs = {"capability": capability, "sm_count": sm_count, "activated": True}
        assert plan(tokens, features, depth, out=out, **kwargs)["text"].startswith(want + " stages")


@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
@pytest.mark.parametrize(("features", "depth"), WEIGHTS)
def test_invariant_plan_keeps_one_arithmetic(features, depth, dtypes):
    x, weight, out = dtypes
    kwargs = {"x": x, "weight": weight, "out": out, "batch_invariant": True}
    plans = [plan(tokens, features, depth, **kwargs) for tokens in TOKENS]
    assert len({p["slice"] for p in plans}) == 1
    kernels = {p["kernel"] for p in plans}
    # These two share their order; the float32 kernels do not, so there is one.
    assert kernels == ({"narrow_bf16", "tile_bf16"} if x == "bfloat16" else {"narrow_f32"})


def test_plan_refuses_old_gpus_by_capability():
    with pytest.raises(ek.DeviceError, match=r"compute capability 7\.5; 8\.0 or newer"):
        plan(1, 8, 8, capability=75)


@pytest.mark.parametrize("extents", [(2**40, 8, 8), (8, 2**40, 8), (8, 8, 2**40)])
def test_plan_refuses_extents_no_index_holds(extents):
    with pytest.raises(ek.UnsupportedError, match=r"1099511627776.*split the call"):
        plan(*extents)


def test_plan_refuses_what_is_no_problem():
    for extents in ((-1, 8, 8), (8, -1, 8), (8, 8, -1)):
        with pytest.raises(ek.ArgumentError, match="linear: expected extents >= 0, got num_tokens"):
            plan(*extents)
    with pytest.raises(ek.ArgumentError, match="sm_count: expected at least 1, got 0"):
        plan(8, 8, 8, sm_count=0)


def test_batch_invariant_switch():
    assert not _core.batch_invariant()
    _core.set_batch_invariant(True)
    assert _core.batch_invariant()
    _core.set_batch_invariant(False)
    assert not _core.batch_invariant()


@pytest.fixture
def invariant():
    _core.set_batch_invariant(True)
    yield
    _core.set_batch_invariant(False)


# num_tokens, out_features, in_features: every kernel and tile of an H200, cut short at its edges.
BF16_CASES = [
    (8, 1000, 2568),
    (24, 200, 520),
    (50, 200, 520),
    (130, 2200, 72),
    (300, 520, 4104),
    (1990, 1992, 200),
    (200, 330, 1001),
    (1500, 1500, 77),
]


def test_cases_reach_every_bf16_kernel():
    plans = [plan(*case, out=out) for case in BF16_CASES for out in ("bfloat16", "float32")]
    assert {f"{p['kernel']} {p['tile_tokens']}x{p['tile_features']}" for p in plans} == {
        "narrow_bf16 16x8",
        "narrow_bf16 32x16",
        "narrow_bf16 64x16",
        "tile_bf16 64x64",
        "tile_bf16 128x128",
        "sm90 64x128",
        "sm90 128x256",
    }


# The SIMT machine has no CUTLASS and takes seconds for 800 million products: the same tiles with
# less depth. There the 16 to 64 token, the 64x64 and the 128x128 kernels serve these.
SIMT_CASES = [
    (8, 1000, 520),
    (24, 200, 520),
    (50, 200, 520),
    (300, 520, 1032),
    (1416, 1424, 72),
    (200, 330, 1001),
    (1416, 1430, 33),
]


def test_simt_cases_reach_every_kernel_of_this_folder():
    plans = [plan(*case, has_cutlass=False) for case in SIMT_CASES]
    assert {f"{p['kernel']} {p['tile_tokens']} {p['aligned']}" for p in plans} == {
        "narrow_bf16 16 True",
        "narrow_bf16 32 True",
        "narrow_bf16 64 True",
        "tile_bf16 64 True",
        "tile_bf16 64 False",
        "tile_bf16 128 True",
        "tile_bf16 128 False",
    }


@pytest.mark.cuda
@pytest.mark.parametrize("bias", [False, pytest.param(True, id="bias")])
@pytest.mark.parametrize("out", [BF16, F32], ids=str)
@pytest.mark.parametrize(("tokens", "features", "depth"), control.smaller(BF16_CASES, SIMT_CASES))
def test_linear_bf16_on_every_kernel(rng, tokens, features, depth, out, bias):
    x = reference.random(rng, (tokens, depth), BF16)
    weight = reference.random(rng, (features, depth), BF16)
    b = reference.random(rng, (features,), BF16) if bias else None
    y = poisoned((tokens, features), out, "cuda")
    ops.linear(on(x, "cuda"), on(weight, "cuda"), None if b is None else on(b, "cuda"), out=y)
    expected, magnitude = reference.linear(x, weight, b)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.cuda
@pytest.mark.parametrize("out", [BF16, F32], ids=str)
@pytest.mark.parametrize(("tokens", "features", "depth"), control.smaller(BF16_CASES, SIMT_CASES))
def test_every_kernel_activates_its_sums(rng, tokens, features, depth, out):
    activation = "gelu" if out == BF16 else "quick_gelu"
    x = reference.random(rng, (tokens, depth), BF16)
    weight = reference.random(rng, (features, depth), BF16, 0.1)
    bias = reference.random(rng, (features,), BF16)
    y = poisoned((tokens, features), out, "cuda")
    arguments = (on(array, "cuda") for array in (x, weight, bias))
    ops.linear(*arguments, activation=activation, out=y)
    expected, magnitude = reference_vision.activated_linear(x, weight, bias, activation)
    reference.check(y, expected, magnitude=magnitude, terms=depth)


@pytest.mark.one_seed
@pytest.mark.cuda
@pytest.mark.parametrize("dtypes", [(BF16, BF16), (F32, BF16), (F32, F32)], ids=str)
@pytest.mark.parametrize(("features", "depth"), [(6000, 136), (200, 2568), (65, 333)])
def test_row_depends_on_itself_alone_on_cuda(rng, invariant, features, depth, dtypes):
    if dtypes[0] == F32:  # on the SIMT machine, 20 s for what 600 features show as well
        features = control.smaller(features, min(features, 600))
    x = reference.random(rng, (300, depth), dtypes[0])
    weight = on(reference.random(rng, (features, depth), dtypes[1]), "cuda")

    def rows(begin: int, end: int) -> np.ndarray:
        return ops.linear(on(x[begin:end].copy(), "cuda"), weight).numpy()

    together = rows(0, 300)
    for begin, end in [(0, 1), (299, 300), (5, 13), (0, 17), (100, 140), (1, 65), (30, 160)]:
        np.testing.assert_array_equal(rows(begin, end), together[begin:end])
