"""Every tensor argument of every op, wrong in every way: the error names the op and the argument.

A new op needs one row in OPS; what else its arguments must satisfy is for the op's own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@dataclass(frozen=True)
class Op:
    call: Callable[..., Any]
    tensors: Callable[[], dict[str, np.ndarray]]
    """Makes one good value for each tensor argument."""
    scalars: dict[str, Any] = field(default_factory=dict)
    written: frozenset[str] = frozenset()
    leading: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Dimensions that other arguments must follow, so that the blame falls on those."""


def kv_cache_write_tensors() -> dict[str, np.ndarray]:
    return {
        "key": zeros(3, 2, 4),
        "value": zeros(3, 2, 4),
        "k_cache": zeros(5, 2, 8, 4),
        "v_cache": zeros(5, 2, 8, 4),
        "slot_mapping": np.arange(3, dtype=np.int32),
    }


def attention_tensors() -> dict[str, np.ndarray]:
    return {
        "query": zeros(4, 2, 8),
        "k_cache": zeros(3, 1, 16, 8),
        "v_cache": zeros(3, 1, 16, 8),
        "cu_seqlens_q": np.array([0, 3, 4], np.int32),
        "seq_lens": np.array([3, 9], np.int32),
        "block_table": np.array([[1], [0]], np.int32),
        "out": zeros(4, 2, 8),
    }


def penalties_tensors() -> dict[str, np.ndarray]:
    return {
        "logits": zeros(2, 8),
        "token_ids": zeros(4, dtype=np.int64),
        "cu_tokens": np.array([0, 2, 4], np.int32),
        "prompt_lens": zeros(2, dtype=np.int32),
        "repetition_penalty": np.ones(2, np.float32),
        "presence_penalty": zeros(2),
        "frequency_penalty": zeros(2),
    }


def sample_tensors() -> dict[str, np.ndarray]:
    return {
        "out": zeros(2, dtype=np.int64),
        "logits": zeros(2, 8),
        "temperature": zeros(2),
        "top_k": zeros(2, dtype=np.int32),
        "top_p": np.ones(2, np.float32),
        "min_p": zeros(2),
        "seed": zeros(2, dtype=np.int64),
        "position": zeros(2, dtype=np.int64),
    }


