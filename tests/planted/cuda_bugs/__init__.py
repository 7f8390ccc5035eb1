"""Plausible slips in the CUDA kernels, each with the checks of the SIMT machine that may notice it.

"wrong result" is a comparison of the test's own. Where two checks are named, the schedule decides
which of them comes first.
"""

from __future__ import annotations

from . import (
    attention,
    elementwise,
    experts,
    gemm,
    graphs,
    moe,
    norm,
    sampling,
    vision,
    vl_model,
    wint4,
    wint8,
)

# In the order of CAUGHT.md.
FAMILIES = (
    norm,
    elementwise,
    sampling,
    attention,
    gemm,
    wint8,
    wint4,
    graphs,
    moe,
    experts,
    vision,
    vl_model,
)
CUDA_BUGS = [bug for family in FAMILIES for bug in family.BUGS]
