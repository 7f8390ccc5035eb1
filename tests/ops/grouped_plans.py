"""What the experts' products would launch, for the tests that ask."""

from __future__ import annotations

from ernie_kernels import _core

STEP = {"bfloat16": 32, "int8": 64, "uint8": 128}


def plan(rows: int, experts: int, features: int, depth: int, **kwargs) -> dict:
    step = 32 if kwargs.get("x") == "float32" else STEP[kwargs.get("weight", "bfloat16")]
    kwargs.setdefault("inputs_aligned", depth % (step // 4) == 0)
    return _core.cuda_grouped_plan(rows, experts, features, depth, **kwargs)
