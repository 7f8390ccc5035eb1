"""moe_route where each token has one of several banks of experts."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops

import reference
import reference_moe
from placement import same_bits
from reference import F32, on


def route(logits, bias, top_k, banks, device, **options):
    given = bias.reshape(-1) if len(bias) == 1 else bias
    weights, ids = ops.moe_route(
        on(logits, device), on(given, device), top_k,
        **{"banks": on(banks, device), "num_banks": len(bias)} | options,
    )  # fmt: skip
    return weights.numpy(), ids.numpy()


# num_tokens, num_banks, num_experts of each, top_k: around the widths of the kernels.
SHAPES = [
    (1, 2, 64, 6), (9, 2, 64, 8), (7, 3, 8, 8), (5, 2, 1, 1), (4, 5, 33, 32), (6, 2, 33, 33),
    (3, 2, 256, 8), (3, 2, 300, 40), (5, 256, 16, 3), (3, 1, 64, 6), (0, 2, 8, 2),
]  # fmt: skip


def random_case(rng, num_tokens, num_banks, num_experts):
    logits = reference.random(rng, (num_tokens, num_banks * num_experts), F32, scale=2.0)
    bias = reference.random(rng, (num_banks, num_experts), F32, scale=0.05)
    return logits, bias, rng.integers(0, num_banks, num_tokens).astype(np.uint8)


@pytest.mark.parametrize(("num_tokens", "num_banks", "num_experts", "top_k"), SHAPES)
def test_a_token_routes_as_with_its_bank_alone(
    device, rng, num_tokens, num_banks, num_experts, top_k
):
    logits, bias, banks = random_case(rng, num_tokens, num_banks, num_experts)
    weights, ids = route(logits, bias, top_k, banks, device)
    expected_weights, expected_ids, _ = reference_moe.moe_route_of_banks(logits, bias, top_k, banks)
    np.testing.assert_array_equal(ids, expected_ids)
    same_bits(weights, expected_weights)
    for bank in set(banks.tolist()):
        rows, first = banks == bank, int(bank) * num_experts
        own = logits[rows, first : first + num_experts]
        alone_weights, alone_ids = ops.moe_route(
            on(np.ascontiguousarray(own), device), on(bias[bank], device), top_k
        )
        same_bits(weights[rows], alone_weights)
        np.testing.assert_array_equal(ids[rows], alone_ids.numpy() + first)
    flat_weights, flat_ids = route(
        logits, bias.reshape(-1), top_k, banks, device, num_banks=num_banks
    )
    same_bits(flat_weights, weights)
    np.testing.assert_array_equal(flat_ids, ids)


@pytest.mark.parametrize(("num_experts", "top_k"), [(64, 6), (200, 8), (300, 5), (50, 40)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_only_the_own_bank_must_be_finite(device, rng, num_experts, top_k, bad):
    logits, bias, _ = random_case(rng, 6, 2, num_experts)
    banks = np.array([0, 1, 1, 0, 1, 0], np.uint8)
    expected = route(logits, bias, top_k, banks, device)
    for t, bank in enumerate(banks.tolist()):  # all of the other
        logits[t, (1 - bank) * num_experts : (2 - bank) * num_experts] = bad
    flags = ek.from_numpy(np.array([0, 7, 0, 0, 0, 0], np.uint8), device)
    weights, ids = route(logits, bias, top_k, banks, device, flags=flags)
    same_bits(weights, expected[0])
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(flags.numpy(), [0, 7, 0, 0, 0, 0])

    logits[2, 2 * num_experts - 1] = bad
    logits[3, num_experts - 1] = bad
    weights, ids = route(logits, bias, top_k, banks, device, flags=flags)
    np.testing.assert_array_equal(flags.numpy(), [0, 7, 1, 1, 0, 0])
    assert np.isnan(weights[2:4]).all()
    np.testing.assert_array_equal(ids[2], num_experts + np.arange(top_k))
    np.testing.assert_array_equal(ids[3], np.arange(top_k))
    same_bits(np.delete(weights, [2, 3], 0), np.delete(expected[0], [2, 3], 0))

    bias[1, 0] = bad  # of all tokens of that bank
    route(logits, bias, top_k, banks, device, flags=flags)
    np.testing.assert_array_equal(flags.numpy(), [0, 1, 1, 1, 1, 0])


def test_a_bank_is_one_of_those_there_are(rng):
    logits, bias, banks = random_case(rng, 5, 3, 8)
    banks[3] = 3
    weights = reference.poisoned((5, 2), F32, "cpu")
    with pytest.raises(
        ek.ArgumentError, match="moe_route: banks: expected banks from 0 to 2, got 3 at token 3"
    ):
        route(logits, bias, 2, banks, "cpu", topk_weights=weights)
    assert np.isnan(weights.numpy()).all()


@pytest.mark.cuda
@pytest.mark.parametrize("num_experts", [64, 300])
def test_a_bank_out_of_range_counts_as_the_last(rng, num_experts):
    logits, bias, banks = random_case(rng, 5, 2, num_experts)
    expected = route(logits, bias, 4, np.minimum(banks * 255, 1).astype(np.uint8), "cuda")
    weights, ids = route(logits, bias, 4, banks * np.uint8(255), "cuda")
    same_bits(weights, expected[0])
    np.testing.assert_array_equal(ids, expected[1])


def test_wrong_banks_are_named(rng):
    logits, bias, banks = random_case(rng, 3, 2, 8)

    for message, bad in [
        ("num_banks: expected a divisor of the 16 experts, got 3", {"num_banks": 3}),
        ("num_banks: expected a divisor of the 16 experts, got 0", {"num_banks": 0}),
        ("num_banks: expected a divisor of the 16 experts, got -2", {"num_banks": -2}),
        ("num_banks: expected an integer", {"num_banks": 2**64}),
        ("banks: expected the bank of each token with num_banks=2, got none", {"banks": None}),
        ("banks: expected shape", {"banks": banks[:2]}),
        ("banks: expected uint8", {"banks": banks.astype(np.int32)}),
        ("correction_bias: expected shape", {"num_banks": 4}),
        ("topk_ids: expected memory apart from banks", overlapping()),
    ]:
        with pytest.raises(ek.ArgumentError, match=f"moe_route: {message}"):
            ops.moe_route(logits, bias, 2, **{"banks": banks, "num_banks": 2} | bad)
    with pytest.raises(ek.ArgumentError, match="top_k: expected a value from 1 to num_experts=8"):
        route(logits, bias, 9, banks, "cpu")


def overlapping():
    room = np.zeros((3, 2), np.int32)
    return {"topk_ids": room, "banks": room.reshape(-1).view(np.uint8)[:3]}
