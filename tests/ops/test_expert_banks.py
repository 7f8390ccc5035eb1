"""Layers whose experts are in several banks: a token has one, and gets what that alone makes."""

from __future__ import annotations

import numpy as np
import pytest
from expert_cases import Experts

import ernie_kernels as ek
from ernie_kernels import _core, ops

import reference
import reference_moe
from reference import BF16, F32, on, poisoned

# Kinds of w_gate_up and w_down, num_experts, intermediate_size of each bank.
MIXED = (("wint4", "wint4", 4, 24), ("bfloat16", "bfloat16", 4, 9))
WIDER = (("bfloat16", "wint8", 3, 8), ("wint8", "wint4", 5, 40), ("wint4", "bfloat16", 2, 130))
ALIKE = (("wint8", "wint8", 8, 48), ("wint8", "wint8", 8, 16))
FLOAT = (("float32", "float32", 2, 20), ("bfloat16", "wint8", 6, 33))
CASES = [(MIXED, BF16), (MIXED, F32), (WIDER, BF16), (ALIKE, BF16), (ALIKE, F32), (FLOAT, F32)]
EITHER_LAYER = pytest.mark.parametrize(
    ("banks", "dtype"), CASES, ids=[f"{'-'.join(b[0] for b in c)}-{d}" for c, d in CASES]
)


class Layer:
    """``bank[t]`` is the bank of token t, whose ``top_k`` experts are in it."""

    def __init__(
        self, rng, banks, dtype, num_tokens, *, top_k=2, hidden_size=40, device="cpu", pack=True
    ):
        pack &= device == "cpu"
        self.device, self.top_k = device, top_k
        self.gate_up, self.down = (
            [Experts(rng, *sizes, pack=pack, device=device) for sizes in of_all]
            for of_all in (
                [(up, count, 2 * width, hidden_size) for up, _, count, width in banks],
                [(down, count, hidden_size, width) for _, down, count, width in banks],
            )
        )
        self.counts = [count for _, _, count, _ in banks]
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)
        self.x = reference.random(rng, (num_tokens, hidden_size), dtype)
        self.shared = reference.random(rng, (num_tokens, hidden_size), dtype)
        self.weights = rng.random((num_tokens, top_k)).astype(np.float32)
        self.bank = rng.integers(0, len(banks), num_tokens)
        self.local = np.array(
            [rng.permutation(self.counts[b])[:top_k] for b in self.bank], np.int32
        ).reshape(num_tokens, top_k)

    @property
    def ids(self) -> np.ndarray:
        return self.local + self.first[self.bank][:, None]

    def all_in(self, bank: int, rng) -> None:
        self.bank[:] = bank
        for row in self.local:
            row[:] = rng.permutation(self.counts[bank])[: self.top_k]

    def run(self, rows=slice(None), **kwargs) -> np.ndarray:
        return self._call(rows, self.ids, self.gate_up, self.down, kwargs)

    def bank_by_bank(self, **kwargs) -> np.ndarray:
        """Of every bank's tokens what a call with that bank alone makes."""
        out = np.empty_like(self.x)
        for b, (gate_up, down) in enumerate(zip(self.gate_up, self.down, strict=True)):
            rows = self.bank == b
            out[rows] = self._call(rows, self.local, gate_up, down, kwargs)
        return out

    def _call(self, rows, ids, gate_up, down, kwargs) -> np.ndarray:
        def given(experts):
            return [each.given for each in experts] if isinstance(experts, list) else experts.given

        tensors = (self.x[rows], self.weights[rows], ids[rows])
        return ops.fused_moe(
            *(on(t, self.device) for t in tensors), given(gate_up), given(down),
            **{"shared": on(self.shared[rows], self.device)} | kwargs,
        ).numpy()  # fmt: skip


@EITHER_LAYER
@pytest.mark.parametrize("num_tokens", [1, 7, 30])
def test_banks_match_reference(device, rng, banks, dtype, num_tokens):
    layer = Layer(rng, banks, dtype, num_tokens, device=device)
    out = poisoned(layer.x.shape, dtype, device)
    layer.run(out=out)
    expected, magnitude = reference_moe.fused_moe(
        layer.x,
        layer.weights,
        layer.ids,
        [matrix for experts in layer.gate_up for matrix in experts.matrices],
        [matrix for experts in layer.down for matrix in experts.matrices],
        layer.shared,
    )
    reference.check(out, expected, magnitude=magnitude)


