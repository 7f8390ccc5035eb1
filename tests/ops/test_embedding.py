from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
from placement import bits
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]


@pytest.mark.parametrize("table_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "hidden_size"), [(1, 1, 1), (3, 5, 7), (70, 100, 300)]
)
def test_embedding_gathers_rows(
    device, rng, table_dtype, out_dtype, num_tokens, vocab_size, hidden_size
):
    weight = reference.random(rng, (vocab_size, hidden_size), table_dtype)
    ids = rng.integers(0, vocab_size, num_tokens)
    ids[-1] = vocab_size - 1
    out = poisoned((num_tokens, hidden_size), out_dtype, device)

    assert ops.embedding(on(ids, device), on(weight, device), out=out) is out

    np.testing.assert_array_equal(bits(out), bits(weight[ids].astype(out_dtype)))


@pytest.mark.parametrize("table_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(1, 1), (16, 8), (37, 9), (48, 130)])
def test_embedding_reads_a_packed_table(rng, table_dtype, out_dtype, vocab_size, hidden_size):
    weight = reference.random(rng, (vocab_size, hidden_size), table_dtype)
    packed = reference.pack_linear(weight)
    ids = rng.permutation(vocab_size)
    expected = bits(weight[ids].astype(out_dtype))

    out = poisoned((vocab_size, hidden_size), out_dtype, "cpu")
    ops.embedding(ids, packed, vocab_size=vocab_size, out=out)
    np.testing.assert_array_equal(bits(out), expected)

    known = ops.PackedWeight(ek.from_numpy(packed), vocab_size, hidden_size)
    np.testing.assert_array_equal(bits(ops.embedding(ids, known, dtype=str(out_dtype))), expected)


@pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(1, 1), (5, 16), (37, 43), (20, 300)])
def test_embedding_scales_an_int8_table(device, rng, vocab_size, hidden_size, out_dtype, packed):
    if packed and device != "cpu":
        pytest.skip("packed tables are the CPU's")
    weight = rng.integers(-128, 128, (vocab_size, hidden_size)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, vocab_size).astype(F32)
    ids = rng.integers(0, vocab_size, 9)
    ids[-1] = vocab_size - 1
    given = ops.wint8_pack(weight) if packed else on(weight, device)
    wide = poisoned((9, hidden_size + 24), out_dtype, device)
    expected = bits((scale[ids, None] * weight[ids]).astype(out_dtype))
    for begin in (16, 3):  # the row's first element on 16 bytes, and off
        out = wide[:, begin : begin + hidden_size]
        ops.embedding(on(ids, device), given, scale=on(scale, device), out=out)
        got = wide.numpy()[:, begin : begin + hidden_size]
        np.testing.assert_array_equal(bits(got), expected)
    assert np.isnan(wide.numpy()[:, :3].astype(F32)).all()
    assert np.isnan(wide.numpy()[:, hidden_size + 16 :].astype(F32)).all()


@pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("vocab_size", "hidden_size"), [(1, 1), (5, 16), (37, 43), (20, 300)])
def test_embedding_scales_a_table_of_four_bits(
    device, rng, vocab_size, hidden_size, out_dtype, packed
):
    if packed and device != "cpu":
        pytest.skip("packed tables are the CPU's")
    values = rng.integers(-8, 8, (vocab_size, hidden_size)).astype(np.int8)
    weight = reference.nibbles(values)
    scale = rng.uniform(0.001, 0.1, vocab_size).astype(F32)
    ids = rng.permutation(vocab_size)
    given = ops.wint4_pack(weight, hidden_size) if packed else on(weight, device)
    out = poisoned((vocab_size, hidden_size), out_dtype, device)

    ops.embedding(on(ids, device), given, scale=on(scale, device), out=out)

    expected = bits((scale[ids, None] * values[ids]).astype(out_dtype))
    np.testing.assert_array_equal(bits(out), expected)
    if packed:
        allocated = ops.embedding(ids, given, scale=scale, dtype=str(out_dtype))
        np.testing.assert_array_equal(bits(allocated), expected)


def test_embedding_of_four_bits_takes_both_of_a_byte_unless_told():
    values = np.arange(-6, 6, dtype=np.int8).reshape(2, 6)
    found = ops.embedding(np.array([1, 0]), reference.nibbles(values), scale=np.ones(2, F32))
    assert found.dtype_name == "float32"
    np.testing.assert_array_equal(found.numpy(), values[::-1])


