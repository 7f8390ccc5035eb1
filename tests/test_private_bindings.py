"""No number ends the process: zero, negative or huge, the compiled module answers or raises."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import _core

# What a plan divides by, what wraps in 32 and in 64 bits, and what no C++ integer holds.
EXTREMES = [0, -1, 1, 2, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**64, 1 << 200]
NUMBERS = st.sampled_from(EXTREMES) | st.integers(-(2**64), 2**64)


def zeros(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def attention_arguments() -> dict[str, Any]:
    return {
        "out": zeros(4, 2, 8),
        "query": zeros(4, 2, 8),
        "k_cache": zeros(3, 1, 16, 8),
        "v_cache": zeros(3, 1, 16, 8),
        "cu_seqlens_q": np.array([0, 3, 4], np.int32),
        "seq_lens": np.array([3, 9], np.int32),
        "block_table": np.array([[1], [0]], np.int32),
        "max_seqlen_q": 3,
        "max_seq_len": 9,
        "scale": 1.0,
        "causal": True,
        "workspace": zeros(0, dtype=np.uint8),
    }


def attention_workspace_arguments() -> dict[str, Any]:
    names = ("out", "query", "k_cache", "seq_lens", "max_seqlen_q", "max_seq_len")
    return {name: attention_arguments()[name] for name in names}


def attention_workspace_size_arguments() -> dict[str, Any]:
    arguments = attention_workspace_arguments()
    del arguments["out"]
    return arguments


def varlen_attention_arguments() -> dict[str, Any]:
    return {
        "out": zeros(5, 4, 8),
        "query": zeros(5, 4, 8),
        "key": zeros(5, 2, 8),
        "value": zeros(5, 2, 8),
        "cu_seqlens": np.array([0, 3, 3, 5], np.int32),
        "max_seqlen": 3,
        "scale": 1.0,
    }


def sample_arguments() -> dict[str, Any]:
    return {
        "out": zeros(2, dtype=np.int64),
        "logits": zeros(2, 8),
        "temperature": zeros(2),
        "top_k": zeros(2, dtype=np.int32),
        "top_p": np.ones(2, np.float32),
        "min_p": zeros(2),
        "seed": zeros(2, dtype=np.int64),
        "position": zeros(2, dtype=np.int64),
        "vocab_limit": 8,
    }


def moe_sort_arguments() -> dict[str, Any]:
    return {
        "expert_offsets": zeros(5, dtype=np.int64),
        "inverse": zeros(3, 2, dtype=np.int32),
        "topk_ids": np.array([[0, 3], [3, 1], [1, 0]], np.int32),
        "num_experts": 4,
    }


def moe_route_arguments() -> dict[str, Any]:
    return {
        "topk_weights": zeros(3, 2),
        "topk_ids": zeros(3, 2, dtype=np.int32),
        "flags": zeros(3, dtype=np.uint8),
        "router_logits": zeros(3, 8),
        "correction_bias": zeros(8),
        "banks": np.array([0, 1, 0], np.uint8),
        "num_banks": 2,
        "top_k": 2,
        "norm_min": 1e-12,
    }


def grouped_linear_arguments() -> dict[str, Any]:
    return {
        "out": zeros(5, 10),
        "x": zeros(3, 8),
        "weight": zeros(4, 10, 8),
        "scale": None,
        "out_features": 10,
        "in_features": 8,
        "expert_offsets": np.array([0, 2, 2, 2, 5], np.int64),
        "source_rows": np.array([0, 2, 1, 1, 0], np.int32),
        "int8_activations": False,
        "workspace": None,
    }


def fused_moe_arguments() -> dict[str, Any]:
    return {
        "out": zeros(3, 8),
        "hidden_states": zeros(3, 8),
        "topk_weights": zeros(3, 2),
        "topk_ids": np.array([[0, 3], [3, 1], [1, 0]], np.int32),
        "w_gate_up": [[zeros(3, 10, 8), None, 10, 8], [zeros(1, 6, 8), None, 6, 8]],
        "w_down": [[zeros(3, 8, 5), None, 8, 5], [zeros(1, 8, 3), None, 8, 3]],
        "shared": None,
        "workspace": zeros(8192, dtype=np.uint8),
        "int8_activations": False,
    }


GRID = np.array([[1, 2, 4]])


def patches_arguments() -> dict[str, Any]:
    return {
        "pixels": zeros(8 * 27, dtype=np.uint8),
        "grid_thw": GRID,
        "patch_size": 3,
        "merge_size": 2,
    }


POSITIONS = np.arange(3)
# One good call of every function that takes a number; the numbers in it are then replaced.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "add_layer_norm": lambda: {
        "out": zeros(3, 8), "residual": zeros(3, 8), "x": zeros(3, 8), "weight": zeros(8),
        "bias": zeros(8), "eps": 1e-6,
    },
    "add_rms_norm": lambda: {
        "out": zeros(3, 8), "residual": zeros(3, 8), "x": zeros(3, 8), "weight": zeros(8),
        "eps": 1e-5,
    },
    "attention": attention_arguments,
    "attention_key_limit": lambda: {"seq_len": 10, "num_queries": 4, "i": 1, "causal": True},
    "attention_splits": lambda: {"seq_len": 900, "num_splits": 3, "fixed": 512, "minimum": 256},
    "attention_workspace": attention_workspace_arguments,
    "attention_workspace_size": attention_workspace_size_arguments,
    "cuda_attention_plan": lambda: {
        "bfloat16": True, "num_tokens": 8, "num_heads": 16, "num_kv_heads": 2, "head_dim": 128,
        "num_seqs": 8, "max_seqlen_q": 1, "max_seq_len": 4096, "batch_invariant": False,
    },
    "cuda_varlen_attention_plan": lambda: {
        "bfloat16": True, "num_tokens": 1024, "num_heads": 16, "num_kv_heads": 16, "head_dim": 80,
        "num_segments": 1, "max_seqlen": 1024,
    },
    "cuda_gemm_plan": lambda: {
        "num_tokens": 64, "out_features": 2048, "in_features": 1024, "capability": 90,
        "sm_count": 132,
    },
    "cuda_grouped_plan": lambda: {
        "num_rows": 2048, "num_experts": 8, "out_features": 2048, "in_features": 1024,
        "workspace_bytes": 1 << 40, "capability": 90, "sm_count": 132,
    },
    "cuda_grouped_row_tile": lambda: {
        "begin": 3, "end": 40, "num_rows": 64, "tile_rows": 8, "index": 4,
    },
    "cuda_grouped_source_row": lambda: {"row": 5, "count": 9},
    "cuda_grouped_weight_row": lambda: {
        "first_output": 32, "local": 17, "gated": True, "outputs": 100,
    },
    "cuda_wint_plan": lambda: {
        "num_tokens": 64, "out_features": 2048, "in_features": 1024, "capability": 90,
        "sm_count": 132,
    },
    "embedding": lambda: {
        "out": zeros(3, 8), "input_ids": POSITIONS, "weight": zeros(5, 8), "scale": None,
        "vocab_size": 5,
    },
    "embedding_out": lambda: {
        "input_ids": POSITIONS, "weight": zeros(5, 8), "hidden_size": 8, "dtype": None,
    },
    "empty": lambda: {"shape": [3, 8], "dtype": "float32"},
    "empty_pinned": lambda: {"shape": [3, 8], "dtype": "float32", "device": "cpu"},
    "expert_weights_out": lambda: {
        "num_experts": 2, "out_features": 5, "in_features": 8, "dtype": "uint8", "pack": True,
        "device": "cpu",
    },
    "fused_moe": fused_moe_arguments,
    "fused_moe_workspace": lambda: {
        "hidden_states": zeros(3, 8), "topk_ids": zeros(3, 2, dtype=np.int32),
        "w_gate_up": [[zeros(4, 10, 8), None, 10, 8]], "w_down": [[zeros(4, 8, 5), None, 8, 5]],
    },
    "fused_moe_workspace_size": lambda: {
        "device": "cpu", "dtype": "bfloat16", "weight_dtype": ["uint8", "int8"], "num_tokens": 3,
        "top_k": 2, "num_experts": [4, 2], "hidden_size": 8, "intermediate_size": [5, 3],
    },
    "grouped_linear": grouped_linear_arguments,
    "grouped_linear_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(4, 10, 8), "source_rows": None, "out_features": 10,
    },
    "grouped_linear_silu_and_mul": lambda: grouped_linear_arguments() | {
        "out": zeros(5, 5),
    },
    "grouped_linear_silu_and_mul_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(4, 10, 8), "source_rows": None, "out_features": 10,
    },
    "image_patches": lambda: patches_arguments() | {
        "out": zeros(8, 27), "levels": zeros(3, 256),
    },
    "image_patches_out": lambda: patches_arguments() | {"dtype": "float32"},
    "kv_cache_offset": lambda: {
        "block": 3, "kv_head": 1, "row": 5, "num_blocks": 4, "num_kv_heads": 2, "block_size": 16,
        "head_dim": 8,
    },
    "layer_norm": lambda: {
        "out": zeros(3, 8), "x": zeros(3, 8), "weight": zeros(8), "bias": zeros(8), "eps": 1e-6,
    },
    "linear_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(5, 8), "out_features": 5, "dtype": None,
    },
    "linear_silu_and_mul_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(10, 8), "out_features": 10,
    },
    "measure_read_bandwidth": lambda: {"nbytes": 1 << 20},
    "moe_dispatch": lambda: moe_sort_arguments() | {
        "permuted": zeros(6, 8), "hidden_states": zeros(3, 8),
    },
    "moe_route": moe_route_arguments,
    "moe_route_out": lambda: {"router_logits": zeros(3, 8), "top_k": 2},
    "moe_sort": lambda: moe_sort_arguments() | {"source_rows": zeros(6, dtype=np.int32)},
    "moe_sort_out": lambda: {
        "topk_ids": zeros(3, 2, dtype=np.int32), "num_experts": 4, "op": "moe_sort",
    },
    "merged_source": lambda: {
        "first": 2, "first_source": 5, "frames": 4, "frame_rows": 6, "row": 9, "part": 1,
        "temporal_size": 2,
    },
    "mrope_table": lambda: {
        "out": zeros(3, 8), "positions": np.array([POSITIONS] * 3), "head_dim": 8,
        "theta": 10000.0, "freq_allocation": 2,
    },
    "mrope_table_out": lambda: {"positions": np.array([POSITIONS] * 3), "head_dim": 8},
    "patch_embed": lambda: patches_arguments() | {
        "out": zeros(8, 5), "weight": zeros(5, 27), "levels": zeros(3, 256), "patches": None,
    },
    "patch_embed_out": lambda: patches_arguments() | {
        "weight": zeros(5, 27), "embed_dim": 5, "dtype": None,
    },
    "patch_place": lambda: {
        "first": 4, "rows": 4, "columns": 6, "patch": 11, "patch_size": 14, "merge_size": 2,
    },
    "philox": lambda: {"counter": [1, 2, 3, 4], "key": [5, 6]},
    "rms_norm": lambda: {"out": zeros(3, 8), "x": zeros(3, 8), "weight": zeros(8), "eps": 1e-5},
    "rope_2d_table": lambda: {
        "out": zeros(3, 8), "positions": np.array([POSITIONS] * 2), "head_dim": 8,
        "theta": 10000.0,
    },
    "rope_2d_table_out": lambda: {"positions": np.array([POSITIONS] * 2), "head_dim": 8},
    "rope_table": lambda: {
        "out": zeros(3, 8), "positions": POSITIONS, "head_dim": 8, "theta": 10000.0,
    },
    "rope_table_out": lambda: {"positions": POSITIONS, "head_dim": 8},
    "sample": sample_arguments,
    "varlen_attention": varlen_attention_arguments,
    "set_num_threads": lambda: {"n": 1},
    "temporal_merge": lambda: {
        "out": zeros(2, 16), "x": zeros(2, 8), "grid_thw": GRID, "merge_size": 2,
        "temporal_size": 2,
    },
    "temporal_merge_out": lambda: {
        "x": zeros(2, 8), "grid_thw": GRID, "merge_size": 2, "temporal_size": 2,
    },
    "wint4_linear_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(5, 4, dtype=np.uint8), "out_features": 5, "dtype": None,
    },
    "wint4_linear_silu_and_mul_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(10, 4, dtype=np.uint8), "out_features": 10,
    },
    "wint4_pack_out": lambda: {"weight": zeros(5, 4, dtype=np.uint8), "in_features": 7},
    "wint8_linear_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(5, 8, dtype=np.int8), "out_features": 5, "dtype": None,
    },
    "wint8_linear_silu_and_mul_out": lambda: {
        "x": zeros(3, 8), "weight": zeros(10, 8, dtype=np.int8), "out_features": 10,
    },
}  # fmt: skip


def replaced(data: st.DataObject, value: Any) -> Any:
    if isinstance(value, list):
        return [replaced(data, each) for each in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return data.draw(NUMBERS) if is_number and data.draw(st.booleans()) else value


@pytest.fixture(autouse=True)
def _threads():
    before = ek.num_threads()
    yield
    ek.set_num_threads(before)


def test_every_function_that_takes_a_number_is_here():
    number = re.compile(r"\w+: [^,)]*\b(?:SupportsInt|SupportsFloat|int|float)\b")
    taking = set()
    for name in dir(_core):
        function = getattr(_core, name)
        if callable(function) and not isinstance(function, type):
            arguments = function.__doc__.splitlines()[0].partition(" -> ")[0]
            taking |= {name} if number.search(arguments) else set()
    assert taking <= set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_good_numbers_pass(name):
    getattr(_core, name)(**CALLS[name]())


@pytest.mark.parametrize(
    ("name", "argument", "at"),
    [
        (name, argument, at)
        for name, arguments in CALLS.items()
        for argument, good in arguments().items()
        if isinstance(good, int | float | list) and not isinstance(good, bool)
        for at in (range(len(good)) if isinstance(good, list) else (None,))
    ],
)
def test_one_extreme_number(name, argument, at):
    for number in EXTREMES:
        arguments = CALLS[name]()
        if at is None:
            arguments[argument] = number
        else:
            arguments[argument][at] = number
        answers(getattr(_core, name), **arguments)


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_numbers(name, data):
    arguments = {key: replaced(data, value) for key, value in CALLS[name]().items()}
    answers(getattr(_core, name), **arguments)


def answers(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with contextlib.suppress(ek.Error, TypeError):
        function(*args, **kwargs)


@settings(deadline=None, max_examples=200)
@given(numbers=st.lists(NUMBERS, max_size=8))
def test_any_shape_and_index_of_a_tensor(numbers):
    tensor = ek.from_numpy(zeros(2, 3))
    answers(tensor.reshape, *numbers)
    answers(tensor.__dlpack__, stream=(numbers or [0])[0])
    answers(tensor.__dlpack__, max_version=tuple(numbers or [1]))
    for index in (tuple(numbers), *(slice(a, b) for a in numbers for b in numbers)):
        with contextlib.suppress(IndexError):
            tensor[index]


@settings(deadline=None, max_examples=200)
@given(limits=st.lists(NUMBERS, min_size=3, max_size=3), offset=NUMBERS)
def test_any_limits_and_offset_of_a_file(tmp_path_factory, limits, offset):
    path = tmp_path_factory.getbasetemp() / "two.safetensors"
    safetensors_bytes.save(path, {"a": zeros(2, 3), "b": zeros(1)})
    names = ("max_header_bytes", "max_tensors", "max_name_bytes")
    answers(_core.SafetensorsFile, bytes(path), **dict(zip(names, limits, strict=True)))
    file = _core.SafetensorsFile(bytes(path))
    answers(file.read_into, "a", zeros(2), offset=offset)
