"""Each function of csrc/cuda/ptx.cuh against the instruction's definition in the PTX ISA: all but the
tensor cores' products (test_tensor_core_instructions.py).

The same probe kernels run on the SIMT machine and on a GPU; the definitions here know nothing of
either. Where the ISA gives the bits, they must be met.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from simt import instructions
from simt.instructions import BF16, E4M3, F16, MACHINES, SEEDS, random_words, same_bits, use_seed

pytestmark = [pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")]

U32 = np.uint32


@pytest.fixture(params=MACHINES)
def run(request: pytest.FixtureRequest):
    library = instructions.library_of(request.param)
    return lambda probe, words, out_words: instructions.run(library, probe, words, out_words)


# ---------------------------------------------------------------------------------- arithmetic

THREADS = 256


def columns(run, probe: str, given: list[np.ndarray], results: int) -> np.ndarray:
    return run(probe, np.concatenate(given), results * THREADS).reshape(results, THREADS)


def test_bits(run, rng):
    a, b, c = random_words(rng, 3, THREADS)
    got = columns(run, "bits", [a, b, c], 6)
    both = np.stack([a, b], 1).view(np.uint8).reshape(THREADS, 8)
    expected = np.zeros((THREADS, 4), np.uint8)
    for thread, i in product(range(THREADS), range(4)):
        nibble = int(c[thread]) >> 4 * i & 15
        byte = both[thread, nibble & 7]
        expected[thread, i] = byte if nibble < 8 else (255 if byte >= 128 else 0)
    same_bits(got[0], expected.view(np.uint32).ravel())
    same_bits(got[1], a & b & c)
    same_bits(got[2], a ^ b ^ c)
    same_bits(got[3], (a & b) | (~a & c))
    same_bits(got[4], (a & b) ^ c)
    same_bits(got[5], ~a & (~c | b))


def test_dot_products(run, rng):
    a, b, c = random_words(rng, 3, THREADS)
    a[:4], b[:4] = 0x80808080, [0x80808080, 0x7F7F7F7F, 0, 0xFFFFFFFF]
    c[:4] = [0x7FFFFFFF, 0x80000000, 5, 0]
    got = columns(run, "dot products", [a, b, c], 4)

    def lanes(x: np.ndarray, dtype) -> np.ndarray:
        return x.view(dtype).reshape(THREADS, -1).astype(np.int64)

    s8, u8, u16 = np.int8, np.uint8, np.uint16
    same_bits(got[0], ((lanes(a, s8) * lanes(b, s8)).sum(1) + c) % 2**32)
    same_bits(got[1], ((lanes(a, u8) * lanes(b, s8)).sum(1) + c) % 2**32)
    same_bits(got[2], ((lanes(a, u16) * lanes(b, u8)[:, :2]).sum(1) + c) % 2**32)
    same_bits(got[3], ((lanes(a, u16) * lanes(b, u8)[:, 2:]).sum(1) + c) % 2**32)


# Ties, the limits of each format and the values beside them, and what is not finite.
NOTABLE = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 1.17e-38, 3.4e38, -3.4e38, 3.39e38, np.inf, -np.inf, np.nan,
     65504, 65519.99, 65520, -65520, 65536, 2**-24, 2**-25, 1.5 * 2**-25, 2**-14, 6.1e-5, 6.09e-5,
     1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 448, 447, 449, 456, 463.99, 464, 480, 1e6,
     -448, -464, 2**-9, 2**-10, 1.5 * 2**-10, -(2**-10), 2**-6, 0.0146, 1.0625, 1.1875, 17, 19, 0.9375],
    np.float32,
)  # fmt: skip


def floats(rng: np.random.Generator) -> np.ndarray:
    x = random_words(rng, THREADS).view(np.float32)
    x[: THREADS // 2] = rng.normal(size=THREADS // 2) * 2.0 ** rng.integers(-14, 12, THREADS // 2)
    x[-len(NOTABLE) :] = NOTABLE
    return x


def nan_as(bits: np.ndarray, values: np.ndarray, nan: int) -> np.ndarray:
    return np.where(np.isnan(values), nan, bits).astype(np.uint32)


def test_conversions(run, rng):
    high, low = floats(rng), rng.permutation(floats(rng))
    halves = random_words(rng, THREADS)
    halves[:64] = [s << 15 | e << 10 | m for s, e, m in product((0, 1), (0, 1, 30, 31),
                                                               (0, 1, 2, 511, 512, 1022, 1023, 7))]  # fmt: skip
    got = columns(run, "conversions", [high.view(U32), low.view(U32), halves], 3)
    for row, dtype in ((0, BF16), (1, F16)):
        pair = [nan_as(x.astype(dtype).view(np.uint16), x, 0x7FFF) for x in (high, low)]
        same_bits(got[row], pair[0] << 16 | pair[1])
    widened = (halves & 0xFFFF).astype(np.uint16).view(F16).astype(np.float32)
    same_bits(np.isnan(got[2].view(np.float32)), np.isnan(widened))
    finite = ~np.isnan(widened)
    same_bits(got[2][finite], widened.view(U32)[finite])


def bfloat16_of(value: Fraction, zero: float) -> int:
    """The bits of the nearest bfloat16, ties to even; ``zero`` has the sign of an exact zero."""
    if value == 0:
        return int(np.signbit(zero)) << 15
    sign, size = int(value < 0) << 15, abs(value)
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length(), -126)
    if exponent > -126 and size < Fraction(2) ** exponent:
        exponent -= 1
    # Positive values in their order are consecutive integers; a carry comes out by itself.
    units = (exponent + 126) * 128 + round(size / Fraction(2) ** (exponent - 7))
    return sign | min(units, 0x7F80)


def test_bfloat16_fma(run, rng):
    a, b, c = random_words(rng, 3, THREADS).view(np.uint16)
    some = floats(rng).astype(BF16).view(np.uint16)
    a[:256], b[:256], c[:256] = some, rng.permutation(some), rng.permutation(some)
    # A product far below half of c's last place decides a tie; and every subnormal, as an int8
    # weight has it: 2^127 u 2^-133 - 2.
    a[:4], b[:4], c[:4] = 0x3F80, [0x0001, 0x8001, 0x3B80, 0x3B81], [0x3F81, 0x3F81, 0x3F81, 0x3F80]
    a[256:], b[256:], c[256:] = np.arange(256), 0x7F00, 0xC000
    got = columns(run, "bfloat16 fma", [x.view(U32) for x in (a, b, c)], 1)[0].view(np.uint16)
    x, y, z = (w.view(BF16).astype(np.float64) for w in (a, b, c))
    for i in range(2 * THREADS):
        plain = x[i] * y[i] + z[i]
        if np.isfinite([x[i], y[i], z[i]]).all():
            want = bfloat16_of(Fraction(x[i]) * Fraction(y[i]) + Fraction(z[i]), zero=plain)
        else:
            want = 0x7FFF if np.isnan(plain) else (0xFF80 if plain < 0 else 0x7F80)
        assert got[i] == want, (i, x[i], y[i], z[i])
    same_bits(got[256:].view(BF16).astype(np.float64), (np.arange(256) - 128) / 64)


def test_conversions_e4m3(run, rng):
    high, low = floats(rng), rng.permutation(floats(rng))
    pairs = np.arange(THREADS, dtype=np.uint32) | rng.permutation(THREADS).astype(np.uint32) << 8
    got = columns(run, "conversions e4m3", [high.view(U32), low.view(U32), pairs], 2)

    def narrow(x: np.ndarray) -> np.ndarray:  # what is beyond the largest becomes the largest
        return nan_as(np.clip(x, -448, 448).astype(E4M3).view(np.uint8), x, 0x7F)

    same_bits(got[0] & 0xFFFF, narrow(high) << 8 | narrow(low))
    values = pairs.astype(np.uint16).view(np.uint8).view(E4M3).astype(F16)
    wide = got[1].view(F16)
    same_bits(np.isnan(wide), np.isnan(values))
    same_bits(wide[~np.isnan(wide)].view(np.uint16), values[~np.isnan(wide)].view(np.uint16))


def test_ex2(run, rng):
    x = (rng.normal(size=THREADS) * 40).astype(np.float32)
    x[:13] = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 128, 200, -126, -160]
    x[13:20] = [-126.5, -127, -149, 127.99, -1000, 1e-10, 0.5]
    got = columns(run, "ex2", [x.view(U32)], 1)[0].view(np.float32)
    smallest = np.finfo(np.float32).smallest_normal
    exact = np.exp2(np.where(np.abs(x) < smallest, 0, x).astype(np.float64))
    expected = np.where(exact < smallest, 0, exact)
    same_bits(np.isnan(got), np.isnan(x))
    beyond = np.isnan(x) | (exact < smallest) | (exact >= 2.0**128)
    same_bits(got[beyond & ~np.isnan(x)], expected[beyond & ~np.isnan(x)].astype(np.float32))
    np.testing.assert_allclose(got[~beyond], expected[~beyond], rtol=2.0**-22)


# ------------------------------------------------------------------------ ldmatrix and stmatrix

ROWS, LANES = 64, 32


def held_by_lanes(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """[matrix, 8, 8] of 16 bits -> [lane, matrix] words: lane 4 i + j holds (i, 2 j), (i, 2 j + 1)."""
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [matrix, 8, 4]
    return pairs.reshape(len(matrices), LANES).T


def test_ldmatrix(run, rng):
    tile = rng.integers(0, 2**16, (ROWS, 8), dtype=np.uint16)
    row_of_lane = rng.permutation(ROWS)[:LANES].astype(np.uint32)
    words = np.concatenate([tile.view(np.uint32).ravel(), row_of_lane])
    got = run("ldmatrix", words, 6 * LANES * 4).reshape(6, LANES, 4)
    variants = [(n, transposed) for n in (1, 2, 4) for transposed in (False, True)]
    for own, (n, transposed) in zip(got, variants, strict=True):
        matrices = tile[row_of_lane[: 8 * n]].reshape(n, 8, 8)
        same_bits(own[:, :n], held_by_lanes(matrices, transposed))
        assert (own[:, n:] == 0xDEADBEEF).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix(run, rng, transposed):
    matrices = rng.integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
    row_of_lane = rng.permutation(ROWS)[:LANES].astype(np.uint32)
    words = np.concatenate([held_by_lanes(matrices, transposed).ravel(), row_of_lane])
    got = run("stmatrix trans" if transposed else "stmatrix", words, ROWS * 4)
    expected = np.zeros((ROWS, 8), np.uint16)
    expected[row_of_lane] = matrices.reshape(32, 8)
    same_bits(got, expected.view(np.uint32).ravel())


# ----------------------------------------------------------------------------- copies and barriers


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async(run, rng, size):
    words = random_words(rng, 512)
    kept = rng.integers(0, size + 1, 128).astype(np.uint32)  # of the last piece, in bytes
    kept[:2] = 0, size
    got = run(f"cp.async {size}", np.concatenate([words, kept]), 512)
    expected = words.copy().view(np.uint8).reshape(128, 16)
    for own, n in zip(expected, kept, strict=True):
        own[16 - size + n :] = 0
    same_bits(got, expected.view(np.uint32).ravel())


def test_ld_global_nc(run, rng):
    words = random_words(rng, 64, 2, 4)
    same_bits(run("ld.global.nc", words, 512), words[:, ::-1].ravel())


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(run, rng, seed):
    use_seed(seed)
    words = random_words(rng, 32)
    same_bits(run("named barriers", words, 32), words + np.uint32(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_mbarrier_phases(run, rng, seed):
    use_seed(seed)
    words = random_words(rng, 64)
    same_bits(run("mbarrier phases", words, 64), np.roll(words, -4))


def test_mbarrier_parity(run):
    got = run("mbarrier parity", np.zeros(1, np.uint32), 11)
    # Two arrivals a phase. The phase before the first counts as one that has ended, of parity 1.
    ended = [int(parity != arrivals // 2 % 2) for arrivals in range(5) for parity in (0, 1)]
    assert got.tolist() == [*ended, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_cp_async_bulk(run, rng, seed):
    use_seed(seed)
    tiles = random_words(rng, 6, 256)
    expected = np.zeros(256, np.uint32)
    for tile in tiles:
        expected = expected * np.uint32(3) + tile
    same_bits(run("cp.async.bulk", tiles, 256), expected)


def test_the_probe_names_are_all_there(run):
    with pytest.raises(KeyError):
        run("wgmma bf16 n24 shared", np.zeros(1, np.uint32), 1)
