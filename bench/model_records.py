"""What ``bench_model.py`` keeps and prints of a case: times, rates, shares of the ceilings, ratios."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import ml_dtypes
import numpy as np

import ernie_kernels as ek
from ernie_kernels import _core, ops
from model_sizes import flops_of

from harness import Result, _cpu_name
from model_agreement import Agreement
from model_peers import Engine
from model_timing import ModelCase, Timings

PACKAGES = ["numpy", "torch", "transformers", "llama_cpp_python", "gguf"]


@dataclass
class ModelResult(Result):
    """One of our settings in one case; ``peers`` have the same figures and their ratios.

    Attributes:
        ours: ``"bfloat16"``, ``"wint8"``, ...
        of_matrix: ``gflops`` over those of a single large bfloat16 product in the same run.
        of_int8: over those of a single large product with int8 weights and activations.
        tokens_per_s: of the best time.
        samples: times behind ``best_us``, ``p25_us`` and ``median_us``.
        agreement: see :class:`~model_agreement.Agreement`.
    """

    ours: str
    median_us: float
    tokens_per_s: float
    of_matrix: float
    of_int8: float
    weight_bytes: int
    samples: int
    read_gbytes_per_s: float
    matrix_gflops: float
    int8_gops: float
    agreement: dict[str, Any]


class Ceilings:
    """The best rates seen so far with the threads of the case.

    Attributes:
        read_gbytes_per_s: of reading a large buffer front to back.
        matrix_gflops: of one large product of bfloat16 matrices, by our own kernel.
        int8_gops: of the same product by ours with int8 weights and activations.
    """

    TOKENS, OUT_FEATURES, IN_FEATURES = 512, 6144, 2048

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = self.OUT_FEATURES, self.IN_FEATURES
        x = rng.standard_normal((self.TOKENS, self.IN_FEATURES), np.float32)
        weight = rng.standard_normal(shape, np.float32)
        given = ek.from_numpy(x.astype(ml_dtypes.bfloat16))
        packed = ops.linear_pack(weight.astype(ml_dtypes.bfloat16))
        int8, scale = ops.wint8_quantize_and_pack(weight)
        self._product = lambda: ops.linear(given, packed)
        self._int8_product = lambda: ops.wint8_linear(given, int8, scale, int8_activations=True)
        self.read_gbytes_per_s = self.matrix_gflops = self.int8_gops = 0.0

    def measure(self) -> None:
        """Once a round of the case: what the memory of a shared machine gives changes by the minute."""
        nbytes = _core.measure_read_bandwidth(256 << 20)
        self.read_gbytes_per_s = max(self.read_gbytes_per_s, nbytes / 1e9)
        self.matrix_gflops = max(self.matrix_gflops, self._rate_of(self._product))
        self.int8_gops = max(self.int8_gops, self._rate_of(self._int8_product))

    def _rate_of(self, product: Callable[[], object]) -> float:
        begin = time.perf_counter()
        product()
        operations = 2 * self.TOKENS * self.OUT_FEATURES * self.IN_FEATURES
        return operations / (time.perf_counter() - begin) / 1e9


def versions() -> dict[str, str]:
    """Of what took part."""
    used = [package for package in PACKAGES if sys.modules.get(package.removesuffix("_python"))]
    return {"ernie_kernels": ek.__version__} | {each: metadata.version(each) for each in used}


def figures_of(
    engine: Engine, seconds: Sequence[float], tokens: int, flops: int, ceilings: Ceilings
) -> dict[str, Any]:
    """``seconds`` are sorted."""
    best, count = seconds[0], len(seconds)
    rate, gflops = engine.weight_bytes / best / 1e9, flops / best / 1e9
    return {
        "best_us": round(best * 1e6, 2),
        "p25_us": round(seconds[count // 4] * 1e6, 2),
        "median_us": round(seconds[count // 2] * 1e6, 2),
        "tokens_per_s": round(tokens / best, 1),
        "gbytes_per_s": round(rate, 2),
        "of_read": round(rate / ceilings.read_gbytes_per_s, 3),
        "gflops": round(gflops, 1),
        "of_matrix": round(gflops / ceilings.matrix_gflops, 3),
        "of_int8": round(gflops / ceilings.int8_gops, 3),
        "weight_bytes": engine.weight_bytes,
        "samples": count,
    }


def results_of(
    case: ModelCase,
    timings: Timings,
    *,
    config: Mapping[str, int],
    ceilings: Ceilings,
    agreements: Mapping[Engine, Agreement],
) -> list[ModelResult]:
    """One for each of our engines, with all the peers."""
    flops = flops_of(case, config)
    figures = {
        engine: figures_of(engine, seconds, case.tokens, flops, ceilings)
        | {"agreement": agreements[engine].as_json()}
        for engine, seconds in timings.seconds.items()
    }
    peers = {
        engine.name: row | engine.options
        for engine, row in figures.items()
        if not engine.name.startswith("ours ")
    }
    for engine, best in timings.trials.items():
        peers[engine.name]["slower_setting"] = engine.options | {"best_us": round(best * 1e6, 2)}
    return [
        ModelResult(
            op="model",
            case=case.name,
            device="cpu",
            isa=ek.cpu_tier(),
            threads=ek.num_threads(),
            peers={
                name: row
                | {
                    "ratio_best": round(row["best_us"] / mine["best_us"], 2),
                    "ratio_p25": round(row["p25_us"] / mine["p25_us"], 2),
                }
                for name, row in peers.items()
            },
            host=f"{platform.machine()}, {_cpu_name()}",
            versions=versions(),
            ours=engine.name.removeprefix("ours "),
            read_gbytes_per_s=round(ceilings.read_gbytes_per_s, 1),
            matrix_gflops=round(ceilings.matrix_gflops, 1),
            int8_gops=round(ceilings.int8_gops, 1),
            **mine,
        )
        for engine, mine in figures.items()
        if engine.name.startswith("ours ")
    ]


def show_case(results: Sequence[ModelResult]) -> None:
    """All engines of a case in one table; ratios to each of ours by best (and p25) times."""
    first = results[0]
    print(
        f"\n{first.case}, {first.threads} threads: memory reads {first.read_gbytes_per_s} GB/s, "
        f"a bfloat16 product runs at {first.matrix_gflops} GFLOP/s, an int8 one at {first.int8_gops}"
    )
    ratios = "".join(f"{'/ ' + result.ours:>15}" for result in results)
    print(
        f"{'':26}{'best ms':>9}{'p25':>9}{'median':>9}{'tokens/s':>10}{'GB/s':>7}{'of read':>9}"
        f"{'GFLOP/s':>9}{'of product':>12}{'of int8':>9}{ratios}"
    )
    for result in results:
        print(_line(f"ours {result.ours}", vars(result)))
    for name, figures in first.peers.items():
        against = [result.peers[name] for result in results]
        print(
            _line(name + " (flash)" * figures.get("flash_attention", False), figures)
            + "".join(f"{p['ratio_best']:8.2f} ({p['ratio_p25']:.2f})" for p in against),
            flush=True,
        )


def _line(name: str, figures: Mapping[str, Any]) -> str:
    times = "".join(f"{figures[key] / 1e3:9.2f}" for key in ("best_us", "p25_us", "median_us"))
    return (
        f"{name:26}{times}{figures['tokens_per_s']:10.1f}{figures['gbytes_per_s']:7.1f}"
        f"{figures['of_read']:9.0%}{figures['gflops']:9.0f}{figures['of_matrix']:12.0%}"
        f"{figures['of_int8']:9.0%}"
    )
