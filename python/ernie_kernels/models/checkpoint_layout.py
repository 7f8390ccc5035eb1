"""How a checkpoint file stores what a model asks for by its Hugging Face name.

Hugging Face files hold each tensor under its own name, matrices as ``[out, in]``. Paddle files
prefix names with ``ernie.``, store every linear layer transposed (``[in, out]``), and fuse
query/key/value (columns all-q, all-k, all-v) and gate/up (gate columns first, though the name is
``up_gate_proj``). The embedding and the norms are the same in both.

Experts have names with their number in both. A model of transformers 5 in memory has them in one
tensor, ``[num_experts, out, in]``, gate rows first; a file that was saved so is read as well.

A vision tower is ``vision_model.*`` in Baidu's files of both layouts, ``model.vision_model.*`` in those
that transformers saves. Vision-language models store their routers transposed in both layouts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint_file import quoted
from ..errors import WeightError

HUGGINGFACE = "huggingface"
PADDLE = "paddle"

# The dtypes that weights may have in a file, and what they mean. Paddle has no bfloat16 of its own
# on the numpy side and may store the words as U16.
WEIGHT_DTYPES = {
    HUGGINGFACE: {"F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    PADDLE: {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U16": "bfloat16"},
}

# member -> (fused tensor, its place among the members)
_PADDLE_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("up_gate_proj", 0),
    "up_proj": ("up_gate_proj", 1),
}
_LINEAR = re.compile(
    r"(?:^|\.)(?:(?P<member>\w+_proj)(?:\.\d+)?|lm_head|mlp\.gate)\.(?P<kind>weight|weight_1|bias)$"
)
_VISION_TOWER = "vision_model."
_VISION_MATRIX = re.compile(
    r"^vision_model\.(?:patch_embed\.proj|blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.fc[12]))\.weight$"
    r"|\.resampler_model\.(?:(?:spatial|temporal)_linear\.[02]|mlp)\.weight$"
)

_EXPERT = re.compile(r"\.experts\.(?P<index>\d+)\.(?P<member>gate|up|down)_proj\.weight$")
# member -> (tensor of all experts, members of an expert in it, its place among them)
_STACKED = {
    "gate": ("gate_up_proj", 2, 0),
    "up": ("gate_up_proj", 2, 1),
    "down": ("down_proj", 1, 0),
}
_CORRECTION_BIAS = ".moe_statics.e_score_correction_bias"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's tensor is stored: all of ``name``, or a part of its output features."""

    name: str
    transposed: bool = False  # stored as [in, out]
    place: int = 0  # among the members of a fused tensor
    per_expert: int = 0  # members that each expert has in a tensor [num_experts, out, in]; 0: none


def detect_layout(names: Iterable[str]) -> str:
    """``"huggingface"`` or ``"paddle"``, by the names of the stored tensors."""
    names = list(names)
    paddle = next((name for name in names if name.startswith("ernie.")), None)
    huggingface = next((name for name in names if name.startswith("model.")), None)
    if paddle and huggingface:
        raise WeightError(
            f"the checkpoint mixes two layouts: {quoted(huggingface)} is a Hugging Face name, "
            f"{quoted(paddle)} a Paddle name"
        )
    if not paddle and not huggingface:
        first = f", the first is {quoted(names[0])}" if names else ""
        raise WeightError(
            f"none of the {len(names)} tensors is named model.* (Hugging Face) or ernie.* (Paddle)"
            f"{first}; is this an ERNIE-4.5 checkpoint?"
        )
    return PADDLE if paddle else HUGGINGFACE


def sources_of(name: str, layout: str) -> tuple[Source, ...]:
    """Where ``layout`` may store the tensor that Hugging Face calls ``name``; first where it should."""
    usual = source_of(name, layout)
    if layout != HUGGINGFACE:
        return (usual,)
    expert = _EXPERT.search(name)
    if expert is not None:
        stacked, members, place = _STACKED[expert["member"]]
        stored = f"{name[: expert.start()]}.experts.{stacked}"
        return usual, Source(stored, False, int(expert["index"]) * members + place, members)
    if name.startswith(_VISION_TOWER):
        return usual, Source(f"model.{name}")
    if name.endswith(_CORRECTION_BIAS):
        return usual, Source(f"{name.removesuffix(_CORRECTION_BIAS)}.gate{_CORRECTION_BIAS}")
    return (usual,)


def source_of(name: str, layout: str) -> Source:
    """Where ``layout`` stores the tensor that Hugging Face calls ``name``."""
    if layout == HUGGINGFACE:
        return Source(name)
    stored = re.sub(r"^model\.", "ernie.", name)
    if _VISION_MATRIX.search(stored):
        return Source(stored, transposed=True)
    linear = _LINEAR.search(stored)
    if linear is None or stored.startswith(_VISION_TOWER):
        return Source(stored)
    transposed = linear["kind"] != "bias"
    if linear["member"] not in _PADDLE_FUSED:
        return Source(stored, transposed)
    fused, place = _PADDLE_FUSED[linear["member"]]
    stored = f"{stored[: linear.start('member')]}{fused}.{linear['kind']}"
    return Source(stored, transposed, place)
