"""Bugs of patches, merged frames and scattered rows."""

from __future__ import annotations

from bug import VISION, Bug

INDEX = "csrc/ops/vision_index.h"
CHECKS = "csrc/ops/vision.cpp"
CPU = "csrc/cpu/vision.cpp"

BUGS = [
    Bug(
        "vision: rows and columns of a block exchanged",
        INDEX,
        "block / blocks_per_row * merge_size + in_block / merge_size",
        "block / blocks_per_row * merge_size + in_block % merge_size",
        VISION,
    ),
    Bug(
        "vision: patches of a row taken for blocks",
        INDEX,
        "blocks_per_row = item.columns / merge_size;",
        "blocks_per_row = item.columns;",
        VISION,
    ),
    Bug(
        "vision: every frame the first",
        INDEX,
        "(patch - in_frame) * patch_size",
        "item.first * patch_size",
        VISION,
    ),
    Bug(
        "vision: an item's first row taken for the last of the one before",
        INDEX,
        "items[middle].first <= index",
        "items[middle].first < index",
        VISION,
    ),
    Bug(
        "vision: an image's rows sought where they are written",
        INDEX,
        "return item.first_source + local;",
        "return item.first + local;",
        VISION,
    ),
    Bug(
        "vision: the second frame of a pair on both sides",
        INDEX,
        "* temporal_size + part;",
        "* temporal_size + temporal_size - 1;",
        VISION,
    ),
    Bug(
        "vision: a frame without a partner accepted",
        CHECKS,
        "if (frames > 1 && frames % temporal_size != 0)",
        "if (frames > 1 && frames < temporal_size)",
        VISION,
    ),
    Bug(
        "vision: bytes of the pixels may wrap",
        CHECKS,
        "checked_mul(num_patches, patch_bytes, &bytes)",
        "(bytes = 0, true)",
        VISION,
    ),
    Bug(
        "vision: rows that are no whole blocks accepted",
        CHECKS,
        "if (extents[dim] < 1 || extents[dim] % merge_size != 0)",
        "if (extents[dim] < merge_size)",
        VISION,
    ),
    Bug(
        "vision: red's levels for all colours",
        CPU,
        "levels[c * kLevels + pixels",
        "levels[pixels",
        VISION,
    ),
    Bug(
        "vision: every chunk from the first patch",
        CPU,
        "patches.copy(first, count, room, width);",
        "patches.copy(0, count, room, width);",
        VISION,
    ),
    Bug(
        "vision: a row named twice accepted",
        CPU,
        "if (!is_inside || (seen[row / 8] >> row % 8 & 1) != 0)",
        "if (!is_inside)",
        VISION,
    ),
    Bug(
        "vision: a row just past the end accepted",
        CPU,
        "row < num_tokens;",
        "row <= num_tokens;",
        VISION,
    ),
    Bug(
        "vision: a packed weight of any width accepted",
        "python/ernie_kernels/ops/vision.py",
        "and weight.in_features != width",
        "and weight.in_features < width",
        VISION,
    ),
    Bug(
        "vision: sizes of numpy multiplied as they are",
        "python/ernie_kernels/ops/vision.py",
        "size = operator.index(patch_size) if",
        "size = patch_size if",
        VISION,
    ),
    Bug(
        "vision: a strided array merged into a copy",
        "python/ernie_kernels/ops/vision.py",
        "else x.flags.c_contiguous)",
        "else True)",
        VISION,
    ),
]