@EITHER_LAYER
@pytest.mark.parametrize(("num_tokens", "hidden_size"), [(1, 40), (23, 40), (9, 33)])
def test_a_row_has_the_bits_of_its_bank_alone(device, rng, banks, dtype, num_tokens, hidden_size):
    layer = Layer(rng, banks, dtype, num_tokens, hidden_size=hidden_size, device=device)
    np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())
    for bank in range(len(banks)):
        layer.all_in(bank, rng)
        np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_int8_activations_of_banks(rng, dtype):
    for top_k, num_tokens in [(2, 1), (8, 40), (1, 5)]:
        layer = Layer(rng, ALIKE, dtype, num_tokens, top_k=top_k, hidden_size=70)
        expected = layer.bank_by_bank(int8_activations=True)
        np.testing.assert_array_equal(layer.run(int8_activations=True), expected)
        layer.all_in(1, rng)
        expected = layer.bank_by_bank(int8_activations=True)
        np.testing.assert_array_equal(layer.run(int8_activations=True), expected)


def test_every_expert_of_a_bank_for_each_token(device, rng):
    layer = Layer(rng, MIXED, BF16, 11, top_k=4, device=device)
    np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


def test_one_bank_in_a_list_is_that_bank(device, rng):
    layer = Layer(rng, MIXED[:1], BF16, 9, device=device)
    np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


def test_plain_weights_and_many_rows_of_an_expert(rng):
    layer = Layer(rng, WIDER, BF16, 330, top_k=1, pack=False)
    np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


def test_a_token_of_any_bank_depends_on_itself_alone(rng):
    layer = Layer(rng, WIDER, BF16, 60)
    whole = layer.run()
    before = ek.num_threads()
    try:
        for threads in (1, 2, 5):
            ek.set_num_threads(threads)
            np.testing.assert_array_equal(layer.run(), whole)
    finally:
        ek.set_num_threads(before)
    order = rng.permutation(60)
    np.testing.assert_array_equal(layer.run(order), whole[order])
    for begin, end in [(0, 1), (7, 8), (3, 5), (20, 52)]:
        np.testing.assert_array_equal(layer.run(slice(begin, end)), whole[begin:end])


@pytest.mark.parametrize("bank", [0, 1])
def test_what_a_bank_without_tokens_holds_does_not_matter(device, rng, bank):
    layer = Layer(rng, (("bfloat16", "bfloat16", 3, 9),) * 2, BF16, 6, device=device)
    layer.all_in(bank, rng)
    expected = layer.run()
    nothing = np.full((9, 40), np.nan).astype(BF16)
    for e in range(3):
        for experts, matrix in (
            (layer.gate_up, np.concatenate([nothing] * 2)),
            (layer.down, nothing.T),
        ):
            ops.expert_weights_set(experts[1 - bank].given, e, np.ascontiguousarray(matrix))
    assert np.isfinite(expected.astype(F32)).all()
    np.testing.assert_array_equal(layer.run(), expected)


def test_banks_of_no_width_and_calls_of_no_rows(device, rng):
    banks = (("bfloat16", "bfloat16", 2, 0), ("bfloat16", "bfloat16", 2, 9))
    for layer in (
        Layer(rng, banks, BF16, 8, device=device),
        Layer(rng, banks[::-1], BF16, 8, device=device),
        Layer(rng, banks, BF16, 0, device=device),
        Layer(rng, MIXED, BF16, 3, top_k=0, device=device),
    ):
        np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


@pytest.mark.cuda
def test_cutlass_keeps_to_the_rows_of_its_bank(rng):
    """Either bank has rows enough for it. On the SIMT machine a plain kernel is in its place."""
    banks = (("bfloat16", "bfloat16", 1, 24), ("bfloat16", "bfloat16", 2, 16))
    layer = Layer(rng, banks, BF16, 600, top_k=1, device="cuda")
    np.testing.assert_array_equal(layer.run(), layer.bank_by_bank())


