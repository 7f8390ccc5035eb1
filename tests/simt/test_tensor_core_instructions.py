"""The tensor cores' products of csrc/cuda/ptx.cuh, as in test_instructions.py.

Sums of float products may be taken in any order and precision of at least single (e4m3: about 14
bits): TOLERANCE, relative to the sum of magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import ml_dtypes
import numpy as np
import pytest

from simt import instructions
from simt.instructions import BF16, E4M3, F16, MACHINES, SEEDS, same_bits, use_seed

pytestmark = [pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")]

TOLERANCE = {BF16: 2.0**-20, F16: 2.0**-20, E4M3: 2.0**-11}


@pytest.fixture(params=MACHINES)
def run(request: pytest.FixtureRequest):
    library = instructions.library_of(request.param)
    return lambda probe, words, out_words: instructions.run(library, probe, words, out_words)


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
        return same_bits(got.view(np.uint32), exact % 2**32)
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
    use_seed(seed)
    run_wgmma(run, rng, "bf16", 16, width=128, kind="exact", registers=seed % 2 == 0)


def test_swizzles_exchange_whole_patterns():
    """Against the pictures of the ISA: in line i of 8, unit j lies where j ^ i is (128 bytes), lines
    in pairs (64), in fours (32)."""
    for width, lines in ((128, 1), (64, 2), (32, 4)):
        for line, unit in product(range(8), range(width // 16)):
            at = int(unit_swizzle(width, np.int64(line * width + unit * 16)))
            assert at == line * width + (unit ^ line // lines) * 16
