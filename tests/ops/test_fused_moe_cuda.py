"""fused_moe on CUDA: the bits of the ops that it is made of, whatever the ids; from a graph too."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ernie_kernels import _core, ops

import reference
from reference import BF16, F32, on, poisoned

HIDDEN, INTERMEDIATE = 40, 24
KINDS = {"bfloat16": None, "wint8": "wint8", "wint4": "wint4"}


def experts_of(rng, num_experts: int, rows: int, depth: int, kind: str, dtype=BF16):
    name = "bfloat16" if dtype == BF16 else "float32"
    quantization = KINDS.get(kind)
    experts = ops.expert_weights(
        num_experts, rows, depth, dtype=name, quantization=quantization, device="cuda"
    )
    for e in range(num_experts):
        ops.expert_weights_set(experts, e, on(reference.random(rng, (rows, depth), dtype), "cpu"))
    return experts


class Layer:
    def __init__(self, rng, num_tokens, top_k, num_experts, kinds, dtype=BF16) -> None:
        self.x = on(reference.random(rng, (num_tokens, HIDDEN), dtype), "cuda")
        self.shared = reference.random(rng, (num_tokens, HIDDEN), dtype)
        self.weights = on(rng.random((num_tokens, top_k), F32), "cuda")
        ids = [rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)]
        self.ids = np.array(ids, np.int32).reshape(num_tokens, top_k)
        self.gate_up = experts_of(rng, num_experts, 2 * INTERMEDIATE, HIDDEN, kinds[0], dtype)
        self.down = experts_of(rng, num_experts, HIDDEN, INTERMEDIATE, kinds[1], dtype)
        self.num_experts = num_experts

    def fused(self, **kwargs) -> np.ndarray:
        ids = on(self.ids, "cuda")
        args = (self.x, self.weights, ids, self.gate_up, self.down)
        return ops.fused_moe(*args, **kwargs).numpy()

    def in_steps(self, shared=None) -> np.ndarray:
        ids = on(np.clip(self.ids, 0, self.num_experts - 1), "cuda")
        x, offsets, inverse = ops.moe_dispatch(self.x, ids, num_experts=self.num_experts)
        gated = ops.grouped_linear_silu_and_mul(x, self.gate_up, offsets)
        y = ops.grouped_linear(gated, self.down, offsets)
        return ops.moe_combine(y, inverse, self.weights, shared=shared).numpy()


CASES = [
    (1, 6, 64, ("bfloat16", "bfloat16")),
    (5, 2, 8, ("wint4", "wint8")),
    (40, 3, 8, ("wint8", "bfloat16")),
    (50, 3, 4, ("bfloat16", "wint4")),
    (260, 1, 2, ("bfloat16", "bfloat16")),  # CUTLASS, or what stands in for it
    (1100, 2, 6, ("wint8", "wint8")),
]


@pytest.mark.cuda
@pytest.mark.parametrize(("num_tokens", "top_k", "num_experts", "kinds"), CASES)
def test_the_bits_are_those_of_its_steps(rng, num_tokens, top_k, num_experts, kinds):
    layer = Layer(rng, num_tokens, top_k, num_experts, kinds)
    np.testing.assert_array_equal(layer.fused(), layer.in_steps())


@pytest.mark.cuda
def test_float32_and_shared_experts_in_place(rng):
    layer = Layer(rng, 7, 3, 5, ("float32", "float32"), F32)
    expected = layer.in_steps(shared=on(layer.shared, "cuda"))
    out = on(layer.shared, "cuda")
    np.testing.assert_array_equal(layer.fused(shared=out, out=out), expected)


@pytest.mark.cuda
def test_all_rows_in_one_expert(rng):
    layer = Layer(rng, 70, 1, 9, ("bfloat16", "wint8"))
    layer.ids[:] = 8
    np.testing.assert_array_equal(layer.fused(), layer.in_steps())


@pytest.mark.cuda
def test_ids_out_of_range_count_as_the_nearest(rng):
    layer = Layer(rng, 9, 2, 5, ("wint8", "wint4"))
    layer.ids[::2, 0], layer.ids[1::2, 1] = -(2**31), 2**31 - 1
    np.testing.assert_array_equal(layer.fused(), layer.in_steps())


@pytest.mark.cuda
def test_no_tokens(rng):
    layer = Layer(rng, 0, 2, 3, ("bfloat16", "bfloat16"))
    assert layer.fused().shape == (0, HIDDEN)


@pytest.mark.cuda
def test_a_workspace_suits_either_order_of_sums(rng):
    """What was asked for while batch_invariant was set is enough once it is not."""
    layer = Layer(rng, 260, 1, 2, ("bfloat16", "bfloat16"))
    expected = layer.fused()
    _core.set_batch_invariant(True)
    try:
        nbytes = ops.fused_moe_workspace_size(
            260, 1, 2, HIDDEN, INTERMEDIATE, dtype="bfloat16", device="cuda"
        )
        workspace = on(np.zeros(nbytes, np.uint8), "cuda")
        layer.fused(workspace=workspace)
    finally:
        _core.set_batch_invariant(False)
    np.testing.assert_array_equal(layer.fused(workspace=workspace), expected)


@pytest.mark.cuda
def test_a_graph_repeats_it_with_other_ids(rng):
    """Which experts have rows changes from launch to launch; the grid does not."""
    layer = Layer(rng, 6, 2, 7, ("bfloat16", "wint8"))
    ids, out = on(layer.ids, "cuda"), poisoned((6, HIDDEN), BF16, "cuda")
    bytes_ = ops.fused_moe_workspace_size(
        6, 2, 7, HIDDEN, INTERMEDIATE, dtype="bfloat16", device="cuda"
    )
    workspace = on(np.zeros(bytes_, np.uint8), "cuda")
    args = (layer.x, layer.weights, ids, layer.gate_up, layer.down)
    graph = _core.Graph("cuda", lambda: ops.fused_moe(*args, out=out, workspace=workspace))
    for chosen in itertools.chain([layer.ids], ([[e, (e + 3) % 7]] * 6 for e in range(3))):
        layer.ids = np.array(chosen, np.int32)
        _core.queue_copy(ids, on(layer.ids, "cuda"))
        graph.launch()
        np.testing.assert_array_equal(out.numpy(), layer.in_steps())
