"""Each function of csrc/cuda/ptx.cuh against the instruction's definition in the PTX ISA.

The same probe kernels run on the SIMT machine and on a GPU; the definitions here know nothing of
either. Where the ISA gives the bits, they must be met. Sums of float products may be taken in any
order and precision of at least single (e4m3: about 14 bits): TOLERANCE, relative to the sum of
magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from simt import control, instructions

pytestmark = [pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")]

U32 = np.uint32
BF16, F16, E4M3 = ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn
TOLERANCE = {BF16: 2.0**-20, F16: 2.0**-20, E4M3: 2.0**-11}
MACHINES = [
    pytest.param("simt", marks=pytest.mark.simt),
    pytest.param("gpu", marks=[pytest.mark.cuda, pytest.mark.hardware]),
]


@pytest.fixture(params=MACHINES)
def run(request: pytest.FixtureRequest):
    library = instructions.library_of(request.param)
    return lambda probe, words, out_words: instructions.run(library, probe, words, out_words)


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got, expected.astype(got.dtype, copy=False))


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


# -------------------------------------------------------------------------------------- products


@dataclass(frozen=True)
class Type:
    """Of a tensor-core product: elements of a and b, and of the sum."""

    a: type
    b: type
    sum: type

    @property
    def depth(self) -> int:  # of one instruction: 32 bytes
        return 32 // np.dtype(self.a).itemsize


PRODUCTS = {
    "bf16": Type(BF16, BF16, np.float32),
    "f16": Type(F16, F16, np.float32),
    "s8": Type(np.int8, np.int8, np.int32),
    "u8 s8": Type(np.uint8, np.int8, np.int32),
    "s8 u8": Type(np.int8, np.uint8, np.int32),
    "e4m3": Type(E4M3, E4M3, np.float32),
}
# What the values of a case are like. Sums of "exact" ones are exact in any order.
FLOATS, INTEGERS = ["exact", "random", "subnormal", "infinite"], ["random", "extreme"]
KINDS = {
    "bf16": [*FLOATS, "extreme"],
    "f16": [*FLOATS, "extreme"],
    "s8": INTEGERS,
    "u8 s8": INTEGERS,
    "s8 u8": INTEGERS,
    "e4m3": FLOATS,
}
CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


def elements(rng: np.random.Generator, dtype, kind: str, shape: tuple) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        if kind == "extreme":
            return rng.choice([info.min, info.max], shape).astype(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if kind == "exact":
        return rng.integers(-8, 9, shape).astype(dtype)
    x = rng.normal(size=shape).astype(dtype)
    info = ml_dtypes.finfo(dtype)
    if kind == "subnormal":
        x = (x * float(info.smallest_normal) / 4).astype(dtype)
    if kind == "large":
        x = (x * float(info.max) / 64).astype(dtype)
    if kind == "extreme":
        x = np.where(rng.random(shape) < 0.5, info.max, 0).astype(dtype)
    if kind == "infinite":  # e4m3 has NaN alone
        rare = rng.random(shape)
        x[rare < 0.01] = np.nan
        if dtype is not E4M3:
            x[(rare > 0.01) & (rare < 0.03)] = -np.inf
            x[(rare > 0.03) & (rare < 0.05)] = 0
    return x


def multiplicands(rng: np.random.Generator, t: Type, kind: str, m: int, k: int, n: int) -> tuple:
    """a [m, k] and b [k, n]. Subnormal numbers meet large ones, so that they count."""
    other = "large" if kind == "subnormal" else kind
    kinds = (kind, other) if rng.random() < 0.5 else (other, kind)
    return elements(rng, t.a, kinds[0], (m, k)), elements(rng, t.b, kinds[1], (k, n))


def sums(rng: np.random.Generator, dtype, kind: str, shape: tuple) -> np.ndarray:
    if dtype is np.int32:
        low, high = (-(2**31), 2**31) if kind == "extreme" else (-1000, 1000)
        return rng.integers(low, high, shape).astype(np.int32)
    if kind == "exact":
        return rng.integers(-100, 100, shape).astype(np.float32)
    return rng.normal(size=shape).astype(np.float32)


def check_product(got: np.ndarray, a: np.ndarray, b: np.ndarray, d: np.ndarray, kind: str) -> None:
    """got = d + a b, of a [m, k], b [k, n]."""
    if d.dtype == np.int32:
        exact = d.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64)
        return same_bits(got.view(U32), exact % 2**32)
    wide = [x.astype(np.float64) for x in (a, b, d)]
    exact = wide[2] + wide[0] @ wide[1]
    if kind == "exact":
        return same_bits(got, exact.astype(np.float32))
    same_bits(np.isnan(got), np.isnan(exact))
    finite = np.abs(exact) <= float(np.finfo(np.float32).max)
    same_bits(got[~finite & ~np.isnan(exact)], np.sign(exact[~finite & ~np.isnan(exact)]) * np.inf)
    size = np.abs(wide[2]) + np.abs(wide[0]) @ np.abs(wide[1])
    error = np.abs(got.astype(np.float64) - exact)[finite] / size[finite]
    assert error.max(initial=0) <= TOLERANCE[a.dtype.type]
    return None


def fragment_positions(e: int, registers: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and first column of each lane's registers of a, [32, registers]: the figures of
    mma.m16n8k16 and m16n8k32, with e elements in a register. For b, registers / 2: column and row."""
    group, in_group = np.divmod(np.arange(32), 4)
    row = np.stack([group + 8 * (i in (1, 3)) for i in range(registers)], 1)
    column = np.stack([e * in_group + 4 * e * (i >= 2) for i in range(registers)], 1)
    return row, column


