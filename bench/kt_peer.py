"""kt-kernel's experts as a peer: the CPU kernels of KTransformers, in bfloat16.

``pip install --no-deps kt-kernel``: the wheel asks for a torch of its own version, but its CPU kernels
run with any. On a CPU without AMX it multiplies with AVX-512, where there is a bfloat16 dot product.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_TOKENS = 512


def has_kt_kernel() -> bool:
    if importlib.util.find_spec("kt_kernel") is None or importlib.util.find_spec("torch") is None:
        return False
    from kt_kernel import kt_kernel_ext

    return hasattr(kt_kernel_ext.moe, "AMXBF16_MOE")


class KtExperts:
    """A layer's experts; of ``Weights`` of expert_layers.py."""

    def __init__(self, weights: Any, threads: int) -> None:
        from kt_kernel import kt_kernel_ext

        shape = weights.shape
        pool = kt_kernel_ext.WorkerPoolConfig()
        pool.subpool_count = 1
        pool.subpool_numa_map = [0]
        pool.subpool_thread_count = [threads]
        self._cpu = kt_kernel_ext.CPUInfer(pool)
        self._on_gpu = np.zeros(shape.num_experts, np.uint8)
        config = kt_kernel_ext.moe.MOEConfig(
            shape.num_experts,
            shape.top_k,
            shape.hidden_size,
            shape.intermediate_size,
            self._on_gpu.ctypes.data,
        )
        config.layer_idx = 0
        config.pool = self._cpu.backend_
        config.max_len = MAX_TOKENS
        gate, up = (np.ascontiguousarray(half) for half in np.split(weights.gate_up, 2))
        for name, matrix in (("gate", gate), ("up", up), ("down", weights.down)):
            setattr(config, f"{name}_projs", [[matrix.ctypes.data] * shape.num_experts])
            setattr(config, f"{name}_scales", [[0] * shape.num_experts])
        self._moe = kt_kernel_ext.moe.AMXBF16_MOE(config)
        order = np.arange(shape.num_experts, dtype=np.int64)
        self._run(self._moe.load_weights_task(order.ctypes.data))  # copies, in its own order

    def _run(self, task: Any) -> None:
        self._cpu.submit(task)
        self._cpu.sync()

    def step(self, step: Any) -> Callable[[], np.ndarray]:
        """Runs it for the rows of a ``Step``, with the next of its choices at each call."""
        num_tokens, top_k = step.weights.shape
        count = np.array([num_tokens], np.int32)
        all_ids = [np.ascontiguousarray(ids, np.int64) for ids in step.ids]
        x = np.ascontiguousarray(step.x)
        out = np.empty_like(x)
        state = [0]

        def run() -> np.ndarray:
            state[0] = (state[0] + 1) % len(all_ids)
            self._run(
                self._moe.forward_task(
                    count.ctypes.data,
                    top_k,
                    all_ids[state[0]].ctypes.data,
                    step.weights.ctypes.data,
                    x.ctypes.data,
                    out.ctypes.data,
                    False,
                )
            )
            return out

        return run
