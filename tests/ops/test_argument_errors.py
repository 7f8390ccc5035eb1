"""Every tensor argument of every op, wrong in every way: the error names the op and the argument.

The calls are those of op_calls.py; what else their arguments must satisfy is for the op's own tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from op_calls import OPS, zeros

# The cache is copied whatever it holds; all other tensors have a dtype to be wrong about.
ANY_DTYPE = {("kv_cache_copy_blocks", "k_cache")}


def grown(array: np.ndarray, dim: int) -> np.ndarray:
    return np.concatenate([array, array.take([0], axis=dim)], axis=dim)


def frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def faults(name: str, argument: str, good: np.ndarray) -> Iterator[tuple[str, Any]]:
    """What is wrong, and a value that is."""
    yield "a dimension more", good[None]
    yield "a dimension less", good[0, ...]
    yield "stride 2", np.repeat(good, 2, axis=-1)[..., ::2]
    if (name, argument) not in ANY_DTYPE:
        yield "float16", good.astype(np.float16)
        yield "bool", good.astype(np.bool_)
    for dim in range(good.ndim):
        if dim not in OPS[name].leading.get(argument, ()):
            yield f"dimension {dim} grown", grown(good, dim)
    if argument in OPS[name].written:
        yield "read-only", frozen(good.copy())


def cases() -> Iterator[Any]:
    for name, op in OPS.items():
        for argument, good in op.tensors().items():
            for fault, value in faults(name, argument, good):
                yield pytest.param(name, argument, value, id=f"{name}-{argument}-{fault}")


def call(name: str, **changes: Any) -> Any:
    op = OPS[name]
    return op.call(**op.tensors() | op.scalars | changes)


@pytest.mark.parametrize("name", OPS)
def test_good_arguments_pass(name):
    call(name)


@pytest.mark.parametrize("name", OPS)
def test_read_only_inputs_pass(name):
    op = OPS[name]
    inputs = {k: frozen(v) for k, v in op.tensors().items() if k not in op.written}
    call(name, **inputs)


@pytest.mark.parametrize(("name", "argument", "value"), list(cases()))
def test_a_wrong_tensor_is_an_argument_error(name, argument, value):
    with pytest.raises(ek.ArgumentError, match=f"^{name.split()[0]}: {argument}: expected "):
        call(name, **{argument: value})


@pytest.mark.parametrize("value", [[0.0], "text", object(), {}], ids=lambda v: type(v).__name__)
@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, op in OPS.items() for argument in op.tensors()],
)
def test_what_is_no_tensor_is_a_type_error(name, argument, value):
    with pytest.raises(TypeError, match=f"^{name.split()[0]}: {argument}: expected a tensor .*got"):
        call(name, **{argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name, op in OPS.items()
        for argument in op.tensors()
        if "out" in op.tensors() and argument != "out" and op.call is not ops.scatter_rows
    ],
)
def test_errors_are_the_same_when_out_is_allocated(name, argument):
    call(name, out=None)
    where = f"^{name.split()[0]}: {argument}: expected "
    with pytest.raises(TypeError, match=f"{where}a tensor .*got list"):
        call(name, out=None, **{argument: [0.0]})
    flat = OPS[name].tensors()[argument][0, ...]
    with pytest.raises(ek.ArgumentError, match=where):
        call(name, out=None, **{argument: flat})


@pytest.mark.parametrize(
    ("name", "argument", "changes"),
    [
        ("linear", "x", {"weight": zeros(8, 8), "bias": None}),
        ("attention", "query", {}),
        ("embedding", "weight", {"input_ids": zeros(5, dtype=np.int64)}),
        (
            "moe_combine",
            "x",
            {"inverse": zeros(6, 1, dtype=np.int32), "topk_weights": zeros(6, 1), "shared": None},
        ),
    ],
)
def test_the_output_may_not_share_memory_with_an_input(name, argument, changes):
    shared = OPS[name].tensors()[argument]
    with pytest.raises(ek.ArgumentError, match=f"^{name}: out: expected memory apart from"):
        call(name, **{argument: shared, "out": shared, **changes})


def given_on(device: str):
    """Makes tensors of one value: indices where that is 0."""

    def given(shape: tuple[int, ...], value: float = 1.0) -> ek.Tensor:
        return ek.from_numpy(np.full(shape, value, np.float32 if value else np.int32), device)

    return given


def two_views_of_a_row(device: str) -> tuple[ek.Tensor, ek.Tensor]:
    """Of the same 8 elements, as a row of 16 and as one of 8."""
    room = ek.from_numpy(np.arange(1, 17, dtype=np.float32), device)
    return room.reshape(1, 16)[:, :8], room.reshape(2, 8)[:1]


IN_PLACE = {
    "rms_norm": lambda x, given, out: ops.rms_norm(x, given((8,)), out=out),
    "layer_norm": lambda x, given, out: ops.layer_norm(x, given((8,)), given((8,)), out=out),
    "gelu": lambda x, _, out: ops.gelu(x, out=out),
    "quick_gelu": lambda x, _, out: ops.quick_gelu(x, out=out),
    "moe_combine": lambda x, given, out: ops.moe_combine(
        given(x.shape), given((len(x), 1), 0), given((len(x), 1)), shared=x, out=out
    ),
    "fused_moe": lambda x, given, out: ops.fused_moe(
        given(x.shape), given((len(x), 1)), given((len(x), 1), 0), given((1, 4, 8)),
        given((1, 8, 2)), shared=x, out=out,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_row_in_place_may_have_any_stride(device, name):
    """It has no next one, so that its stride says nothing."""
    op, given, (x, out) = IN_PLACE[name], given_on(device), two_views_of_a_row(device)
    assert x.strides != out.strides
    expected = op(ek.from_numpy(x.numpy().copy(), device), given, None).numpy()
    np.testing.assert_array_equal(op(x, given, out).numpy(), expected)


@pytest.mark.parametrize("name", IN_PLACE)
def test_rows_that_are_not_the_same_are_not_in_place(device, name):
    op, given = IN_PLACE[name], given_on(device)
    room = given((24,))
    for x, out in [
        (room[:8].reshape(1, 8), room[1:9].reshape(1, 8)),
        (room[:16].reshape(2, 8), room.reshape(2, 12)[:, :8]),
    ]:
        with pytest.raises(ek.ArgumentError, match=f"^{name}: out: expected memory apart from"):
            op(x, given, out)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.rms_norm(x, x[0], eps="small"), "rms_norm: eps: expected a number, got str"),
        (
            lambda x: ops.rms_norm(x, x[0], eps=None),
            "rms_norm: eps: expected a number, got NoneType",
        ),
        (
            lambda x: ops.add_rms_norm(x, x.copy(), x[0], eps=[1]),
            "add_rms_norm: eps: expected a number, got list",
        ),
        (
            lambda x: ops.rope_table(np.arange(2), 2.5, theta=1.0),
            "rope_table: head_dim: expected an integer, got float",
        ),
        (
            lambda x: ops.rope_table(np.arange(2), 2, theta="x"),
            "rope_table: theta: expected a number, got str",
        ),
        (
            lambda x: ops.embedding(np.arange(2), x, vocab_size="2"),
            "embedding: vocab_size: expected an integer, got str",
        ),
        (
            lambda x: ops.embedding(np.arange(2), x, dtype=5),
            "embedding: dtype: expected a string, got int",
        ),
        (lambda x: ops.linear(x, x, dtype=[x]), "linear: dtype: expected a string, got list"),
        (
            lambda x: call("attention", causal=1),
            "attention: causal: expected True or False, got int",
        ),
        (
            lambda x: ops.moe_route(x, x[0], 1.5),
            "moe_route: top_k: expected an integer, got float",
        ),
        (
            lambda x: call("moe_route", norm_min="x"),
            "moe_route: norm_min: expected a number, got str",
        ),
        (
            lambda x: call("moe_dispatch", num_experts=None),
            "moe_dispatch: num_experts: expected an integer, got NoneType",
        ),
        (lambda x: ek.from_numpy(x, device=0), "from_numpy: device: expected a string, got int"),
        (
            lambda x: ek.from_numpy(x).to(None),
            "to: device: expected a string, got NoneType",
        ),
        (lambda x: ek.empty((1,), x), "empty: dtype: expected a name or a numpy dtype, .*ndarray"),
        (lambda x: ek.empty((1.5,), "int8"), "empty: shape: expected integers of 64 bits"),
        (lambda x: ek.set_num_threads("2"), "set_num_threads: n: expected an integer, got str"),
    ],
)
def test_a_scalar_of_the_wrong_type_is_named(call, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        call(np.ones((2, 2), np.float32))


def test_flags_of_numpy_and_lone_surrogates_are_understood():
    call("attention", causal=np.bool_(False))
    with pytest.raises(ek.ArgumentError, match="dtype: expected text that UTF-8 can encode"):
        ek.empty((1,), "\ud800")


def test_a_number_beyond_64_bits_is_named():
    with pytest.raises(
        ek.ArgumentError, match="head_dim: expected an integer of 64 bits, got a larger"
    ):
        ops.rope_table(np.arange(2), 1 << 80, theta=1.0)