def a_registers(a: np.ndarray) -> np.ndarray:
    """[16, k] -> [32, 4] words."""
    e = 4 // a.dtype.itemsize
    row, column = fragment_positions(e, 4)
    parts = [a[row, column + i] for i in range(e)]
    return np.ascontiguousarray(np.stack(parts, -1)).view(np.uint32)[..., 0]


def b_registers(b: np.ndarray) -> np.ndarray:
    """[k, 8] -> [32, 2] words: as rows 0 to 7 of the transposed b in a's layout."""
    square = np.concatenate([b.T, b.T])
    return a_registers(square)[:, [0, 2]]


D_ROW = np.stack([np.arange(32) // 4 + 8 * half for half in (0, 0, 1, 1)], 1)
D_COLUMN = np.stack([np.arange(32) % 4 * 2 + odd for odd in (0, 1, 0, 1)], 1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_mma(run, rng, name, kind):
    t = PRODUCTS[name]
    for _ in range(10):
        a, b = multiplicands(rng, t, kind, 16, t.depth, 8)
        d = sums(rng, t.sum, kind, (16, 8))
        words = [a_registers(a), b_registers(b), d[D_ROW, D_COLUMN].view(np.uint32)]
        lanes = run(f"mma {name}", np.concatenate(words, 1), 32 * 4).view(t.sum).reshape(32, 4)
        got = np.empty_like(d)
        got[D_ROW, D_COLUMN] = lanes
        check_product(got, a, b, d, kind)


def test_the_layouts_hold_every_element_once():
    for dtype in (np.uint16, np.uint8):
        depth = 32 // np.dtype(dtype).itemsize
        matrix = np.arange(16 * depth).astype(dtype).reshape(16, depth)
        held = a_registers(matrix).view(dtype).ravel()
        assert sorted(held.tolist()) == sorted(matrix.ravel().tolist())
    assert len(set(zip(D_ROW.ravel().tolist(), D_COLUMN.ravel().tolist(), strict=True))) == 128


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


SEEDS = range(8)  # on the machine: orders in which threads and copies go on


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(run, rng, seed):
    use(seed)
    words = random_words(rng, 32)
    same_bits(run("named barriers", words, 32), words + np.uint32(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_mbarrier_phases(run, rng, seed):
    use(seed)
    words = random_words(rng, 64)
    same_bits(run("mbarrier phases", words, 64), np.roll(words, -4))


def test_mbarrier_parity(run):
    got = run("mbarrier parity", np.zeros(1, np.uint32), 11)
    # Two arrivals a phase. The phase before the first counts as one that has ended, of parity 1.
    ended = [int(parity != arrivals // 2 % 2) for arrivals in range(5) for parity in (0, 1)]
    assert got.tolist() == [*ended, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_cp_async_bulk(run, rng, seed):
    use(seed)
    tiles = random_words(rng, 6, 256)
    expected = np.zeros(256, np.uint32)
    for tile in tiles:
        expected = expected * np.uint32(3) + tile
    same_bits(run("cp.async.bulk", tiles, 256), expected)


def use(seed: int) -> None:
    if control.is_loaded():
        control.set_seed(seed)


# ---------------------------------------------------------------------------------------- wgmma

STEPS, IMAGE_BYTES = 2, 40 << 10
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # width in bytes: code in the descriptor


@dataclass
class Image:
    """A matrix in shared memory as PTX's table of canonical layouts has it, and what a descriptor says
    of it: bytes. ``step`` moves the start to the next 32 bytes of k."""

    start: int
    leading: int
    stride: int
    step: int
    size: int


def unit_swizzle(width: int, address: np.ndarray) -> np.ndarray:
    """Swizzle<B, 4, 3> of CuTe's notation, with B the binary logarithm of units in the width."""
    mask = max(width // 16, 1) - 1
    return address ^ ((address >> 7 & mask) << 4)


def place_k_major(image: np.ndarray, matrix: np.ndarray, width: int, begin: int, gap: int) -> Image:
    """matrix: [rows, STEPS * depth]. Swizzled: ((8,m),(T,2k)):((width,SBO),(1,T)), all steps side by
    side as far as the width holds them. Not swizzled: ((8,m),(T,2k)):((1T,SBO),(1,LBO))."""
    rows = len(matrix)
    units = matrix.view(np.uint8).reshape(rows, 2 * STEPS, 16)
    groups = -(-rows // 8)
    if width == 0:
        stride, leading = 128 + gap, groups * (128 + gap) + gap
        out = Image(begin, leading, stride, 2 * leading, 2 * STEPS * leading)
    else:
        stride = 8 * width * (1 + (gap > 0))
        per_pattern = min(width // 32, STEPS)  # steps that a pattern holds
        out = Image(begin, 0, stride, 32 if per_pattern == STEPS else groups * stride,
                    groups * stride * (STEPS // per_pattern))  # fmt: skip
    for row, unit in product(range(rows), range(2 * STEPS)):
        step, half = divmod(unit, 2)
        group, line = divmod(row, 8)
        at = begin + step * out.step + group * out.stride
        at += line * 16 + half * out.leading if width == 0 else line * width + half * 16
        at = int(unit_swizzle(width, np.int64(at)))
        image[at : at + 16] = units[row, unit]
    return out


def place_n_major(image: np.ndarray, matrix: np.ndarray, width: int, begin: int, gap: int) -> Image:
    """matrix: [STEPS * 16, columns] of 16 bits. Swizzled: ((T,w,m),(8,k)):((1,T,LBO),(wT,SBO)) with w
    units in the width. Not swizzled: ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))."""
    depth, columns = matrix.shape
    units = np.ascontiguousarray(matrix).view(np.uint8).reshape(depth, columns // 8, 16)
    per = max(width // 16, 1)
    atom = 128 * per + (gap if width == 0 else 0)
    atoms = -(-(columns // 8) // per)
    if width == 0:  # SBO: to the next unit of columns; LBO: to the next 8 of k
        out = Image(begin, atom * atoms, atom, 2 * atom * atoms, STEPS * 2 * atom * atoms)
    else:
        out = Image(begin, atom, atom * atoms, 2 * atom * atoms, STEPS * 2 * atom * atoms)
    for k, unit in product(range(depth), range(columns // 8)):
        group, line = divmod(k, 8)
        outer, inner = divmod(unit, per)
        at = begin + (k // 16) * out.step + line * 16 * per + inner * 16
        at += (group % 2) * (out.leading if width == 0 else out.stride)
        at += outer * (out.stride if width == 0 else out.leading)
        at = int(unit_swizzle(width, np.int64(at)))
        image[at : at + 16] = units[k, unit]
    return out


def accumulator_positions(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each thread's registers of d, [128, n / 2]: 8 columns after the other as
    mma.m16n8's, 16 rows a warp."""
    row = 16 * np.arange(4)[:, None, None, None] + D_ROW[None, :, None, :]
    column = 8 * np.arange(n // 8)[None, None, :, None] + D_COLUMN[None, :, None, :]
    shape = (4, 32, n // 8, 4)
    return tuple(np.broadcast_to(x, shape).reshape(128, n // 2) for x in (row, column))


def run_wgmma(run, rng, name: str, n: int, *, width: int, kind: str, registers: bool,
              accumulate: bool = True, gap: int = 0) -> None:  # fmt: skip
    transposed = name.endswith("transposed")
    t = PRODUCTS[name.removesuffix(" transposed")]
    a, b = multiplicands(rng, t, kind, 64, STEPS * t.depth, n)
    d = sums(rng, t.sum, kind, (64, n))
    image = rng.integers(0, 256, IMAGE_BYTES).astype(np.uint8)
    if transposed:
        b_at = place_n_major(image, b, width, 0, gap)
    else:
        b_at = place_k_major(image, np.ascontiguousarray(b.T), width, 0, gap)
    a_at = Image(0, 0, 0, 0, 0)
    if not registers:
        a_at = place_k_major(image, a, width, -(-b_at.size // 1024) * 1024, gap)
    assert a_at.start + a_at.size <= IMAGE_BYTES
    header = [x for at in (a_at, b_at) for x in (at.start, at.leading, at.stride, at.step)]
    header += [SWIZZLES[width], int(accumulate)]
    own_a = [a_registers(a[16 * warp : 16 * warp + 16, step * t.depth :][:, : t.depth])
             for step in range(STEPS) for warp in range(4)]  # fmt: skip
    row, column = accumulator_positions(n)
    words = [np.array(header, np.uint32), d[row, column].view(np.uint32).ravel(),
             np.concatenate(own_a).ravel(), image.view(np.uint32)]  # fmt: skip
    probe = f"wgmma {name} n{n} {'registers' if registers else 'shared'}"
    threads = run(probe, np.concatenate(words), 128 * n // 2).view(t.sum).reshape(128, n // 2)
    got = np.empty_like(d)
    got[row, column] = threads
    check_product(got, a, b, d if accumulate else np.zeros_like(d), kind)


WIDTHS = [8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("registers", [False, True], ids=["shared", "registers"])
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("name", ["bf16", "bf16 transposed", "s8"])
def test_wgmma_of_every_width(run, rng, name, n, registers):
    kind = "random" if name == "s8" else "exact"
    run_wgmma(run, rng, name, n, width=min(128, 2 * n) if "trans" in name and n > 8 else 32,
              kind=kind, registers=registers)  # fmt: skip


@pytest.mark.parametrize("gap", [0, 48], ids=["dense", "apart"])
@pytest.mark.parametrize("width", SWIZZLES)
@pytest.mark.parametrize("name", ["bf16", "bf16 transposed", "s8", "u8 s8", "e4m3"])
def test_wgmma_of_every_swizzle(run, rng, name, width, gap):
    kind = "random" if name in ("s8", "u8 s8") else "exact"
    run_wgmma(run, rng, name, 64, width=width, kind=kind, registers=False, gap=gap)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, k in CASES if n not in ("f16", "s8 u8")])
def test_wgmma_of_every_kind(run, rng, name, kind, accumulate):
    run_wgmma(run, rng, name, 64, width=64, kind=kind, registers=True, accumulate=accumulate)


@pytest.mark.parametrize("seed", SEEDS)
def test_wgmma_in_any_order(run, rng, seed):
    use(seed)
    run_wgmma(run, rng, "bf16", 16, width=128, kind="exact", registers=seed % 2 == 0)


def test_the_probe_names_are_all_there(run):
    with pytest.raises(KeyError):
        run("wgmma bf16 n24 shared", np.zeros(1, np.uint32), 1)


def test_swizzles_exchange_whole_patterns():
    """Against the pictures of the ISA: in line i of 8, unit j lies where j ^ i is (128 bytes), lines
    in pairs (64), in fours (32)."""
    for width, lines in ((128, 1), (64, 2), (32, 4)):
        for line, unit in product(range(8), range(width // 16)):
            at = int(unit_swizzle(width, np.int64(line * width + unit * 16)))
            assert at == line * width + (unit ^ line // lines) * 16
