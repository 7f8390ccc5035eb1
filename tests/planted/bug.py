"""A bug that run.py plants, and the tests of each subject."""

from __future__ import annotations

from dataclasses import dataclass

NORM = ["tests/ops/test_norm.py"]
GEMM = ["tests/ops/test_gemm.py"]
ATTENTION = ["tests/ops/test_attention.py"]
VARLEN_ATTENTION = ["tests/ops/test_varlen_attention.py"]
KV_CACHE = ["tests/ops/test_kv_cache.py"]
EMBEDDING = ["tests/ops/test_embedding.py"]
WINT8 = ["tests/ops/test_wint8.py"]
WINT4 = ["tests/ops/test_wint4.py"]
EXPERTS = ["tests/ops/test_grouped_gemm.py"]
FUSED_MOE = ["tests/ops/test_fused_moe.py", "tests/ops/test_expert_banks.py"]
ACTIVATION = ["tests/ops/test_activation.py"]
ROPE = ["tests/ops/test_rope.py"]
SAMPLING = ["tests/ops/test_sampling.py"]
MOE = ["tests/ops/test_moe.py", "tests/ops/test_moe_route.py", "tests/ops/test_moe_route_banks.py"]
VISION = ["tests/ops/test_vision.py", "tests/ops/test_vision_rows.py"]
TENSOR = ["tests/test_tensor.py"]
ARGUMENT_ERRORS = ["tests/ops/test_argument_errors.py"]
PARALLEL = ["tests/test_parallel.py"]
CONFIG = ["tests/models/test_config.py", "tests/models/test_moe_config.py"]
MEMORY_PLAN = ["tests/models/test_memory_plan.py"]
FIT = ["tests/cli/test_fit_command.py"]
FORWARD = ["tests/models/test_forward.py"]
BLOCK_MANAGER = ["tests/runner/test_block_manager.py"]
SCHEDULER = ["tests/runner/test_scheduler.py"]
LEFTOVERS = ["tests/runner/test_leftovers.py"]
THREADS = ["tests/runner/test_threads.py", "tests/runner/test_aborts.py"]
INTERRUPTS = ["tests/runner/test_interrupts.py"]
GENERATE = ["tests/test_generate.py"]
INVARIANCE = ["tests/runner/test_batch_invariance.py"]
GRID_LOOPS = ["tests/simt/test_grid_loops.py"]
CUDA_GEMM = [*GEMM, "tests/ops/test_gemm_cuda.py"]
CUDA_WINT8 = [*WINT8, "tests/ops/test_wint8_cuda.py"]
CUDA_WINT4 = [*WINT4, "tests/ops/test_wint4_cuda.py"]
CUDA_GROUPED = [
    "tests/ops/test_grouped_gemm_cuda.py",
    "tests/ops/test_fused_moe_cuda.py",
    "tests/ops/test_expert_banks.py",
]


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    old: str  # occurs exactly once in the file
    new: str
    tests: list[str]
    # Of a bug in a CUDA kernel: which checks of the SIMT machine may notice it (backends.py), and
    # the one file to compile again where `file` is a header of many, whose other users then go
    # without the bug.
    checks: tuple[str, ...] = ()
    unit: str = ""