@pytest.mark.cuda
def test_a_graph_serves_tokens_of_other_banks(rng):
    """Which banks have rows changes from launch to launch; the launches do not."""
    layer = Layer(rng, MIXED, BF16, 5, device="cuda")
    ids, out = on(layer.ids, "cuda"), poisoned(layer.x.shape, BF16, "cuda")
    nbytes = ops.fused_moe_workspace_size(
        5, 2, [4, 4], 40, [24, 9], dtype="bfloat16", device="cuda"
    )
    workspace, shared = ek.empty((nbytes,), "uint8", "cuda"), on(layer.shared, "cuda")
    given = ([each.given for each in side] for side in (layer.gate_up, layer.down))
    args = (on(layer.x, "cuda"), on(layer.weights, "cuda"), ids, *given)
    graph = _core.Graph(
        "cuda", lambda: ops.fused_moe(*args, shared=shared, out=out, workspace=workspace)
    )
    for bank in (None, 0, 1):
        if bank is not None:
            layer.all_in(bank, rng)
        _core.queue_copy(ids, on(layer.ids, "cuda"))
        graph.launch()
        np.testing.assert_array_equal(out.numpy(), layer.bank_by_bank())


def test_a_workspace_serves_all_banks_and_each_alone(rng):
    layer = Layer(rng, MIXED, F32, 6)
    nbytes = ops.fused_moe_workspace_size(6, 2, [4, 4], 40, (24, 9), dtype="float32")
    expected, alone = layer.run(), layer.bank_by_bank()
    room = np.full(nbytes + 64, 0xAA, np.uint8)
    begin = -room.ctypes.data % 16
    workspace = room[begin : begin + nbytes]
    np.testing.assert_array_equal(layer.run(workspace=workspace), expected)
    np.testing.assert_array_equal(layer.bank_by_bank(workspace=workspace), alone)
    assert (room[begin + nbytes :] == 0xAA).all()
    assert (room[:begin] == 0xAA).all()
    with pytest.raises(ek.ArgumentError, match=f"workspace: expected at least {nbytes} bytes"):
        layer.run(workspace=ek.empty((nbytes - 1,), "uint8"))


def test_workspace_sizes_of_banks():
    def size(num_tokens, num_experts, width, device="cpu", **kwargs):
        return ops.fused_moe_workspace_size(
            num_tokens, 6, num_experts, 64, width, dtype="bfloat16", device=device, **kwargs
        )

    for num_tokens in (1, 341, 400, 5000):
        for experts, widths in ([[64, 64], [48, 16]], [[500, 20], [8, 40]], [[8, 600], [8, 8]]):
            both = size(num_tokens, experts, widths)
            assert both >= max(map(size, [num_tokens] * 2, experts, widths))
            assert both == size(num_tokens, experts, widths, weight_dtype="int8")
            assert both == size(num_tokens, experts, widths, weight_dtype=["uint8", "bfloat16"])
            odd = [width - 5 for width in widths]  # rows in between begin at multiples of 16 bytes
            assert both == size(num_tokens, experts, odd)
            assert both >= size(num_tokens - 1, experts, widths)
    assert size(3, [4], [8]) == size(3, 4, 8)

    for message, bad in [
        ("num_experts: expected one bank", lambda: size(3, [], [])),
        ("intermediate_size: expected one for each of 2 banks, got 1", lambda: size(3, [4, 4], 8)),
        ("intermediate_size: expected one for each of 1 banks", lambda: size(3, 4, [8, 8])),
        ("num_experts: expected 1 to 4096, got 4097", lambda: size(3, [4096, 1], [8, 8])),
        ("num_experts: expected 1 to 4096, got 0", lambda: size(3, [4, 0], [8, 8])),
        ("num_experts: expected 1 to 4096", lambda: size(3, [4, 2**63 - 1], [8, 8])),
        ("intermediate_size: expected 0 or more", lambda: size(3, [4, 4], [8, -1])),
        ("weight_dtype: expected one for each of 2 banks, got 3",
         lambda: size(3, [4, 4], [8, 8], weight_dtype=["int8"] * 3)),
        ("workspace: expected sizes of 64 bits", lambda: size(2**24, [4, 4], [8, 2**60])),
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"fused_moe: {message}"):
            bad()


