from __future__ import annotations

import numpy as np
import pytest
from expert_cases import EITHER_PAIR, PAIRS, Experts

import ernie_kernels as ek
from ernie_kernels import ops

import reference
import reference_moe
from linear_cases import EITHER_PACKED
from reference import BF16, F32, poisoned

# num_tokens, top_k, num_experts, hidden_size, intermediate_size
CASES = [
    (1, 1, 1, 1, 1),
    (1, 6, 64, 20, 8),
    (2, 3, 3, 33, 17),
    (5, 2, 4, 64, 48),
    (8, 2, 40, 130, 35),
    (9, 4, 5, 40, 129),
    (30, 2, 2, 150, 20),
    (130, 3, 4, 17, 24),
    (3, 2, 3, 1100, 10),
]


class Layer:
    def __init__(self, rng, case, kind, x_dtype, *, down_kind=None, pack=True, shared=True):
        num_tokens, top_k, num_experts, hidden_size, intermediate_size = case
        self.gate_up = Experts(
            rng, kind, num_experts, 2 * intermediate_size, hidden_size, pack=pack
        )
        self.down = Experts(
            rng, down_kind or kind, num_experts, hidden_size, intermediate_size, pack=pack
        )
        self.x = reference.random(rng, (num_tokens, hidden_size), x_dtype)
        self.weights = rng.random((num_tokens, top_k)).astype(np.float32)
        self.ids = np.array(
            [rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)], np.int32
        ).reshape(num_tokens, top_k)
        self.shared = reference.random(rng, self.x.shape, x_dtype) if shared else None

    def run(self, rows=slice(None), **kwargs):
        shared = None if self.shared is None else self.shared[rows]
        return ops.fused_moe(
            self.x[rows],
            self.weights[rows],
            self.ids[rows],
            self.gate_up.given,
            self.down.given,
            **{"shared": shared} | kwargs,
        )

    def op_by_op(self, **mode):
        """The four ops that the header names."""
        offsets, inverse, source_rows = ops.moe_sort(self.ids, self.gate_up.given.num_experts)
        gated = ops.grouped_linear_silu_and_mul(
            self.x, self.gate_up.given, offsets, source_rows=source_rows, **mode
        )
        y = ops.grouped_linear(gated, self.down.given, offsets, **mode)
        return ops.moe_combine(y, inverse, self.weights, shared=self.shared)


@EITHER_PACKED
@EITHER_PAIR
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_moe_matches_reference(rng, case, kind, x_dtype, packed):
    layer = Layer(rng, case, kind, x_dtype, pack=packed, shared=case[0] != 2)
    out = poisoned(layer.x.shape, x_dtype, "cpu")
    assert layer.run(out=out) is out
    expected, magnitude = reference_moe.fused_moe(
        layer.x,
        layer.weights,
        layer.ids,
        layer.gate_up.matrices,
        layer.down.matrices,
        layer.shared,
    )
    reference.check(out, expected, magnitude=magnitude)


@EITHER_PAIR
def test_it_is_the_four_ops_bit_for_bit(rng, kind, x_dtype):
    for case in CASES:
        layer = Layer(rng, case, kind, x_dtype)
        for mode in ({}, {"int8_activations": True}) if kind == "wint8" else ({},):
            expected = layer.op_by_op(**mode).numpy()
            np.testing.assert_array_equal(layer.run(**mode).numpy(), expected)


@pytest.mark.parametrize(("kind", "x_dtype"), PAIRS)
def test_a_token_depends_on_itself_alone(rng, kind, x_dtype):
    layer = Layer(rng, (60, 4, 9, 70, 40), kind, x_dtype)
    whole = layer.run().numpy()
    before = ek.num_threads()
    try:
        for threads in (1, 2, 5):
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(layer.run().numpy(), whole)
    finally:
        ek.set_num_threads(before)
    order = rng.permutation(60)
    np.testing.assert_array_equal(layer.run(order).numpy(), whole[order])
    for begin, end in [(0, 1), (7, 8), (3, 5), (10, 18), (20, 52), (59, 60)]:
        np.testing.assert_array_equal(layer.run(slice(begin, end)).numpy(), whole[begin:end])


