"""image_patches and patch_embed, and grids that no op takes; test_vision_rows.py has the other ops."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import _core, ops

import reference
from placement import same_bits
from reference import BF16, F32, on, poisoned

DTYPES = [F32, BF16]
# Items (t, gh, gw), with patch_size and merge_size.
GRIDS = [
    ([(1, 2, 2)], 14, 2),
    ([(1, 4, 6)], 14, 2),
    ([(2, 2, 4), (1, 6, 2), (4, 4, 2)], 14, 2),
    ([(1, 3, 5), (3, 1, 2)], 3, 1),
    ([(1, 6, 3), (2, 3, 6)], 5, 3),
    ([(2, 4, 4)], 1, 2),
    ([(1 + i % 3, 2, 2 + 2 * (i % 2)) for i in range(70)], 2, 2),  # more than one launch
]
GRID_IDS = ["one block", "one image", "mixed", "no blocks", "blocks of 9", "pixels", "70 items"]


def zeros(*shape):
    return np.zeros(shape, F32)


def make_items(rng, grid, patch_size):
    return [
        rng.integers(0, 256, (t, gh * patch_size, gw * patch_size, 3)).astype(np.uint8)
        for t, gh, gw in grid
    ]


def flat(items):
    return np.concatenate([item.reshape(-1) for item in items])


def random_levels(rng):
    return rng.standard_normal((3, 256)).astype(F32)


class Pictures:
    """Random items, their patches by the reference, and the arguments of an op."""

    def __init__(self, rng, grid, patch_size=14, merge_size=2):
        items, self.levels = make_items(rng, grid, patch_size), random_levels(rng)
        self.pixels, self.grid = flat(items), np.array(grid, np.int64)
        self.sizes = {"patch_size": patch_size, "merge_size": merge_size}
        self.patches = reference.image_patches(items, self.levels, patch_size, merge_size)

    def patched(self, device, **options):
        return ops.image_patches(
            on(self.pixels, device), self.grid, on(self.levels, device), **self.sizes, **options
        )

    def embedded(self, device, weight, **options):
        return ops.patch_embed(
            on(self.pixels, device), weight, self.grid, levels=on(self.levels, device),
            **self.sizes, **options,
        )  # fmt: skip


# ---------------------------------------------------------------------------------- image_patches


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid", "patch_size", "merge_size"), GRIDS, ids=GRID_IDS)
def test_patches_are_those_of_the_reference(device, rng, grid, patch_size, merge_size, dtype):
    pictures = Pictures(rng, grid, patch_size, merge_size)
    out = poisoned(pictures.patches.shape, dtype, device)
    assert pictures.patched(device, out=out) is out
    same_bits(out, pictures.patches.astype(dtype))
    same_bits(pictures.patched(device, dtype=str(dtype)), pictures.patches.astype(dtype))


def test_patches_follow_the_documented_order(device):
    """Each pixel is told by its colours: (number of its patch, y * 14 + x, frame)."""
    gh, gw = 4, 6
    y, x = np.mgrid[: gh * 14, : gw * 14]
    block, inside = y // 28 * (gw // 2) + x // 28, y // 14 % 2 * 2 + x // 14 % 2
    frame = np.stack([block * 4 + inside, y % 14 * 14 + x % 14, np.zeros_like(y)], axis=-1)
    frames = np.stack([frame, frame + np.array([0, 0, 1])]).astype(np.uint8)
    levels = np.tile(np.arange(256, dtype=F32), (3, 1))
    out = ops.image_patches(on(flat([frames]), device), np.array([[2, gh, gw]]), on(levels, device))
    rows = out.numpy().reshape(2, gh * gw, 3, 196)
    np.testing.assert_array_equal(
        rows[:, :, 0], np.arange(24)[None, :, None] + np.zeros((2, 1, 196))
    )
    np.testing.assert_array_equal(rows[:, :, 1], np.arange(196)[None, None] + np.zeros((2, 24, 1)))
    np.testing.assert_array_equal(rows[:, :, 2], np.arange(2)[:, None, None] + np.zeros((24, 196)))


def test_levels_reach_the_patches_as_they_are(device, rng):
    """Infinities, denormals and NaN too."""
    pictures = Pictures(rng, [(1, 4, 4)])
    pictures.levels[:, :5] = [np.inf, -np.inf, 1e-42, -0.0, np.nan]
    pictures.pixels[:] = rng.integers(0, 8, pictures.pixels.shape)
    items = [pictures.pixels.reshape(1, 56, 56, 3)]
    same_bits(pictures.patched(device), reference.image_patches(items, pictures.levels, 14, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patches_go_to_strided_rows(device, rng, dtype):
    pictures = Pictures(rng, [(1, 2, 4), (1, 2, 2)])
    wide = ek.from_numpy(np.zeros((12, 600), dtype), device)
    pictures.patched(device, out=wide[:, 5:593])
    expected = np.zeros((12, 600), dtype)
    expected[:, 5:593] = pictures.patches.astype(dtype)
    same_bits(wide, expected)


def test_pixels_may_begin_anywhere(device, rng):
    pictures = Pictures(rng, [(1, 2, 4)])
    longer = np.concatenate([np.zeros(3, np.uint8), pictures.pixels, np.zeros(2, np.uint8)])
    pixels = ek.from_numpy(longer, device)[3 : 3 + pictures.pixels.size]
    same_bits(
        ops.image_patches(pixels, pictures.grid, on(pictures.levels, device)), pictures.patches
    )


def test_no_items_are_no_patches(device):
    nothing = on(np.empty(0, np.uint8), device), np.empty((0, 3), np.int64)
    levels, weight = on(np.zeros((3, 256), F32), device), on(np.zeros((7, 588), F32), device)
    assert ops.image_patches(*nothing, levels).shape == (0, 588)
    assert ops.patch_embed(nothing[0], weight, nothing[1], levels=levels).shape == (0, 7)


def test_a_picture_s_patches_do_not_depend_on_the_others_or_on_threads(rng):
    grid = [(1, 26, 34), (2, 8, 6), (1, 40, 44)]
    pictures, threads = Pictures(rng, grid), ek.num_threads()
    try:
        for count in (1, 3):
            ek.set_num_threads(count)
            same_bits(pictures.patched("cpu"), pictures.patches)
    finally:
        ek.set_num_threads(threads)


# ------------------------------------------------------------------------------------ patch_embed


@pytest.mark.parametrize("packed", [False, pytest.param(True, id="packed")])
@pytest.mark.parametrize(("dtype", "out_dtype"), [(F32, F32), (BF16, BF16), (BF16, F32)], ids=str)
@pytest.mark.parametrize(
    ("grid", "patch_size", "merge_size", "embed_dim"),
    [
        ([(1, 2, 2)], 14, 2, 5),
        ([(1, 4, 6), (2, 2, 2)], 14, 2, 48),
        ([(1, 6, 3), (2, 3, 6)], 5, 3, 33),  # 75 columns: no whole pairs
    ],
)
def test_embedding_is_patches_times_the_weight(
    device, rng, grid, patch_size, merge_size, embed_dim, dtype, out_dtype, packed
):
    if packed and device != "cpu":
        pytest.skip("packed weights are the CPU's")
    pictures = Pictures(rng, grid, patch_size, merge_size)
    weight = reference.random(rng, (embed_dim, 3 * patch_size**2), dtype)
    given = ops.linear_pack(weight) if packed else on(weight, device)
    out = poisoned((len(pictures.patches), embed_dim), out_dtype, device)
    room = poisoned((len(pictures.patches), 3 * patch_size**2), out_dtype, device)

    assert pictures.embedded(device, given, patches=room, out=out) is out

    patches = pictures.patches.astype(out_dtype)
    same_bits(out, ops.linear(on(patches, device), given).numpy())
    same_bits(pictures.embedded(device, given, dtype=str(out_dtype)), out.numpy())
    expected, magnitude = reference.linear(patches, weight, None)
    reference.check(out, expected, magnitude=magnitude, terms=weight.shape[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embedding_of_more_patches_than_the_cpu_holds_at_once(rng, dtype):
    """Chunks of some 4 MiB of patches, here and there within an item."""
    pictures = Pictures(rng, [(1, 60, 58), (2, 12, 10), (1, 2, 2)])
    weight = ops.linear_pack(reference.random(rng, (5, 588), dtype))
    out = poisoned((len(pictures.patches), 5), dtype, "cpu")
    pictures.embedded("cpu", weight, out=out)
    same_bits(out, ops.linear(pictures.patches.astype(dtype), weight).numpy())


@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_embedding_takes_as_many_patches_at_a_time_as_there_is_room(rng, rows):
    """Strided room, and what is beyond it stays."""
    pictures = Pictures(rng, [(1, 2, 4), (2, 2, 2)])
    weight = on(reference.random(rng, (8, 588), BF16), "cuda")
    wide = ek.from_numpy(np.ones((rows, 600), BF16), "cuda")
    out = pictures.embedded(
        "cuda", weight, patches=wide[:, 8:596], out=poisoned((16, 8), BF16, "cuda")
    )
    patches = pictures.patches.astype(BF16)
    expected = [
        ops.linear(on(patches[i : i + rows], "cuda"), weight).numpy() for i in range(0, 16, rows)
    ]
    same_bits(out, np.concatenate(expected))
    assert (wide.numpy()[:, [*range(8), *range(596, 600)]] == 1).all()


def test_embedding_writes_strided_rows(device, rng):
    pictures = Pictures(rng, [(1, 2, 4)])
    weight = on(reference.random(rng, (6, 588), F32), device)
    wide = ek.from_numpy(np.zeros((8, 11), F32), device)
    room = ek.empty((8, 588), "float32", device)
    pictures.embedded(device, weight, patches=room, out=wide[:, 3:9])
    expected = np.zeros((8, 11), F32)
    expected[:, 3:9] = ops.linear(on(pictures.patches, device), weight).numpy()
    same_bits(wide, expected)


def test_embedding_has_the_dtype_of_the_weight_unless_told(device, rng):
    pictures = Pictures(rng, [(1, 2, 2)])
    weight = on(reference.random(rng, (4, 588), BF16), device)
    assert pictures.embedded(device, weight).dtype_name == "bfloat16"
    assert pictures.embedded(device, weight, dtype="float32").dtype_name == "float32"


def test_the_argument_that_is_wrong_is_named():
    """Not the output, which nobody has given, nor the weight, whose rows decide."""
    pictures, weight = Pictures(np.random.default_rng(0), [(1, 2, 2)]), zeros(4, 588)
    for message, bad in [
        ("dtype: expected float32 beside a float32 weight, got bfloat16",
         lambda: pictures.embedded("cpu", weight, dtype="bfloat16")),
        ("out: expected float32, got bfloat16",
         lambda: pictures.embedded("cpu", weight, out=np.zeros((4, 4), BF16))),
        ("dtype: expected float32 or bfloat16, got int8",
         lambda: pictures.embedded("cpu", weight, dtype="int8")),
        ("weight: expected float32 or bfloat16, got int8",
         lambda: pictures.embedded("cpu", weight.astype(np.int8))),
        ("weight: expected 2 dimensions", lambda: pictures.embedded("cpu", weight[None])),
        (r"out: expected shape \[num_patches=4, embed_dim=4\], got \[4, 5\]",
         lambda: pictures.embedded("cpu", weight, out=zeros(4, 5))),
    ]:  # fmt: skip
        with pytest.raises(ek.ArgumentError, match=f"^patch_embed: {message}"):
            bad()
    with pytest.raises(ek.ArgumentError, match="image_patches: dtype: expected float32 or bfloat"):
        pictures.patched("cpu", dtype="int8")


@pytest.mark.parametrize("size", [np.int8(14), np.uint8(14)])
def test_a_patch_size_of_numpy_does_not_wrap(size):
    """3 * 14 * 14 does not fit in 8 bits."""
    pictures = Pictures(np.random.default_rng(0), [(1, 2, 2)])
    pictures.sizes["patch_size"] = size
    assert pictures.embedded("cpu", ops.linear_pack(zeros(4, 588))).shape == (4, 4)


def test_a_packed_weight_of_another_width_is_refused():
    """75 columns and 76 look alike in pairs; so do 5 rows and 16."""
    pictures = Pictures(np.random.default_rng(0), [(1, 2, 2)], patch_size=5)
    wide, right = (ops.linear_pack(np.zeros((5, n), BF16)) for n in (76, 75))
    with pytest.raises(
        ek.ArgumentError, match=r"weight: expected in_features=3 \* patch_size\*\*2=75, got 76"
    ):
        pictures.embedded("cpu", wide)
    with pytest.raises(ek.ArgumentError, match="patch_embed: out: expected embed_dim=5 columns"):
        pictures.embedded("cpu", right, out=np.zeros((4, 16), BF16))


@pytest.mark.cuda
def test_a_gpu_needs_room_for_patches(rng):
    pictures, weight = Pictures(rng, [(1, 2, 2)]), on(np.zeros((4, 588), F32), "cuda")
    out = poisoned((4, 4), F32, "cuda")
    with pytest.raises(ek.ArgumentError, match=r"patches: expected \[1 or more, .*, got none"):
        pictures.embedded("cuda", weight, out=out)
    with pytest.raises(ek.ArgumentError, match=r"patches: expected .*, got shape \[0, 588\]"):
        pictures.embedded("cuda", weight, out=out, patches=ek.empty((0, 588), "float32", "cuda"))
    packed = ops.linear_pack(np.zeros((16, 588), F32)).tensor.to("cuda")
    with pytest.raises(ek.ArgumentError, match=r"weight: expected .* on a CUDA device, got a"):
        pictures.embedded("cuda", packed, out=poisoned((4, 16), F32, "cuda"))


# -------------------------------------------------------------------------------- hostile arguments

TOP = 2**63 - 1
# Item, merge_size, and what is said of it.
HOSTILE = [
    ((0, 2, 2), 2, "1 frame or more"),
    ((-1, 2, 2), 2, "1 frame or more"),
    ((-(2**63), 2, 2), 2, "1 frame or more"),
    ((1, 0, 2), 2, "rows and columns that are multiples of merge_size=2"),
    ((1, 2, 0), 2, "rows and columns that are multiples of merge_size=2"),
    ((1, -2, -2), 2, "rows and columns that are multiples of merge_size=2"),
    ((1, 3, 2), 2, "rows and columns that are multiples of merge_size=2"),
    ((1, 2, 5), 2, "rows and columns that are multiples of merge_size=2"),
    ((1, 6, 4), 3, "rows and columns that are multiples of merge_size=3"),
    ((1, 2**32, 2**32), 2, r"items of fewer than 2\*\*63"),
    ((2**62, 2, 2), 2, r"items of fewer than 2\*\*63"),
    ((2**52, 2, 2), 2, r"items of fewer than 2\*\*63"),
    ((1, TOP - 1, 2), 2, r"items of fewer than 2\*\*63"),
    ((TOP, TOP, TOP), 1, r"items of fewer than 2\*\*63"),
]


@pytest.mark.parametrize(("item", "merge_size", "expected"), HOSTILE)
def test_a_hostile_grid_is_refused(item, merge_size, expected):
    grid = np.array([(1, 6, 6), item], np.int64)
    where = rf"grid_thw: expected {expected}.*, got \({item[0]}, {item[1]}, {item[2]}\) at item 1$"
    pixels, levels = np.zeros(588 * 40, np.uint8), np.zeros((3, 256), F32)
    with pytest.raises(ek.ArgumentError, match=f"^image_patches: {where}"):
        ops.image_patches(pixels, grid, levels, merge_size=merge_size)
    with pytest.raises(ek.ArgumentError, match=f"^patch_embed: {where}"):
        ops.patch_embed(pixels, zeros(3, 588), grid, levels=levels, merge_size=merge_size)


@pytest.mark.parametrize(("item", "merge_size", "expected"), HOSTILE)
def test_a_hostile_grid_is_refused_by_the_merge_too(item, merge_size, expected):
    if expected.startswith("items") and item[0] != TOP:
        item = tuple(n // merge_size * merge_size if n > 4 else 2**62 for n in item)
    grid = np.array([(1, 6, 6), item], np.int64)
    with pytest.raises(ek.ArgumentError, match=r"^temporal_merge: grid_thw: .* at item 1$"):
        ops.temporal_merge(np.zeros((9, 4), F32), grid, merge_size=merge_size)


@pytest.mark.parametrize(
    "grid", [[(1, 2, 2)], [(1, 2, 4), (1, 2, 2)], [(1, 2**20, 2**20)], [(2**40, 2, 2)], []]
)
def test_a_buffer_of_another_length_is_refused_before_anything_is_made(grid):
    array = np.array(grid, np.int64).reshape(-1, 3)
    wanted = int(np.prod(array, axis=1).sum()) * 588
    match = rf"pixels: expected shape \[bytes of the items of grid_thw={wanted}\], got \[4703\]"
    pixels, levels = np.zeros(4703, np.uint8), zeros(3, 256)
    with pytest.raises(ek.ArgumentError, match=f"^image_patches: {match}"):
        ops.image_patches(pixels, array, levels)
    with pytest.raises(ek.ArgumentError, match=f"^patch_embed: {match}"):
        ops.patch_embed(pixels, zeros(3, 588), array, levels=levels)


@pytest.mark.parametrize("size", [0, -1, 1025, 2**62])
@pytest.mark.parametrize("name", ["patch_size", "merge_size"])
def test_sizes_have_bounds(name, size):
    pictures = Pictures(np.random.default_rng(0), [(1, 2, 2)])
    pictures.sizes[name] = size
    where = f"{name}: expected a value from 1 to 1024, got {size}"
    out = np.zeros((4, 588), F32)
    for options in ({}, {"out": out}):
        with pytest.raises(ek.ArgumentError, match=f"^image_patches: {where}"):
            pictures.patched("cpu", **options)
    for options in ({}, {"out": out[:, :4]}):
        for weight in (zeros(4, 588), ops.linear_pack(zeros(4, 588))):
            with pytest.raises(ek.ArgumentError, match=f"^patch_embed: {where}"):
                pictures.embedded("cpu", weight, **options)
    if name == "merge_size":
        with pytest.raises(ek.ArgumentError, match=f"^temporal_merge: {where}"):
            ops.temporal_merge(zeros(1, 4), pictures.grid, merge_size=size)


@pytest.mark.parametrize("size", [0, -1, 1025, 2**62])
def test_the_temporal_size_has_bounds(size):
    where = f"temporal_size: expected a value from 1 to 1024, got {size}"
    with pytest.raises(ek.ArgumentError, match=f"^temporal_merge: {where}"):
        ops.temporal_merge(zeros(1, 4), np.array([[1, 2, 2]]), temporal_size=size)


@pytest.mark.cuda
def test_a_grid_on_the_gpu_is_refused(rng):
    pictures = Pictures(rng, [(1, 2, 2)])
    pictures.grid = ek.from_numpy(pictures.grid, "cuda")
    with pytest.raises(ek.ArgumentError, match="grid_thw: expected a tensor on the host, got cuda"):
        pictures.patched("cuda")


# ------------------------------------------------------------------------- places beyond any memory


def place_of_patch(first, rows, columns, patch, size, merge):
    """In Python's integers, by counting coordinates."""
    frame, inside = divmod(patch - first, rows * columns)
    block, (inner_y, inner_x) = inside // merge**2, divmod(inside % merge**2, merge)
    block_y, block_x = divmod(block, columns // merge)
    y, x = block_y * merge + inner_y, block_x * merge + inner_x
    frame_begin = (first + frame * rows * columns) * 3 * size**2
    return frame_begin + (y * size * columns * size + x * size) * 3, columns * size * 3


@pytest.mark.parametrize(
    ("first", "rows", "columns", "size", "merge"),
    [
        (0, 2, 2, 14, 2),
        (2**31 - 4, 64, 32, 14, 2),
        (2**40, 2**16, 2**16, 14, 2),
        (2**33 + 7, 3 * 2**13, 3 * 2**14, 16, 3),
        (2**45, 2, 2, 1, 1),
    ],
)
def test_places_of_patches_in_more_than_32_bits(rng, first, rows, columns, size, merge):
    frame = rows * columns
    edges = [0, 1, merge, merge**2, merge * columns - 1, merge * columns, frame - 1, frame]
    for local in [*edges, 2**14 * frame, *(int(n) for n in rng.integers(0, 9 * frame, 50))]:
        patch = first + local
        found = _core.patch_place(
            first=first, rows=rows, columns=columns, patch=patch, patch_size=size, merge_size=merge
        )
        assert found == place_of_patch(first, rows, columns, patch, size, merge)


@pytest.mark.parametrize("frames", [1, 2, 6, 2**20])
@pytest.mark.parametrize("frame_rows", [1, 7, 2**22])
def test_sources_of_merged_rows_in_more_than_32_bits(rng, frames, frame_rows):
    first, first_source = 2**40 + 3, 2**41 + 5
    merged = max(frames // 2, 1)
    for local in [0, frame_rows - 1, *(int(n) for n in rng.integers(0, merged * frame_rows, 30))]:
        for part in (0, 1):
            frame, row = divmod(local, frame_rows)
            frame = 0 if frames == 1 else 2 * frame + part
            found = _core.merged_source(
                first=first, first_source=first_source, frames=frames, frame_rows=frame_rows,
                row=first + local, part=part, temporal_size=2,
            )  # fmt: skip
            assert found == first_source + frame * frame_rows + row


# ------------------------------------------------------------------------------------------ oracle


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("height", "width"), [(56, 56), (448, 448), (100, 37), (61, 700), (1000, 333), (29, 1400)]
)
def test_patches_are_those_of_hugging_face(rng, height, width):
    """Bit for bit, from the pixels that its PIL processor makes of the picture."""
    image = pytest.importorskip("PIL.Image")
    module = pytest.importorskip(
        "transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe"
    )
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    processor = module.Ernie4_5_VLMoeImageProcessorPil()
    theirs = processor(images=[image.fromarray(picture)], return_tensors="np")
    sides = module.smart_resize(height, width, 28, 56 * 56, 28 * 28 * 6177)
    resized = image.fromarray(picture).resize(sides[::-1], image.Resampling.BICUBIC)
    scaled = (np.arange(256, dtype=np.float64) / 255).astype(F32)
    mean, std = np.array(processor.image_mean, F32), np.array(processor.image_std, F32)
    levels = (scaled - mean[:, None]) / std[:, None]

    ours = ops.image_patches(np.asarray(resized).reshape(-1), theirs["image_grid_thw"], levels)

    same_bits(ours, theirs["pixel_values"])