def test_wrong_banks_are_named(rng):
    layer = Layer(rng, MIXED, F32, 3)
    other = Layer(rng, (("bfloat16", "bfloat16", 5, 9),), F32, 3)
    gate_up, down = ([each.given for each in side] for side in (layer.gate_up, layer.down))
    scaled = ops.ExpertWeights(gate_up[1].weight, 4, 18, 40, scale=gate_up[0].scale)
    plain = [np.zeros((4, 18, 40), F32)] * 2, [np.zeros((4, 40, 9), F32) for _ in range(2)]
    many = (
        [np.zeros((n, 2, 40), F32) for n in (4095, 2)],
        [np.zeros((n, 40, 1), F32) for n in (4095, 2)],
    )

    def run(up=gate_up, to=down, ids=layer.ids, **kwargs):
        return ops.fused_moe(layer.x, layer.weights, ids, up, to, **kwargs)

    for message, bad in [
        ("w_gate_up: expected one bank of experts or more, got none", lambda: run([], [])),
        ("w_down: expected 2 banks, as of w_gate_up, got 1", lambda: run(to=down[:1])),
        ("w_down: expected 2 banks, as of w_gate_up, got 1", lambda: run(to=down[0])),
        (r"w_down\[0\]: expected out_features=40, in_features=24", lambda: run(to=down[::-1])),
        (r"w_down\[1\]: expected num_experts=4", lambda: run(to=[down[0], other.down[0].given])),
        (r"w_gate_up\[1\]: expected int8 with int8_act", lambda: int8_in_one_bank(rng)),
        (r"w_gate_up\[1\].scale: expected none", lambda: run([gate_up[0], scaled])),
        ("topk_ids: expected experts from 0 to 7, got ", lambda: run(ids=layer.ids + 8)),
        (r"out: expected memory apart from w_down\[1\]",
         lambda: run(*plain, out=plain[1][1].reshape(-1)[:120].reshape(3, 40))),
        (r"w_gate_up\[1\]: expected shape \[num_experts, out_features, in_features\], got \[4, 40\]",
         lambda: run([gate_up[0], np.zeros((4, 40), F32)])),
        (r"w_gate_up\[1\]: expected 3 dimensions, got shape \[4, 40\]",
         lambda: run([gate_up[0], ops.ExpertWeights(np.zeros((4, 40), F32), 4, 18, 40)])),
        (r"w_down\[1\]: expected in_features of 0 or more, got -9",
         lambda: run(to=[down[0], ops.ExpertWeights(down[1].weight, 4, 40, -9)])),
        (r"w_gate_up\[1\]: expected out_features of 0 or more, got -2",
         lambda: run([gate_up[0], ops.ExpertWeights(gate_up[1].weight, 4, -2, 40)])),
        (r"w_gate_up\[1\]: expected 1 to 4096 experts in all banks, got 0 after 4 of other banks",
         lambda: run([gate_up[0], np.zeros((0, 18, 40), F32)])),
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"fused_moe: {message}"):
            bad()
    for workspace in (None, np.zeros(1, np.uint8)):
        message = r"w_gate_up\[1\]: expected 1 to 4096 experts in all banks, got 2 after 4095"
        with pytest.raises(ek.ArgumentError, match=f"^fused_moe: {message}"):
            run(*many, workspace=workspace)
    message = r"^fused_moe: w_gate_up\[1\]: expected a tensor or ExpertWeights, got NoneType"
    with pytest.raises(TypeError, match=message):
        run(up=[gate_up[0], None])
    message = "^fused_moe: w_gate_up: expected a tensor or ExpertWeights, got list of NoneType"
    with pytest.raises(TypeError, match=message):
        run(up=[None])


def int8_in_one_bank(rng):
    Layer(rng, (ALIKE[0], MIXED[0]), F32, 3).run(int8_activations=True)
