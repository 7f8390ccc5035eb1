"""From a JPEG file to patches, in parts and whole, beside transformers' image processors.

python bench/bench_image.py [--json results.jsonl] [--only whole]

The parts are decode (Pillow's libjpeg), resize (two bicubic passes), patches (``ops.image_patches``
in float32) and key (the digest that prefix sharing needs). The peers of ``whole`` do the same work but
the key: "slow" is transformers' Pillow processor, "fast" its torchvision one, left out where torchvision
is missing; both are given the picture decoded by Pillow inside the time.

Predicted before any run, one core of Zen 5, 1920 x 1080: decode 9 ms, resize 10 ms (that size stays
nearly as it is, so that each pass touches all pixels with four taps), patches 4 ms (24 MB written), key
5 ms (6 MB at some 1.2 GB/s); whole 28 ms. slow 75 ms: it rescales and normalises in float64 and float32
passes over 25 MB each. fast 35 ms. At 4000 x 3000 decode is two thirds of the whole, and both ratios
fall towards 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from ernie_kernels import ops
from ernie_kernels.vision import VisionLimits, VisionProcessor
from ernie_kernels.vision.digest import item_key
from ernie_kernels.vision.image import load_image
from ernie_kernels.vision.resize import bicubic_resize

from harness import Case, has_torch, main

# Width and height: a thumbnail, a screen, a phone's photograph.
SIZES = [(640, 480), (1920, 1080), (4000, 3000)]


def photograph(width: int, height: int) -> bytes:
    """A JPEG with the bytes per pixel of a photograph: smooth shapes under some noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(smooth + rng.integers(-6, 7, smooth.shape, np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def processors() -> dict[str, Callable[[bytes], np.ndarray]]:
    """transformers' ways to the same patches, by name."""
    if not has_torch():
        return {}
    try:
        from transformers.models.ernie4_5_vl_moe import (
            image_processing_ernie4_5_vl_moe as torchvision_backed,
        )
        from transformers.models.ernie4_5_vl_moe import (
            image_processing_pil_ernie4_5_vl_moe as pillow_backed,
        )
    except ImportError:
        return {}
    kinds = {"slow": (pillow_backed, "Ernie4_5_VLMoeImageProcessorPil")}
    kinds["fast"] = (torchvision_backed, "Ernie4_5_VLMoeImageProcessor")
    found: dict[str, Callable[[bytes], np.ndarray]] = {}
    for name, (module, class_name) in kinds.items():
        try:
            processor = getattr(module, class_name)()
        except ImportError:  # torchvision
            continue

        def patches(data: bytes, processor=processor) -> np.ndarray:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            return np.asarray(processor(images=[image], return_tensors="pt")["pixel_values"])

        found[name] = patches
    return found


def cases(device: str) -> Iterator[Case]:
    ours, limits, peers = VisionProcessor(), VisionLimits(), processors()
    for width, height in SIZES:
        data = photograph(width, height)
        item = ours.image(data)
        stored, resized = load_image(data, "image", limits), item.pixels
        grid = np.array([item.grid_thw], np.int64)

        def to_patches(pixels=resized, grid=grid):
            return ops.image_patches(pixels.reshape(-1), grid, ours.levels)

        def whole(data=data, grid=grid):
            return ops.image_patches(ours.image(data).pixels.reshape(-1), grid, ours.levels)

        def check(data=data, whole=whole) -> None:
            if "slow" in peers:  # within what another order of the passes changes: 24 of 255 levels
                np.testing.assert_allclose(whole().numpy(), peers["slow"](data), atol=0.4)

        size = f"{width}x{height} -> {resized.shape[2]}x{resized.shape[1]}"
        rows, columns = resized.shape[1:3]
        written = resized.size * 4
        yield Case(
            "decode",
            f"{size}, {len(data) >> 10} KiB",
            lambda data=data: load_image(data, "image", limits),
            nbytes=stored.nbytes,
        )
        yield Case(
            "resize",
            size,
            lambda stored=stored, r=rows, c=columns: bicubic_resize(stored, r, c),
            nbytes=stored.nbytes + resized.nbytes,
        )
        yield Case("patches", size, to_patches, nbytes=resized.nbytes + written)
        yield Case(
            "key",
            size,
            lambda item=item: item_key("image", item.grid_thw, b"", item.pixels),
            nbytes=resized.nbytes,
        )
        yield Case(
            "whole",
            size,
            whole,
            {name: lambda data=data, fn=fn: fn(data) for name, fn in peers.items()},
            nbytes=stored.nbytes + resized.nbytes + written,
            check=check,
        )


if __name__ == "__main__":
    main(cases, __doc__)
