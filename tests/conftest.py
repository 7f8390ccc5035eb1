from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def _missing(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skips = []
    if ek.device_count() == 0:
        skips.append(("cuda", pytest.mark.skip(reason="no CUDA backend or no GPU")))
    if any("oracle" in item.keywords for item in items) and (
        _missing("torch") or _missing("transformers")
    ):
        skips.append(("oracle", pytest.mark.skip(reason="torch and transformers not installed")))
    for item in items:
        for keyword, mark in skips:
            if keyword in item.keywords:
                item.add_marker(mark)


def pytest_report_header() -> str:
    return (
        f"ernie_kernels {ek.__version__}: tier={ek.cpu_tier()} threads={ek.num_threads()} "
        f"cuda={ek.has_cuda()} gpus={ek.device_count()}"
    )


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every op test runs on each device; the CUDA half is skipped without a GPU."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)