@pytest.mark.parametrize(("gate_up", "down"), [("bfloat16", "wint4"), ("wint8", "float32")])
def test_products_of_different_kinds(rng, gate_up, down):
    layer = Layer(rng, (7, 2, 5, 40, 24), gate_up, F32, down_kind=down)
    np.testing.assert_array_equal(layer.run().numpy(), layer.op_by_op().numpy())


@pytest.mark.parametrize("kind", ["bfloat16", "wint4"])
def test_all_tokens_at_one_expert_and_every_expert_for_each(rng, kind):
    layer = Layer(rng, (100, 1, 8, 40, 24), kind, BF16)
    layer.ids[:] = 5
    np.testing.assert_array_equal(layer.run().numpy(), layer.op_by_op().numpy())
    layer = Layer(rng, (5, 16, 16, 40, 24), kind, BF16)
    np.testing.assert_array_equal(layer.run().numpy(), layer.op_by_op().numpy())
    layer.ids[2] = 3  # one expert many times over
    np.testing.assert_array_equal(layer.run().numpy(), layer.op_by_op().numpy())


def test_most_experts_that_there_may_be(rng):
    layer = Layer(rng, (3, 8, 4096, 8, 4), "wint4", BF16)
    layer.ids[0, :2] = 0, 4095
    np.testing.assert_array_equal(layer.run().numpy(), layer.op_by_op().numpy())


@EITHER_PAIR
@pytest.mark.parametrize(
    "case", [(0, 2, 4, 8, 6), (3, 0, 4, 8, 6), (3, 2, 4, 8, 0), (3, 2, 4, 0, 6)], ids=str
)
def test_empty_extents(rng, case, kind, x_dtype):
    layer = Layer(rng, case, kind, x_dtype)
    out = layer.run()
    assert out.shape == layer.x.shape
    if 0 in case[1:]:
        np.testing.assert_array_equal(out.numpy(), layer.shared)


def test_in_place_of_the_shared_experts_and_inside_wider_rows(rng):
    layer = Layer(rng, (9, 3, 5, 40, 24), "bfloat16", BF16)
    expected = layer.run().numpy()
    wide = np.full((9, 47), 7).astype(BF16)
    wide[:, 3:43] = layer.shared
    out = ek.from_numpy(wide)
    layer.run(shared=out[:, 3:43], out=out[:, 3:43])
    wide[:, 3:43] = expected
    np.testing.assert_array_equal(out.numpy(), wide)
    wide_x = np.full((9, 47), np.nan).astype(BF16)
    wide_x[:, 3:43] = layer.x
    layer.x = wide_x[:, 3:43]
    np.testing.assert_array_equal(layer.run().numpy(), expected)


def test_a_nan_weight_is_its_tokens_alone(rng):
    """What moe_route gives a row that is not finite."""
    layer = Layer(rng, (6, 2, 4, 20, 8), "bfloat16", F32)
    before = layer.run().numpy()
    layer.weights[3] = np.nan
    after = layer.run().numpy()
    assert np.isnan(after[3]).all()
    others = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(after[others], before[others])


