"""Pixels to patches, and the rows of the resampler. C++ contract: csrc/ops/vision.h.

``grid_thw`` has a row ``(t, gh, gw)`` for each image or video: its frames (1 for an image), and the
rows and columns of patches in a frame, both multiples of ``merge_size``. It is an int64 array on the
host, whatever the device of the rest.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, TypeVar

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.errors import ArgumentError
from ernie_kernels.ops.gemm import PackedWeight
from ernie_kernels.ops.packed import check_width

if TYPE_CHECKING:
    import numpy as np

Rows = TypeVar("Rows", Tensor, "np.ndarray")

MAX_SIZE = 1024
"""The largest ``patch_size``, ``merge_size`` and ``temporal_size``; csrc/ops/vision.cpp has it too."""


def image_patches(
    pixels: Tensor,
    grid_thw: Tensor,
    levels: Tensor,
    *,
    patch_size: int = 14,
    merge_size: int = 2,
    dtype: str = "float32",
    out: Tensor | None = None,
) -> Tensor:
    """Cut images into patches, rescaled and normalised: what a Hugging Face processor returns.

    Rows are ordered by item, frame, block row, block column, row in block, column in block, where a
    block is ``merge_size`` x ``merge_size`` patches; a row holds channel, y, x.

    Args:
        pixels: uint8, one dimension, contiguous: the items one after the other, each
            ``[t, gh * patch_size, gw * patch_size, 3]``.
        grid_thw: ``[num_items, 3]``, int64, contiguous, on the host.
        levels: ``[3, 256]``, float32, contiguous: what each of the 256 levels of each channel
            becomes, so that any rescaling and normalisation is met to the bit.
        patch_size: height and width of a patch in pixels, 1 to 1024.
        merge_size: height and width of a block in patches, 1 to 1024.
        dtype: of the allocated ``out``, ``"float32"`` or ``"bfloat16"`` (values rounded once).
        out: where to write, ``[num_patches, 3 * patch_size**2]``, float32 or bfloat16, last stride
            1. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or the grid does not
            tell as many pixels as there are.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the ERNIE-4.5-VL image processors' patchify.
    """
    if out is None:
        out = _core.image_patches_out(pixels, grid_thw, patch_size, merge_size, dtype)
    _core.image_patches(out, pixels, grid_thw, levels, patch_size, merge_size)
    return out


def patch_embed(
    pixels: Tensor,
    weight: Tensor | PackedWeight,
    grid_thw: Tensor,
    *,
    levels: Tensor,
    patch_size: int = 14,
    merge_size: int = 2,
    dtype: str | None = None,
    patches: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``linear(image_patches(...), weight)``, bit for bit, without all patches ever in memory.

    The patches are rounded to the dtype of ``out``. On CUDA the sums are those of :func:`linear` on
    as many rows as ``patches`` has.

    Args:
        pixels: as of :func:`image_patches`.
        weight: ``[embed_dim, 3 * patch_size**2]``, contiguous, float32 (then ``out`` is too) or
            bfloat16; or a :class:`PackedWeight` (CPU only).
        grid_thw: as of :func:`image_patches`.
        levels: as of :func:`image_patches`.
        patch_size: height and width of a patch in pixels, 1 to 1024.
        merge_size: height and width of a block in patches, 1 to 1024.
        dtype: of the allocated ``out``, ``"float32"`` or ``"bfloat16"``; that of ``weight`` when
            omitted.
        patches: room for some patches on CUDA, ``[1 or more, 3 * patch_size**2]``, dtype of
            ``out``, last stride 1. Allocated when ``out`` is omitted; the CPU needs none.
        out: where to write, ``[num_patches, embed_dim]``, last stride 1. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: as of :func:`image_patches`, or the weight does not fit.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: on CUDA, an extent near 2**31 or beyond.

    Source: ``patch_embed.proj`` of ERNIE-4.5-VL's vision tower.
    """
    matrix, embed_dim = weight, None
    if isinstance(weight, PackedWeight):
        matrix, embed_dim = weight.tensor, weight.out_features
        check_width("patch_embed: out", out, "embed_dim", embed_dim)  # panels are padded
        _check_packed_width(weight, patch_size)
    if out is None:
        out, room = _core.patch_embed_out(
            pixels, matrix, grid_thw, embed_dim, patch_size, merge_size, dtype
        )
        patches = room if patches is None else patches
    _core.patch_embed(out, pixels, matrix, grid_thw, levels, patches, patch_size, merge_size)
    return out