def test_embedding_refuses_a_width_that_is_not_that_of_a_packed_table():
    """Of 43 and 48 columns the panels look alike."""
    weight = ops.wint4_pack(np.zeros((16, 22), np.uint8), 43)
    with pytest.raises(ek.ArgumentError, match="embedding: out: expected hidden_size=43 columns"):
        ops.embedding(
            np.zeros(1, np.int64), weight, scale=np.ones(16, F32), out=np.zeros((1, 48), F32)
        )


@pytest.mark.parametrize("width", [6, 9])
def test_embedding_refuses_bytes_that_are_not_those_of_the_width(width):
    weight, scale = np.zeros((3, 4), np.uint8), np.ones(3, F32)
    out = np.zeros((1, width), F32)
    with pytest.raises(ek.ArgumentError, match="weight: expected shape"):
        ops.embedding(np.zeros(1, np.int64), weight, scale=scale, out=out)
    with pytest.raises(ek.ArgumentError, match="scale: expected one with an int8 or uint8 weight"):
        ops.embedding(np.zeros(1, np.int64), weight)


def test_embedding_has_the_dtype_of_the_table_unless_told(device, rng):
    weight = on(reference.random(rng, (4, 6), BF16), device)
    ids = on(np.zeros(2, np.int64), device)
    assert ops.embedding(ids, weight).dtype_name == "bfloat16"
    assert ops.embedding(ids, weight, dtype="float32").dtype_name == "float32"


def test_embedding_writes_strided_rows(device, rng):
    weight = reference.random(rng, (4, 16), F32)
    wide = ek.from_numpy(np.zeros((3, 20), np.float32), device)
    ops.embedding(on(np.array([3, 0, 3]), device), on(weight, device), out=wide[:, 2:18])
    expected = np.zeros((3, 20), np.float32)
    expected[:, 2:18] = weight[[3, 0, 3]]
    np.testing.assert_array_equal(wide.numpy(), expected)


def test_embedding_of_no_tokens_is_empty(device):
    out = ops.embedding(on(np.empty(0, np.int64), device), on(np.ones((4, 6), F32), device))
    assert out.shape == (0, 6)


@pytest.mark.parametrize("bad", [-1, 37, 2**62, -(2**63)])
def test_embedding_refuses_an_id_out_of_range_and_writes_nothing(rng, bad):
    weight = reference.random(rng, (37, 6), F32)
    out = np.zeros((2, 6), np.float32)
    message = f"embedding: input_ids: expected ids from 0 to 36, got {bad} at token 1"
    for table in (weight, reference.pack_linear(weight)):
        with pytest.raises(ek.ArgumentError, match=message):
            ops.embedding(np.array([3, bad]), table, vocab_size=37, out=out)
    assert not out.any()


@pytest.mark.cuda
def test_a_gpu_gives_nan_for_an_id_out_of_range(rng):
    """The host does not see the ids: no address may come of a wrong one."""
    weight = reference.random(rng, (37, 30), F32)
    ids = np.array([3, 37, -1, 2**62, -(2**63), 36])
    out = ops.embedding(on(ids, "cuda"), on(weight, "cuda")).numpy()
    assert np.isnan(out[1:5]).all()
    np.testing.assert_array_equal(out[[0, 5]], weight[[3, 36]])


@pytest.mark.parametrize("vocab_size", [-1, 0, 32, 49, 2**62])
def test_embedding_refuses_a_vocab_size_that_is_not_that_of_the_table(vocab_size):
    weight = np.ones((37, 6), np.float32)
    out = np.zeros((1, 6), np.float32)
    for table in (weight, reference.pack_linear(weight)):
        with pytest.raises(ek.ArgumentError, match=r"embedding: weight: expected shape"):
            ops.embedding(np.zeros(1, np.int64), table, vocab_size=vocab_size, out=out)


def test_embedding_asks_for_the_vocab_size_of_a_packed_table():
    packed = reference.pack_linear(np.ones((37, 6), np.float32))
    with pytest.raises(ek.ArgumentError, match="weight: expected 2 dimensions"):
        ops.embedding(np.zeros(1, np.int64), packed)