def test_workspace_is_asked_for_and_enough(rng):
    layer = Layer(rng, (6, 2, 4, 20, 8), "bfloat16", F32)
    nbytes = ops.fused_moe_workspace_size(6, 2, 4, 20, 8, dtype="float32")
    expected = layer.run().numpy()
    for slack in (0, 5):
        room = np.full(nbytes + slack + 64, 0xAA, np.uint8)
        begin = -room.ctypes.data % 16
        layer.run(workspace=room[begin : begin + nbytes + slack])
        assert (room[begin + nbytes + slack :] == 0xAA).all()
        assert (room[:begin] == 0xAA).all()
    np.testing.assert_array_equal(
        layer.run(workspace=ek.empty((nbytes,), "uint8")).numpy(), expected
    )
    with pytest.raises(
        ek.ArgumentError, match=f"workspace: expected at least {nbytes} bytes, got "
    ):
        layer.run(workspace=ek.empty((nbytes - 1,), "uint8"))
    with pytest.raises(ek.ArgumentError, match="workspace: expected memory at a multiple of 16"):
        layer.run(workspace=ek.empty((nbytes + 8,), "uint8")[8:])
    fewer = [ops.fused_moe_workspace_size(t, 2, 4, 20, 8, dtype="float32") for t in range(7)]
    assert fewer == sorted(fewer)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2**31, 1, 4, 8, 8), r"num_tokens: expected fewer than 2\^31 rows of top_k="),
        ((2**62, 4, 4, 8, 8), r"num_tokens: expected fewer than 2\^31 rows of top_k="),
        ((-1, 1, 4, 8, 8), "num_tokens: expected 0 or more, got -1"),
        ((1, 1, 0, 8, 8), "num_experts: expected 1 to 4096, got 0"),
        ((1, 1, 4097, 8, 8), "num_experts: expected 1 to 4096, got 4097"),
        ((1, 1, 2**63 - 1, 8, 8), "num_experts: expected 1 to 4096, got 9223372036854775807"),
        ((2**20, 8, 4, 2**50, 8), "workspace: expected sizes of 64 bits"),
        ((2**20, 8, 4, 8, 2**62), "workspace: expected sizes of 64 bits"),
    ],
)
def test_workspace_sizes_do_not_wrap(sizes, message):
    with pytest.raises(ek.ArgumentError, match=message):
        ops.fused_moe_workspace_size(*sizes, dtype="bfloat16")


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_ids_are_experts(rng, bad):
    layer = Layer(rng, (3, 2, 4, 20, 8), "bfloat16", F32)
    layer.ids[1, 1] = bad
    out = poisoned((3, 20), F32, "cpu")
    message = f"fused_moe: topk_ids: expected experts from 0 to 3, got {bad} at token 1, slot 1"
    with pytest.raises(ek.ArgumentError, match=message):
        layer.run(out=out)
    assert np.isnan(out.numpy()).all()


def test_wrong_arguments_are_named(rng):
    case = (3, 2, 4, 20, 8)
    good = Layer(rng, case, "bfloat16", F32)
    other = Layer(rng, (3, 2, 5, 20, 8), "bfloat16", F32)
    odd = ops.ExpertWeights(np.ones((4, 5, 20), BF16), 4, 5, 20)
    gate_up, down = good.gate_up.given, good.down.given

    def run(x=good.x, weights=good.weights, ids=good.ids, up=gate_up, to=down, **kwargs):
        return ops.fused_moe(x, weights, ids, up, to, **kwargs)

    for message, bad in [
        ("hidden_states: expected 2 dim", lambda: run(good.x[0])),
        ("topk_ids: expected shape", lambda: run(ids=good.ids[:2])),
        ("topk_ids: expected int32", lambda: run(ids=good.ids.astype(np.int64))),
        ("topk_weights: expected shape", lambda: run(weights=good.weights[:, :1])),
        ("topk_weights: expected float32", lambda: run(weights=good.weights.astype(BF16))),
        ("w_gate_up: expected in_features=19", lambda: run(good.x[:, 1:])),
        ("w_gate_up: expected an even number of out_features, got 5", lambda: run(up=odd)),
        ("w_down: expected out_features=20, in_features=8, got", lambda: run(to=gate_up)),
        ("w_down: expected num_experts=4", lambda: run(to=other.down.given)),
        ("w_gate_up: expected int8 with int8_act", lambda: run(int8_activations=True)),
        ("shared: expected shape", lambda: run(shared=good.x[:2])),
        ("shared: expected float32", lambda: run(shared=good.x.astype(BF16))),
        ("out: expected shape", lambda: run(out=good.x[:2].copy())),
        ("out: expected memory apart from hidden_states", lambda: run(out=good.x)),
        ("out: expected memory apart from sha", lambda: overlapping(run)),
        ("workspace: expected uint8", lambda: run(workspace=np.ones(9999, np.int8))),
        (r"w_down: expected shape \[num_experts, out", lambda: run(to=np.ones((2, 2), F32))),
    ]:
        with pytest.raises(ek.ArgumentError, match=f"fused_moe: {message}"):
            bad()
    with pytest.raises(TypeError, match="fused_moe: w_gate_up: expected a tensor or ExpertWeights"):
        run(up=None)


def overlapping(run):
    """Rows of `shared` that are `out`'s, one further down."""
    room = np.zeros((4, 20), F32)
    return run(shared=room[:3], out=room[1:])
