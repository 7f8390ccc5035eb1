from __future__ import annotations

import os
import zlib

import numpy as np
import pytest

from simt import control

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--simt",
        action="store_true",
        help="device cuda is the SIMT machine of build/simt/simt, or of ERNIE_SIMT_MODULE",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--simt"):
        control.load()


def _missing(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import ernie_kernels as ek  # not before --simt is read

    skips = []
    if ek.device_count() == 0:
        skips.append(("cuda", pytest.mark.skip(reason="no CUDA backend or no GPU")))
    if control.is_loaded():
        skips.append(("hardware", pytest.mark.skip(reason="not on the SIMT machine")))
    else:
        skips.append(("simt", pytest.mark.skip(reason="needs --simt")))
    if any("oracle" in item.keywords for item in items) and (
        _missing("torch") or _missing("transformers")
    ):
        skips.append(("oracle", pytest.mark.skip(reason="torch and transformers not installed")))
    for item in items:
        for keyword, mark in skips:
            if item.get_closest_marker(keyword) is not None:
                item.add_marker(mark)


def pytest_report_header() -> str:
    import ernie_kernels as ek

    gpu = f"gpus={ek.device_count()}"
    if control.is_loaded():
        gpu = (
            f"cuda is the SIMT machine: seed={control.seed()} "
            f"checks={'on' if control.has_checks() else 'off'}"
        )
    return (
        f"ernie_kernels {ek.__version__}: tier={ek.cpu_tier()} threads={ek.num_threads()} "
        f"cuda={ek.has_cuda()} {gpu}"
    )


_SEED = int(os.environ.get("ERNIE_SIMT_SEED", "1"))


@pytest.fixture(autouse=True)
def _simt_seed(request: pytest.FixtureRequest) -> None:
    """Each test begins from a seed of its own name: alone or among others, the same schedule."""
    if control.is_loaded():
        control.set_seed(_SEED << 32 | zlib.crc32(request.node.nodeid.encode()))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    report = (yield).get_result()
    if report.failed and control.is_loaded():
        report.sections.append(("SIMT machine", f"repeat with ERNIE_SIMT_SEED={_SEED}"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every op test runs on each device; the CUDA half is skipped without a GPU."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)
