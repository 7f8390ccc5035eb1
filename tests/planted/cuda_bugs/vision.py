"""Bugs of patches, merged frames and scattered rows."""

from __future__ import annotations

from backends import BEYOND, MISALIGNED, RACE, UNWRITTEN, WRONG
from bug import VISION, Bug

VISION_CU = "csrc/cuda/vision.cu"

BUGS = [
    Bug(
        "vision: patches of a launch counted from the first of all",
        VISION_CU,
        "const int64_t patch = first + begin + threadIdx.x;",
        "const int64_t patch = begin + threadIdx.x;",
        VISION,
        (WRONG, BEYOND),
    ),
    Bug(
        "vision: the last step of patches as long as the others",
        VISION_CU,
        "count - begin < kPatches ? count - begin : kPatches",
        "kPatches",
        VISION,
        (BEYOND, RACE),
    ),
    Bug(
        "vision: red's levels for all colours on the GPU",
        VISION_CU,
        "const T* level = table + c * kLevels;",
        "const T* level = table;",
        VISION,
        (WRONG,),
    ),
    Bug(
        "vision: rows of pixels as wide as a patch",
        VISION_CU,
        "dy * places[r].row_bytes",
        "dy * patch_size * kPixelChannels",
        VISION,
        (WRONG,),
    ),
    Bug(
        "vision: levels of half of the table",
        VISION_CU,
        "i < kPixelChannels * kLevels; i += kThreads",
        "i < kPixelChannels * kLevels / 2; i += kThreads",
        VISION,
        (UNWRITTEN,),
    ),
    Bug(
        "vision: 16-byte copies whatever the address",
        VISION_CU,
        "if (is_wide(out) && is_wide(x))",
        "if (x.size(1) * width % 16 == 0)",
        VISION,
        (MISALIGNED,),
    ),
    Bug(
        "vision: every block copies all of a row",
        VISION_CU,
        "const int64_t step = int64_t{gridDim.y} * kThreads;",
        "const int64_t step = kThreads;",
        VISION,
        (RACE,),
    ),
    Bug(
        "vision: merged rows of a launch counted from the first of all",
        VISION_CU,
        "index = first + merged;",
        "index = merged;",
        VISION,
        (WRONG, BEYOND, RACE),
    ),
    Bug(
        "vision: rows below the first taken for rows without a place",
        VISION_CU,
        "if (!copy.has_place)",
        "if (!copy.has_place || copy.from < 0)",
        VISION,
        (WRONG, UNWRITTEN),
    ),
    Bug(
        "vision: rows not held against the output",
        VISION_CU,
        "row >= 0 && row < num_tokens}",
        "row >= 0}",
        VISION,
        (BEYOND,),
    ),
    Bug(
        "vision: every piece of the GPU's from the first patch",
        VISION_CU,
        "patches_to(patches, a, first, stream);",
        "patches_to(patches, a, 0, stream);",
        VISION,
        (WRONG,),
    ),
]
