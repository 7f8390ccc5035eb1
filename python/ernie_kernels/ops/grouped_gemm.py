"""Linear layers of many experts on sorted rows. C++ contract: csrc/ops/grouped_gemm.h."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_kernels import _core
from ernie_kernels._core import Tensor
from ernie_kernels.errors import ArgumentError

STORED = {None: None, "wint8": "int8", "wint4": "uint8"}
"""Dtype in which a quantization keeps a weight; None: as it comes."""


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The matrices of all experts of a layer; made by :func:`expert_weights`.

    Attributes:
        weight: float32 or bfloat16 ``[E, N, K]``, int8 ``[E, N, K]``, or uint8 ``[E, N, ceil(K / 2)]``,
            two weights in a byte as of :func:`wint4_quantize`; or packed for the CPU, which is each
            expert's :class:`PackedWeight`, :class:`PackedWint8` or :class:`PackedWint4`, one after
            the other. Contiguous.
        num_experts: E, 1 to 4096.
        out_features: N.
        in_features: K.
        scale: float32 ``[E, N]`` of int8 and uint8 weights, else None.
    """

    weight: Tensor
    num_experts: int
    out_features: int
    in_features: int
    scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def is_packed(self) -> bool:
        return self.weight.ndim != 3


def expert_weights(
    num_experts: int,
    out_features: int,
    in_features: int,
    *,
    dtype: str,
    quantization: str | None = None,
    device: str = "cpu",
    pack: bool = True,
) -> ExpertWeights:
    """Room for the experts of a layer, all zero; :func:`expert_weights_set` fills it.

    Args:
        num_experts: E, 1 to 4096.
        out_features: N.
        in_features: K.
        dtype: ``"float32"`` or ``"bfloat16"``: of the matrices to come.
        quantization: None, ``"wint8"`` or ``"wint4"``: how they are kept.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        pack: on the CPU, in the order that its kernels read. Several times faster there.

    Raises:
        ArgumentError: a number below 0, an unknown name, no experts or more than 4096.
        DeviceError: no such GPU on this machine, or a build that cannot use it.
        OutOfMemoryError: not enough memory on the device.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ArgumentError(
            f"expert_weights: dtype: expected float32 or bfloat16, got {dtype!r:.128}"
        )
    if quantization not in STORED:
        raise ArgumentError(
            "expert_weights: quantization: expected None, wint8 or wint4, "
            f"got {quantization!r:.128}"
        )
    stored = STORED[quantization] or dtype
    pack = pack and device == "cpu"
    weight = _core.expert_weights_out(num_experts, out_features, in_features, stored, pack, device)
    scale = None
    if quantization is not None:
        scale = _core.empty((num_experts, out_features), "float32", device)
    experts = ExpertWeights(weight, num_experts, out_features, in_features, scale)
    for tensor in (experts.weight, experts.scale):
        if tensor is not None:
            _fill_with_zeros(tensor)
    return experts


def expert_weights_set(experts: ExpertWeights, index: int, matrix: Tensor) -> None:
    """Put one expert's matrix into its place: quantised, packed or as it is.

    Args:
        experts: of :func:`expert_weights`.
        index: of the expert, 0 to ``num_experts - 1``.
        matrix: ``[out_features, in_features]``, float32 or bfloat16, last stride 1, on the CPU; not
            quantised: of the dtype of ``experts``.

    Raises:
        ArgumentError: a shape, dtype, device, stride or number differs from the above.
        UnsupportedError: the matrix is not on the CPU.
    """
    shape, wanted = getattr(matrix, "shape", None), [experts.out_features, experts.in_features]
    if shape is None or list(shape) != wanted:
        got = type(matrix).__name__ if shape is None else f"shape {list(shape)}"
        raise ArgumentError(f"expert_weights_set: matrix: expected shape {wanted}, got {got}")
    made_of = ["float32", "bfloat16"] if experts.scale is not None else [experts.weight.dtype_name]
    dtype = str(getattr(matrix, "dtype", None)).removeprefix("torch.")
    if dtype not in made_of:
        expected = " or ".join(made_of)
        raise ArgumentError(f"expert_weights_set: matrix: expected {expected}, got {dtype:.128}")
    if not 0 <= index < experts.num_experts:
        most = experts.num_experts - 1
        raise ArgumentError(f"expert_weights_set: index: expected 0 to {most}, got {index}")
    weight = experts.weight[index]
    if experts.scale is not None:
        _quantize(weight, experts.scale[index], matrix)
    elif experts.is_packed:
        _core.linear_pack(weight, matrix)
    else:
        _copy(weight, matrix)


def _quantize(weight: Tensor, scale: Tensor, matrix: Tensor) -> None:
    quantize = _core.wint8_quantize if weight.dtype_name == "int8" else _core.wint4_quantize
    if weight.device == "cpu":
        quantize(weight, scale, matrix)
        return
    host_weight, host_scale = (_core.empty(to.shape, to.dtype) for to in (weight, scale))
    quantize(host_weight, host_scale, matrix)
    _copy(weight, host_weight)
    _copy(scale, host_scale)


def _copy(to: Tensor, array: Tensor) -> None:
    """Of any strides, from the host to any device."""
    _core.queue_copy(to, _core.from_numpy(array, to.device))


def _fill_with_zeros(tensor: Tensor) -> None:
    """Expert after expert, so that the host holds one at most beside what is on a device."""
    import numpy as np  # not at the top, as in sampling.py

    if tensor.device == "cpu":
        tensor.numpy().view(f"V{tensor.dtype.itemsize}")[...] = np.void(b"\0")
        return
    zeros = _core.from_numpy(np.zeros(tensor.shape[1:], tensor.dtype), tensor.device)
    for e in range(len(tensor)):
        _core.queue_copy(tensor[e], zeros)


def grouped_linear(
    x: Tensor,
    weight: Tensor | ExpertWeights,
    expert_offsets: Tensor,
    *,
    source_rows: Tensor | None = None,
    int8_activations: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """``out[i] = linear(x[i], weight[e])``, ``e`` being the expert whose rows hold ``i``.

    :func:`linear`, :func:`wint8_linear` or :func:`wint4_linear`, as the weight is kept. On the CPU
    each row is, bit for bit, what that op makes of it alone: it depends neither on the other rows
    and experts nor on the number of threads. Packed and plain weights give the same bits.

    Args:
        x: ``[num_rows, in_features]``, sorted by expert, or with ``source_rows`` ``[num_tokens,
            in_features]``; float32 or bfloat16, last stride 1.
        weight: an :class:`ExpertWeights`, packed ones on the CPU only; or float32 or bfloat16
            ``[num_experts, out_features, in_features]``, contiguous. A float32 weight wants a
            float32 ``x``.
        expert_offsets: ``[num_experts + 1]``, int64, contiguous, ascending from 0 to ``num_rows``:
            expert ``e`` has the rows from ``expert_offsets[e]`` up to ``expert_offsets[e + 1]``, as
            :func:`moe_sort` gives them.
        source_rows: ``[num_rows]``, int32, contiguous: row ``i`` is ``x[source_rows[i]]``.
        int8_activations: as of :func:`wint8_linear`; int8 weights on the CPU only.
        out: where to write, ``[num_rows, out_features]``, dtype of ``x``, last stride 1. Allocated
            when omitted, and a workspace with it.
        workspace: uint8, contiguous, at a multiple of 16 bytes: lets CUDA choose among more kernels
            for many rows of bfloat16 weights. Nothing else needs one.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU, an
            offset or a source row does. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: no kernel for the tensors' device.

    Source: y = x Wᵀ, expert by expert.
    """
    experts = _as_experts("grouped_linear", weight)
    if out is None:
        out = _core.grouped_linear_out(x, experts.weight, source_rows, experts.out_features)
        if workspace is None:
            workspace = _core.grouped_linear_workspace(
                out, x, experts.weight, False, source_rows is not None
            )
    _core.grouped_linear(
        out,
        x,
        experts.weight,
        experts.scale,
        experts.out_features,
        experts.in_features,
        expert_offsets,
        source_rows,
        int8_activations,
        workspace,
    )
    return out


def grouped_linear_silu_and_mul(
    x: Tensor,
    weight: Tensor | ExpertWeights,
    expert_offsets: Tensor,
    *,
    source_rows: Tensor | None = None,
    int8_activations: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
) -> Tensor:
    """``silu_and_mul(grouped_linear(x, weight, expert_offsets))``: the first half of the experts.

    On the CPU bit for bit, and the projections never leave the cache.

    Args:
        x: as of :func:`grouped_linear`.
        weight: as of :func:`grouped_linear`, with ``2 * intermediate_size`` rows, gate first, then
            up.
        expert_offsets: as of :func:`grouped_linear`.
        source_rows: as of :func:`grouped_linear`.
        int8_activations: as of :func:`grouped_linear`.
        out: where to write, ``[num_rows, intermediate_size]``, dtype of ``x``, last stride 1.
            Allocated when omitted.
        workspace: as of :func:`grouped_linear`.

    Returns:
        ``out``.

    Raises:
        ArgumentError: a shape, dtype, device or stride differs from the above, or, on the CPU, an
            offset or a source row does. Nothing is written then.
        DeviceError: a tensor is on a GPU that this build cannot use.
        UnsupportedError: no kernel for the tensors' device.

    Source: Shazeer 2020, arXiv:2002.05202.
    """
    experts = _as_experts("grouped_linear_silu_and_mul", weight)
    if out is None:
        out = _core.grouped_linear_silu_and_mul_out(
            x, experts.weight, source_rows, experts.out_features
        )
        if workspace is None:
            workspace = _core.grouped_linear_workspace(
                out, x, experts.weight, True, source_rows is not None
            )
    _core.grouped_linear_silu_and_mul(
        out,
        x,
        experts.weight,
        experts.scale,
        experts.out_features,
        experts.in_features,
        expert_offsets,
        source_rows,
        int8_activations,
        workspace,
    )
    return out


def as_experts(
    op: str, name: str, weight: Tensor | ExpertWeights, *, entry_of: str = ""
) -> ExpertWeights:
    """What a plain tensor of matrices says of itself."""
    if isinstance(weight, ExpertWeights):
        return weight
    shape = getattr(weight, "shape", None)
    if shape is None:
        got = entry_of + type(weight).__name__
        raise TypeError(f"{op}: {name}: expected a tensor or ExpertWeights, got {got}")
    if len(shape) != 3:
        expected = "[num_experts, out_features, in_features]"
        raise ArgumentError(f"{op}: {name}: expected shape {expected}, got {list(shape)}")
    return ExpertWeights(weight, *(int(extent) for extent in shape))


def _as_experts(op: str, weight: Tensor | ExpertWeights) -> ExpertWeights:
    return as_experts(op, "weight", weight)
