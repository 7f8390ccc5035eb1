from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops
from simt import control

import reference
from reference import F32, on

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0, "position": 0}


def draw(logits, device="cpu", **parameters) -> np.ndarray:
    """ops.sample with neutral parameters but those given."""
    parameters = NEUTRAL | parameters
    for name, value in parameters.items():
        if isinstance(value, np.ndarray):
            parameters[name] = on(value, device)
    return ops.sample(on(logits, device), **parameters).numpy()


# -------------------------------------------------------------------------------------- philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    """The vectors of the Random123 distribution for Philox4x32 with 10 rounds."""
    assert _core.philox(counter, key) == expected
    assert reference.philox(counter, key) == expected


# -------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 33, 64, 1000, 103424])
def test_temperature_zero_takes_the_largest(device, rng, vocab_size):
    logits = reference.random(rng, (5, vocab_size), F32)
    logits[1] = 0.25  # all equal: id 0
    logits[2, vocab_size // 2 :] = 9.0
    logits[3] = -np.inf
    logits[3, -1] = -1e30
    np.testing.assert_array_equal(draw(logits, device, temperature=0.0), logits.argmax(1))


def test_negative_zero_equals_zero(device):
    logits = np.array([[-1, -0.0, 0.0], [-1, 0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(draw(logits, device, temperature=0.0), [1, 1])
    np.testing.assert_array_equal(draw(logits, device, top_k=1), [1, 1])
    # The two zeros tie in top_k = 2 as well, so both orders keep ids 1 and 2.
    drawn = draw(np.repeat(logits, 50, 0), device, top_k=2, seed=np.arange(100))
    assert set(drawn.tolist()) == {1, 2}


@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_row_without_a_distribution_gets_minus_one(device, parameters, place):
    logits = np.zeros((4, 40), np.float32)
    logits[0, place] = np.nan
    logits[1] = -np.inf
    logits[2, place] = np.inf
    tokens = draw(logits, device, **parameters)
    np.testing.assert_array_equal(tokens[:3], -1)
    assert tokens[3] >= 0


@pytest.mark.parametrize("parameters", [{"temperature": 0.0}, {}, {"top_k": 9}, {"top_p": 0.999}])
def test_ids_from_the_limit_on_are_neither_chosen_nor_seen(device, parameters):
    logits = np.zeros((50, 40), np.float32)
    logits[:, 21:] = [[100.0, np.nan, np.inf, 100.0, -np.inf] + [50.0] * 14]
    tokens = draw(logits, device, vocab_limit=21, seed=np.arange(50), **parameters)
    assert tokens.min() >= 0
    assert tokens.max() <= 20


# ------------------------------------------------------------------------------ the sampled path


def expected_tokens(logits, seed, position, **parameters) -> list[int]:
    parameters = {k: v for k, v in (NEUTRAL | parameters).items() if k not in ("seed", "position")}
    return [
        reference.sample(row, u=reference.sample_uniform(s, p), **parameters)
        for row, s, p in zip(logits, seed, position, strict=True)
    ]


FILTERS = [
    {},
    {"temperature": 0.6},
    {"temperature": 7.5},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 20},
    {"top_k": 10**6},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.8},
    {"top_k": 50, "min_p": 0.1},
    {"top_p": 0.95, "min_p": 0.02, "temperature": 1.3},
    {"top_k": 30, "top_p": 0.7, "min_p": 0.2, "temperature": 0.9},
]


@pytest.mark.parametrize("parameters", FILTERS, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 3, 17, 500, 5003])
def test_sample_matches_reference(device, rng, parameters, vocab_size):
    rows = 40
    logits = reference.random(rng, (rows, vocab_size), F32, scale=2.5)
    logits[::7, ::3] = -np.inf  # as a grammar or a ban leaves them
    logits[::7, -1] = 0.0
    seed = rng.integers(-(2**63), 2**63 - 1, rows)
    position = rng.integers(0, 2**40, rows)

    tokens = draw(logits, device, seed=seed, position=position, **parameters)

    assert tokens.tolist() == expected_tokens(logits, seed, position, **parameters)


@pytest.mark.parametrize("parameters", FILTERS, ids=str)
def test_equal_logits_keep_the_lower_ids(device, parameters):
    """Ties everywhere: each filter's cut falls among equals."""
    rows = 60
    logits = np.zeros((rows, 700), np.float32)
    logits[rows // 2 :, ::2] = 1.0
    seed, position = np.arange(rows), np.arange(rows) % 7
    tokens = draw(logits, device, seed=seed, position=position, **parameters)
    assert tokens.tolist() == expected_tokens(logits, seed, position, **parameters)


@pytest.mark.one_seed
def test_top_p_counts_exactly_among_equals(device):
    """0.25 of eight equal tokens is two: the sum reaches top_p there."""
    tokens = draw(np.zeros((200, 8), np.float32), device, top_p=0.25, seed=np.arange(200))
    assert set(tokens.tolist()) == {0, 1}


@pytest.mark.one_seed
def test_a_tiny_temperature_takes_the_largest_and_a_huge_one_draws_evenly(device, rng):
    logits = reference.random(rng, (300, 100), F32)
    seed = np.arange(300)
    for temperature in (1e-6, 1e-38):
        tokens = draw(logits, device, temperature=temperature, seed=seed)
        np.testing.assert_array_equal(tokens, logits.argmax(1))
    even = draw(np.zeros_like(logits), device, seed=seed)
    np.testing.assert_array_equal(draw(logits, device, temperature=1e30, seed=seed), even)
    np.testing.assert_array_equal(
        draw(logits, device, temperature=1e38, top_p=0.999, seed=seed),
        expected_tokens(logits, seed, np.zeros(300), temperature=1e38, top_p=0.999),
    )


@pytest.mark.one_seed
@pytest.mark.parametrize(
    "parameters",
    [{}, {"top_k": 6}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.95, "min_p": 0.03}],
    ids=str,
)
def test_frequencies_follow_the_probabilities(device, rng, parameters):
    """Chi-square with fixed seeds; the bound is six standard deviations."""
    draws = 20000 if device == "cpu" else control.smaller(20000, 1000)
    row = reference.random(rng, (12,), F32, scale=1.5)
    logits = np.broadcast_to(row, (draws, 12)).copy()

    tokens = draw(logits, device, seed=77, position=np.arange(draws), **parameters)

    shape = {k: v for k, v in (NEUTRAL | parameters).items() if k not in ("seed", "position")}
    expected = reference.sample_probabilities(row, **shape) * draws
    counts = np.bincount(tokens, minlength=12)
    assert not counts[expected == 0].any()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 6 * np.sqrt(2 * freedom)


@pytest.mark.one_seed
def test_seeds_and_positions_give_different_draws(device):
    logits = np.zeros((1000, 5000), np.float32)
    by_seed = draw(logits, device, seed=np.arange(1000))
    by_position = draw(logits, device, position=np.arange(1000))
    assert len(set(by_seed.tolist())) > 850  # 906 expected, were they independent
    assert len(set(by_position.tolist())) > 850
    assert (by_seed == by_position).sum() < 10


def test_a_rows_token_does_not_depend_on_the_batch(device, rng):
    rows = 24
    logits = reference.random(rng, (rows, 3000), F32, scale=2.0)
    parameters = {
        "temperature": rng.choice([0.0, 0.7, 1.0], rows).astype(np.float32),
        "top_k": rng.choice([0, 5, 200], rows).astype(np.int32),
        "top_p": rng.choice([1.0, 0.9], rows).astype(np.float32),
        "min_p": rng.choice([0.0, 0.05], rows).astype(np.float32),
        "seed": rng.integers(0, 2**62, rows),
        "position": rng.integers(0, 2**20, rows),
    }
    together = draw(logits, device, **parameters)
    for i in range(rows):
        alone = draw(logits[i : i + 1], device, **{k: v[i : i + 1] for k, v in parameters.items()})
        assert alone[0] == together[i]
    order = rng.permutation(rows)
    shuffled = draw(logits[order], device, **{k: v[order] for k, v in parameters.items()})
    np.testing.assert_array_equal(shuffled, together[order])


def test_sample_reads_strided_rows_and_writes_out(device, rng):
    wide = reference.random(rng, (6, 90), F32)
    out = ek.from_numpy(np.full(6, -7), device)
    logits = ek.from_numpy(wide, device)[:, 10:80]
    assert ops.sample(logits, **NEUTRAL | {"temperature": 0.0}, out=out) is out
    np.testing.assert_array_equal(out.numpy(), wide[:, 10:80].argmax(1))


def test_sample_of_no_rows_is_empty(device):
    assert draw(np.empty((0, 8), np.float32), device).shape == (0,)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("temperature", -0.5, "finite values >= 0, got -0.5"),
        ("temperature", float("nan"), "finite values >= 0"),
        ("temperature", 1e300, "finite values >= 0, got inf"),
        ("temperature", 10**400, "float32, got a number beyond it"),
        ("top_k", -1, "values >= 0, got -1"),
        ("top_k", 2**31, "int32, got an integer beyond it"),
        ("top_p", 0.0, r"values in \(0, 1\], got 0"),
        ("top_p", 1.5, r"values in \(0, 1\], got 1.5"),
        ("top_p", float("nan"), r"values in \(0, 1\]"),
        ("min_p", -0.1, r"values in \[0, 1\], got -0.1"),
        ("min_p", 2, r"values in \[0, 1\], got 2"),
        ("seed", 2**63, "int64, got an integer beyond it"),
        ("vocab_limit", 0, "a value from 1 to vocab_size=8, got 0"),
        ("vocab_limit", 9, "a value from 1 to vocab_size=8, got 9"),
    ],
)
def test_sample_refuses_a_value_out_of_range(parameter, value, message):
    with pytest.raises(ek.ArgumentError, match=f"sample: {parameter}: expected {message}"):
        draw(np.zeros((2, 8), np.float32), **{parameter: value})


