"""Pixels to patches, their embedding and merged frames, beside torch's way of doing the same.

python bench/bench_vision.py [--threads 2] [--json results.jsonl]

Peers: for image_patches what a processor does with a tensor of pixels (scale, subtract, divide, then
the transposition); for patch_embed the same and ``torch.nn.functional.linear``; for temporal_merge
``cat`` of the even and the odd frames.

What to expect of one core that reads 13 GB/s and does 160 GFLOP/s in float32. image_patches of a
picture of 448 x 448 (1,024 patches) looks 602,112 values up, about one a cycle: 0.2 ms in either dtype,
as its 2.4 or 1.2 MB stay in the cache. Of one of 1036 x 1036 (5,476 patches) it writes 12.9 MB in
float32, which memory takes in 2 ms with the reads that go before writes; in bfloat16 half. torch makes
five passes over as many float32: 5 to 10 times as long. patch_embed is 1.54 and 8.24 GFLOP: 10 and
51 ms in float32, a third of that where bfloat16 has a dot product of its own, and there the lookups are
5 % of it; beside torch's the ratio is that of the products, and a tenth more for the passes.
temporal_merge copies 31 and 63 MB: 2.4 and 4.8 ms; torch's ``cat`` does it in one pass too, so about 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import ops

from harness import Case, has_torch, main, torch_tensor

PATCH, MERGE, EMBED_DIM, WIDTH = 14, 2, 1280, 588
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PICTURES = {
    "448x448": [(1, 32, 32)],
    "1036x1036": [(1, 74, 74)],
    "16 of 448x448": [(1, 32, 32)] * 16,
}
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def cases(device: str) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for name, grid in PICTURES.items():
        for dtype in DTYPES:
            pictures = Pictures(rng, grid, dtype, device)
            yield pictures.patches_case(name)
            yield pictures.embed_case(name)
    for name, grid in {"images": [(1, 32, 32)] * 4, "video": [(16, 24, 32)]}.items():
        yield merge_case(rng, name, grid, device)


def close(ours: ek.Tensor, theirs) -> None:
    expected = theirs.float().cpu().numpy()
    error = np.abs(ours.numpy().astype(np.float32) - expected)
    assert error.max() < 0.02 * np.abs(expected).max()


class Pictures:
    """Random pixels, a weight, and where the ops write."""

    def __init__(self, rng, grid: list[tuple[int, int, int]], dtype: str, device: str) -> None:
        self.grid, self.dtype, self.device = np.array(grid), dtype, device
        self.count = int(np.prod(self.grid, axis=1).sum())
        self.array = rng.integers(0, 256, self.count * WIDTH).astype(np.uint8)
        mean, std = (np.array(values, np.float32)[:, None] for values in (MEAN, STD))
        levels = ((np.arange(256) / 255).astype(np.float32) - mean) / std
        self.pixels, self.levels = (ek.from_numpy(a, device) for a in (self.array, levels))
        self.weight = (rng.standard_normal((EMBED_DIM, WIDTH), np.float32) / 24).astype(
            DTYPES[dtype]
        )
        self.out = ek.empty((self.count, WIDTH), dtype, device)
        self.embedded = ek.empty((self.count, EMBED_DIM), dtype, device)

    def torch_patches(self) -> Callable[[], object]:
        """Pictures of one size at once, which is the best case of its way."""
        import torch

        _, rows, columns = (int(n) for n in self.grid[0])
        pixels = torch_tensor(self.array, self.device).view(-1, rows * PATCH, columns * PATCH, 3)
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        blocks = rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH
        wanted = getattr(torch, self.dtype)

        def patches() -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).float().mul_(1 / 255).sub_(mean).div_(std)
            x = x.reshape(-1, 3, *blocks).permute(0, 2, 5, 3, 6, 1, 4, 7)
            return x.reshape(-1, WIDTH).to(wanted)

        return patches

    def patches_case(self, name: str) -> Case:
        def ours() -> ek.Tensor:
            return ops.image_patches(self.pixels, self.grid, self.levels, out=self.out)

        peers = {"torch": self.torch_patches()} if has_torch() else {}
        return Case(
            "image_patches", f"{name} {self.dtype}", ours, peers,
            nbytes=self.array.nbytes + self.out.nbytes,
            check=(lambda: close(ours(), peers["torch"]())) if peers else None,
        )  # fmt: skip

    def embed_case(self, name: str) -> Case:
        on_cpu = self.device == "cpu"
        weight = ops.linear_pack(self.weight) if on_cpu else ek.from_numpy(self.weight, self.device)
        rows = min(self.count, 16384)
        room = None if on_cpu else ek.empty((rows, WIDTH), self.dtype, self.device)

        def ours() -> ek.Tensor:
            return ops.patch_embed(
                self.pixels, weight, self.grid, levels=self.levels, patches=room, out=self.embedded
            )

        peers: dict[str, Callable[[], object]] = {}
        if has_torch():
            import torch

            patches, theirs = self.torch_patches(), torch_tensor(self.weight, self.device)
            peers["torch"] = lambda: torch.nn.functional.linear(patches(), theirs)
        return Case(
            "patch_embed", f"{name} {self.dtype}", ours, peers,
            nbytes=self.array.nbytes + self.weight.nbytes + self.embedded.nbytes,
            flops=2 * self.count * WIDTH * EMBED_DIM,
            check=(lambda: close(ours(), peers["torch"]())) if peers else None,
        )  # fmt: skip


def merge_case(rng, name: str, grid: list[tuple[int, int, int]], device: str) -> Case:
    array, hidden_size = np.array(grid), 5120
    rows = int(np.prod(array, axis=1).sum()) // MERGE**2
    x = rng.standard_normal((rows, hidden_size), np.float32).astype(ml_dtypes.bfloat16)
    given = ek.from_numpy(x, device)
    out = ops.temporal_merge(given, array)

    def ours() -> ek.Tensor:
        return ops.temporal_merge(given, array, out=out)

    peers: dict[str, Callable[[], object]] = {}
    if has_torch():
        import torch

        theirs, frames = torch_tensor(x, device), grid[0][0]

        def merged() -> torch.Tensor:
            if frames == 1:
                return torch.cat([theirs, theirs], dim=1)
            pairs = theirs.view(frames // 2, 2, -1, hidden_size)
            return torch.cat([pairs[:, 0], pairs[:, 1]], dim=2).view(-1, 2 * hidden_size)

        peers["torch"] = merged
    return Case(
        "temporal_merge", f"{name} rows={rows} hidden_size={hidden_size}", ours, peers,
        nbytes=x.nbytes + out.nbytes,
        check=(lambda: close(ours(), peers["torch"]())) if peers else None,
    )  # fmt: skip


if __name__ == "__main__":
    main(cases, __doc__)