OPS = {
    "rms_norm": Op(
        ops.rms_norm,
        lambda: {"x": zeros(3, 8), "weight": zeros(8), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "add_rms_norm": Op(
        ops.add_rms_norm,
        lambda: {
            "x": zeros(3, 8),
            "residual": zeros(3, 8),
            "weight": zeros(8),
            "out": zeros(3, 8),
        },
        written=frozenset({"residual", "out"}),
        leading={"x": (0, 1)},
    ),
    "linear": Op(
        ops.linear,
        lambda: {"x": zeros(3, 8), "weight": zeros(5, 8), "bias": zeros(5), "out": zeros(3, 5)},
        written=frozenset({"out"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,)},
    ),
    "linear_silu_and_mul": Op(
        ops.linear_silu_and_mul,
        lambda: {
            "x": zeros(3, 8),
            "weight": zeros(10, 8),
            "bias": zeros(10),
            "gate_up": zeros(3, 10),
            "out": zeros(3, 5),
        },
        written=frozenset({"out", "gate_up"}),
        leading={"x": (0, 1), "weight": (0,), "out": (1,), "gate_up": (1,)},
    ),
    "linear_pack": Op(ops.linear_pack, lambda: {"weight": zeros(5, 8)}, leading={"weight": (0, 1)}),
    "attention": Op(
        ops.attention,
        attention_tensors,
        scalars={"max_seqlen_q": 3, "max_seq_len": 9},
        written=frozenset({"out"}),
        leading={"query": (0, 1, 2), "k_cache": (0, 1), "seq_lens": (0,), "block_table": (1,)},
    ),
    "kv_cache_write": Op(
        ops.kv_cache_write,
        kv_cache_write_tensors,
        written=frozenset({"k_cache", "v_cache"}),
        leading={"key": (0, 1, 2), "k_cache": (0, 2)},
    ),
    "kv_cache_copy_blocks": Op(
        ops.kv_cache_copy_blocks,
        lambda: {
            "k_cache": zeros(5, 2, 8, 4),
            "v_cache": zeros(5, 2, 8, 4),
            "block_mapping": np.array([[0, 1]], np.int32),
        },
        written=frozenset({"k_cache", "v_cache"}),
        leading={"k_cache": (0, 1, 2, 3), "block_mapping": (0,)},
    ),
    "embedding": Op(
        ops.embedding,
        lambda: {
            "input_ids": zeros(3, dtype=np.int64),
            "weight": zeros(5, 8),
            "out": zeros(3, 8),
        },
        written=frozenset({"out"}),
        leading={"input_ids": (0,), "weight": (0,), "out": (1,)},
    ),
    "silu_and_mul": Op(
        ops.silu_and_mul,
        lambda: {"x": zeros(3, 16), "out": zeros(3, 8)},
        written=frozenset({"out"}),
        leading={"x": (0, 1)},
    ),
    "rope_table": Op(
        ops.rope_table,
        lambda: {"positions": zeros(3, dtype=np.int64), "out": zeros(3, 8)},
        scalars={"head_dim": 8, "theta": 10000.0},
        written=frozenset({"out"}),
        leading={"positions": (0,)},
    ),
    "rope": Op(
        ops.rope,
        lambda: {
            "query": zeros(3, 4, 8),
            "key": zeros(3, 2, 8),
            "positions": zeros(3, dtype=np.int64),
        },
        scalars={"theta": 10000.0},
        written=frozenset({"query", "key"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
    "rope with a table": Op(
        ops.rope,
        lambda: {"query": zeros(3, 4, 8), "key": zeros(3, 2, 8), "table": zeros(3, 8)},
        scalars={"theta": 10000.0, "positions": None},
        written=frozenset({"query", "key"}),
        leading={"query": (0, 1, 2), "key": (1,)},
    ),
    "apply_penalties": Op(
        ops.apply_penalties,
        penalties_tensors,
        written=frozenset({"logits"}),
        leading={"logits": (0, 1), "token_ids": (0,)},
    ),
    "sample": Op(
        ops.sample, sample_tensors, written=frozenset({"out"}), leading={"logits": (0, 1)}
    ),
}
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
        if "out" in op.tensors() and argument != "out"
    ],
)
def test_errors_are_the_same_when_out_is_allocated(name, argument):
    call(name, out=None)
    with pytest.raises(TypeError, match=f"^{name}: {argument}: expected a tensor .*got list"):
        call(name, out=None, **{argument: [0.0]})
    flat = OPS[name].tensors()[argument][0, ...]
    with pytest.raises(ek.ArgumentError, match=f"^{name}: {argument}: expected "):
        call(name, out=None, **{argument: flat})


@pytest.mark.parametrize(
    ("name", "argument", "changes"),
    [
        ("linear", "x", {"weight": zeros(8, 8), "bias": None}),
        ("attention", "query", {}),
        ("embedding", "weight", {"input_ids": zeros(5, dtype=np.int64)}),
    ],
)
def test_the_output_may_not_share_memory_with_an_input(name, argument, changes):
    shared = OPS[name].tensors()[argument]
    with pytest.raises(ek.ArgumentError, match=f"^{name}: out: expected memory apart from"):
        call(name, **{argument: shared, "out": shared, **changes})


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
        (lambda x: ek.set_num_threads("2"), "set_num_threads: n: expected an integer, got str"),
    ],
)
def test_a_number_of_the_wrong_type_is_named(call, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        call(np.ones((2, 2), np.float32))


def test_a_number_beyond_64_bits_is_named():
    with pytest.raises(
        ek.ArgumentError, match="head_dim: expected an integer of 64 bits, got a larger"
    ):
        ops.rope_table(np.arange(2), 1 << 80, theta=1.0)