def test_sample_wants_integers_where_it_counts():
    for name in ("top_k", "seed", "position"):
        with pytest.raises(TypeError, match=f"sample: {name}: expected an integer or a tensor"):
            draw(np.zeros((2, 8), np.float32), **{name: 1.5})
    draw(np.zeros((2, 8), np.float32), seed=-(2**63), top_k=np.int64(3), top_p=np.float32(0.5))


# ----------------------------------------------------------------------------------- penalties


def ragged(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    cu_tokens = np.cumsum([0] + [len(row) for row in rows]).astype(np.int32)
    return np.array([i for row in rows for i in row], np.int64), cu_tokens


def test_penalties_match_reference(device, rng):
    lengths = [0, 1, 5, 40, 200]
    rows = [rng.integers(0, 30, n) for n in lengths]
    prompt_lens = np.array([0, 1, 2, 0, 120], np.int32)
    logits = reference.random(rng, (5, 50), F32, scale=3.0)
    logits[3, :4] = [0.0, -0.0, -np.inf, 1e-40]
    penalties = {
        "repetition_penalty": np.array([1.3, 0.8, 1.0, 1.7, 1.1], np.float32),
        "presence_penalty": np.array([0.5, 0.5, -0.7, 0.3, 0.0], np.float32),
        "frequency_penalty": np.array([0.1, 0.1, 0.25, -0.2, 0.03], np.float32),
    }
    tensor = ek.from_numpy(logits, device)
    token_ids, cu_tokens = ragged([row.tolist() for row in rows])

    result = ops.apply_penalties(
        tensor,
        on(token_ids, device),
        on(cu_tokens, device),
        on(prompt_lens, device),
        **{name: on(value, device) for name, value in penalties.items()},
    )

    assert result is tensor
    expected = reference.apply_penalties(
        logits, rows, prompt_lens, *(reference.f64(p) for p in penalties.values())
    )
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(tensor.numpy()[~finite], expected[~finite])
    reference.check(
        tensor.numpy()[finite],
        expected[finite],
        magnitude=np.abs(expected).max(where=finite, initial=0),
    )
    np.testing.assert_array_equal(tensor.numpy()[0], logits[0])


def test_penalties_are_what_they_are_called(device):
    """By hand: id 1 in the prompt, id 2 twice in the output, id 3 in both."""
    logits = ek.from_numpy(np.array([[8, 8, 8, -8]], np.float32), device)
    token_ids, cu_tokens = ragged([[1, 3, 2, 3, 2]])
    ops.apply_penalties(
        logits,
        on(token_ids, device),
        on(cu_tokens, device),
        on(np.array([2], np.int32), device),
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    np.testing.assert_array_equal(logits.numpy(), [[8, 4, 4 - 0.5 - 0.5, -16 - 0.25 - 0.5]])


def test_penalties_without_history_or_effect_change_nothing(device, rng):
    before = reference.random(rng, (3, 20), F32)
    logits = ek.from_numpy(before, device)
    nothing = {"repetition_penalty": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    full = on(np.arange(12), device), on(np.array([0, 4, 8, 12], np.int32), device)
    empty = on(np.empty(0, np.int64), device), on(np.zeros(4, np.int32), device)
    ops.apply_penalties(logits, *full, on(np.zeros(3, np.int32), device), **nothing)
    strong = {"repetition_penalty": 2.0, "presence_penalty": 9.0, "frequency_penalty": 9.0}
    ops.apply_penalties(logits, *empty, on(np.zeros(3, np.int32), device), **strong)
    np.testing.assert_array_equal(logits.numpy(), before)


def test_penalties_write_strided_rows(device):
    wide = ek.from_numpy(np.ones((2, 10), np.float32), device)
    token_ids, cu_tokens = ragged([[0, 3], [3]])
    ops.apply_penalties(
        wide[:, 4:8],
        on(token_ids, device),
        on(cu_tokens, device),
        on(np.zeros(2, np.int32), device),
        repetition_penalty=2.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
    expected = np.ones((2, 10), np.float32)
    expected[[0, 0, 1], [4, 7, 7]] = 0.5
    np.testing.assert_array_equal(wide.numpy(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [0, 1, 8, 2]}, "token_ids: expected ids from 0 to 7, got 8 at 2"),
        ({"token_ids": [0, 1, -1, 2]}, "token_ids: expected ids from 0 to 7, got -1 at 2"),
        ({"cu_tokens": [1, 3, 4]}, "cu_tokens: expected 0 first, got 1"),
        ({"cu_tokens": [0, 5, 4]}, "cu_tokens: expected values that never fall, got 4 after 5"),
        ({"cu_tokens": [0, 3, 5]}, "cu_tokens: expected total=4 last, got 5"),
        ({"cu_tokens": [0, -(2**31), 4]}, "cu_tokens: expected values that never fall"),
        ({"prompt_lens": [4, 0]}, "prompt_lens: expected 0 to 3 in row 0, got 4"),
        ({"prompt_lens": [0, -1]}, "prompt_lens: expected 0 to 1 in row 1, got -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: expected finite values > 0, got 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty: expected finite values > 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty: expected finite values"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty: expected finite values"),
    ],
)
def test_penalties_refuse_wrong_values_and_write_nothing(change, message):
    logits = np.ones((2, 8), np.float32)
    arguments = {
        "token_ids": [0, 1, 1, 2],
        "cu_tokens": [0, 3, 4],
        "prompt_lens": [1, 1],
        "repetition_penalty": 2.0,
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
    } | change
    for name, dtype in (
        ("token_ids", np.int64),
        ("cu_tokens", np.int32),
        ("prompt_lens", np.int32),
    ):
        arguments[name] = np.array(arguments[name], dtype)
    with pytest.raises(ek.ArgumentError, match=f"apply_penalties: {message}"):
        ops.apply_penalties(logits, **arguments)
    assert (logits == 1).all()