def _check_packed_width(weight: PackedWeight, patch_size: int) -> None:
    """Panels of an odd number of columns are padded: the core cannot tell 75 from 76. A size that is
    none is the core's to refuse."""
    size = operator.index(patch_size) if hasattr(patch_size, "__index__") else 0
    width = 3 * size**2
    if 1 <= size <= MAX_SIZE and weight.in_features != width:
        expected = f"in_features=3 * patch_size**2={width}"
        message = f"patch_embed: weight: expected {expected}, got {weight.in_features}"
        raise ArgumentError(message)


def temporal_merge(
    x: Tensor,
    grid_thw: Tensor,
    *,
    merge_size: int = 2,
    temporal_size: int = 2,
    out: Tensor | None = None,
) -> Tensor:
    """Put ``temporal_size`` frames side by side; an image beside itself.

    An item has ``t * (gh / merge_size) * (gw / merge_size)`` rows of ``x``, frame after frame. Its
    rows of ``out`` are, block by block, frames 0 and 1 of a video, then 2 and 3, and so on; of an
    image ``[x, x]``.

    Args:
        x: ``[num_rows, hidden_size]``, float32 or bfloat16, last stride 1.
        grid_thw: ``[num_items, 3]``, int64, contiguous, on the host; each ``t`` is 1 or a multiple
            of ``temporal_size``.
        merge_size: patches on a side of the block that a row of ``x`` stands for, 1 to 1024.
        temporal_size: frames side by side, 1 to 1024.
        out: where to write, ``[num_tokens, temporal_size * hidden_size]``, dtype of ``x``, last
            stride 1. Allocated when omitted.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the resampler of ERNIE-4.5-VL.
    """
    if out is None:
        out = _core.temporal_merge_out(x, grid_thw, merge_size, temporal_size)
    _core.temporal_merge(out, x, grid_thw, merge_size, temporal_size)
    return out


def spatial_merge(x: Rows, merge_size: int = 2) -> Rows:
    """Put the patches of each block side by side: a view, as their rows follow each other.

    Args:
        x: ``[num_patches, hidden_size]``, contiguous, rows in the order of :func:`image_patches`.
        merge_size: patches on a side of a block, 1 to 1024.

    Returns:
        ``x`` as ``[num_patches / merge_size**2, merge_size**2 * hidden_size]``; it shares memory.

    Raises:
        ArgumentError: not of two dimensions, not of whole blocks, not contiguous, or a
            ``merge_size`` out of range.

    Source: the resampler of ERNIE-4.5-VL.
    """
    import numpy as np  # not while the package is imported

    if not isinstance(x, Tensor | np.ndarray):
        message = f"spatial_merge: x: expected a Tensor or a numpy array, got {type(x).__name__}"
        raise TypeError(message)
    block = _merge_size(merge_size) ** 2
    shape = tuple(x.shape)
    if len(shape) != 2 or shape[0] % block != 0:
        message = (
            f"spatial_merge: x: expected [a multiple of merge_size**2={block}, hidden_size], "
            f"got {list(shape)}"
        )
        raise ArgumentError(message)
    if not (x.is_contiguous() if isinstance(x, Tensor) else x.flags.c_contiguous):
        message = (
            "spatial_merge: x: expected a contiguous tensor, got a strided view of shape "
            f"{list(shape)}"
        )
        raise ArgumentError(message)
    return x.reshape(shape[0] // block, block * shape[1])


def _merge_size(given: int) -> int:
    """As one of Python's own integers, of which no product wraps."""
    if not hasattr(given, "__index__"):
        message = f"spatial_merge: merge_size: expected an integer, got {type(given).__name__}"
        raise TypeError(message)
    size = operator.index(given)
    if not 1 <= size <= MAX_SIZE:
        got = size if size.bit_length() < 64 else "one of more than 64 bits"
        message = f"spatial_merge: merge_size: expected a value from 1 to {MAX_SIZE}, got {got}"
        raise ArgumentError(message)
    return size


def scatter_rows(x: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """``out[rows[i]] = x[i]``: image features to their places among a prompt's embeddings.

    Args:
        x: ``[n, hidden_size]``, float32 or bfloat16, last stride 1.
        rows: ``[n]``, int32, contiguous, distinct, each in ``[0, num_tokens)``.
        out: ``[num_tokens, hidden_size]``, dtype of ``x``, last stride 1; its other rows stay.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU, a
            row is out of range or named twice; nothing is written then. CUDA skips rows out of
            range and leaves open whose values a row gets that is named twice.
        DeviceError: a tensor is on a GPU that this build cannot use.

    Source: the embedding of ERNIE-4.5-VL's placeholders.
    """
    _core.scatter_rows(out, x, rows)
    return out
