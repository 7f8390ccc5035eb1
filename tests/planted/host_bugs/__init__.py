"""Plausible slips in the C++ and the Python, each of which some test must notice."""

from __future__ import annotations

from . import (
    attention,
    config,
    core,
    elementwise,
    engine,
    experts,
    gemm,
    media,
    moe,
    moe_model,
    mtp,
    norm,
    sampling,
    scheduler,
    vision,
    vl_model,
    wint8,
)

FAMILIES = (
    norm,
    elementwise,
    gemm,
    wint8,
    experts,
    moe,
    attention,
    sampling,
    vision,
    core,
    scheduler,
    engine,
    moe_model,
    vl_model,
    mtp,
    media,
    config,
)
HOST_BUGS = [bug for family in FAMILIES for bug in family.BUGS]
