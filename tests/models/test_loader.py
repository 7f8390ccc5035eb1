"""What is loaded from a checkpoint: both layouts, fused matrices, dtypes; and in how much memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.errors import ArgumentError
from ernie_kernels.models import tensor_pieces
from ernie_kernels.models.loader import WeightSpec, open_checkpoint
from safetensors_bytes import BFLOAT16, save, save_sharded
from tiny_checkpoint import in_shards, to_paddle
from wanted_weights import HIDDEN, VOCAB, assert_loads, random_weights, specs


def test_single_file(tmp_path, rng):
    weights = random_weights(rng, specs())
    save(tmp_path / "model.safetensors", weights)
    assert_loads(tmp_path, weights)


def test_a_lone_file_of_another_name(tmp_path, rng):
    weights = random_weights(rng, specs())
    save(tmp_path / "ernie.safetensors", weights)
    assert_loads(tmp_path, weights)


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_sharded(tmp_path, rng, layout):
    weights = random_weights(rng, specs())
    stored = weights if layout == "huggingface" else to_paddle(weights)
    save_sharded(tmp_path, in_shards(stored))
    assert_loads(tmp_path, weights)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 64, 4 << 20])
def test_paddle_layout(tmp_path, rng, monkeypatch, use_bias, chunk_bytes):
    monkeypatch.setattr(tensor_pieces, "CHUNK_BYTES", chunk_bytes)
    wanted = specs(use_bias=use_bias, tied=False)
    weights = random_weights(rng, wanted)
    save(tmp_path / "model.safetensors", to_paddle(weights))
    assert_loads(tmp_path, weights, wanted)


def test_paddle_bfloat16_as_16_bit_words(tmp_path, rng):
    weights = random_weights(rng, specs())
    words = {name: array.view(np.uint16) for name, array in to_paddle(weights).items()}
    save(tmp_path / "model.safetensors", words)
    assert_loads(tmp_path, weights)
    assert open_checkpoint(tmp_path).dtype == "bfloat16"


def test_mixture_of_experts_names_in_the_paddle_layout(tmp_path, rng):
    shapes = {
        "model.layers.1.mlp.gate.weight": (4, HIDDEN),
        "model.layers.1.mlp.moe_statics.e_score_correction_bias": (1, 4),
        "model.layers.1.mlp.experts.3.gate_proj.weight": (5, HIDDEN),
        "model.layers.1.mlp.experts.3.up_proj.weight": (5, HIDDEN),
        "model.layers.1.mlp.experts.3.down_proj.weight": (HIDDEN, 5),
        "model.layers.1.mlp.shared_experts.gate_proj.weight": (7, HIDDEN),
        "model.layers.1.mlp.shared_experts.up_proj.weight": (7, HIDDEN),
    }
    wanted = {name: WeightSpec(shape) for name, shape in shapes.items()}
    weights = random_weights(rng, wanted, np.float32)
    stored = to_paddle(weights)
    assert stored["ernie.layers.1.mlp.gate.weight"].shape == (HIDDEN, 4)
    assert stored["ernie.layers.1.mlp.experts.3.up_gate_proj.weight"].shape == (HIDDEN, 10)
    save(tmp_path / "model.safetensors", stored)
    assert_loads(tmp_path, weights, wanted)


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
@pytest.mark.parametrize("chunk_bytes", [1, 50, 4 << 20])
@pytest.mark.parametrize("stored_dtype", [np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_matrices_are_read_into_one_destination(
    tmp_path, rng, monkeypatch, layout, chunk_bytes, stored_dtype, dtype
):
    monkeypatch.setattr(tensor_pieces, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(tensor_pieces, "STRIP_ROWS", 3)
    weights = random_weights(rng, specs(), stored_dtype)
    save(tmp_path / "model.safetensors", weights if layout == "huggingface" else to_paddle(weights))
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require(specs())
    layer = "model.layers.1."
    qkv = [f"{layer}self_attn.{m}_proj.weight" for m in "qkv"]
    gate_up = [f"{layer}mlp.{m}_proj.weight" for m in ("gate", "up")]
    for names in (qkv, gate_up, qkv[::-1], [qkv[0], qkv[2]]):
        expected = np.concatenate([weights[name] for name in names]).astype(dtype)
        destination = np.full_like(expected, np.nan)  # an element that is missed stays NaN
        checkpoint.read_into(destination, *names)
        np.testing.assert_array_equal(destination, expected)
        np.testing.assert_array_equal(checkpoint.tensor(*names, dtype=dtype), expected)


def test_a_tensor_of_ours_as_destination(tmp_path, rng):
    weights = random_weights(rng, specs())
    save(tmp_path / "model.safetensors", weights)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require(specs())
    destination = ek.empty((VOCAB, HIDDEN), "bfloat16")
    checkpoint.read_into(destination, "model.embed_tokens.weight")
    np.testing.assert_array_equal(destination.numpy(), weights["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: np.empty((VOCAB, HIDDEN + 1), np.float32),
            r"expected shape \[13, 6\].*got \[13, 7",
        ),
        (lambda: np.empty((HIDDEN, VOCAB), np.float32).T, r"C-contiguous"),
        (lambda: np.empty((VOCAB, HIDDEN), np.float64), r"got float64"),
        (lambda: np.broadcast_to(np.float32(0), (VOCAB, HIDDEN)), r"writable"),
    ],
)
def test_wrong_destinations(tmp_path, rng, make, match):
    save(tmp_path / "model.safetensors", random_weights(rng, specs()))
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require(specs())
    with pytest.raises(ArgumentError, match=match):
        checkpoint.read_into(make(), "model.embed_tokens.weight")


def test_only_required_names_of_equal_width_can_be_read(tmp_path, rng):
    save(tmp_path / "model.safetensors", random_weights(rng, specs()))
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(ArgumentError, match=r"'model.norm.weight': not among the required"):
        checkpoint.tensor("model.norm.weight", dtype="float32")
    checkpoint.require(specs())
    with pytest.raises(ArgumentError, match="equal width"):
        checkpoint.tensor("model.norm.weight", "model.embed_tokens.weight", dtype="float32")
    checkpoint.close()
    with pytest.raises(ArgumentError, match="not among the required"):
        checkpoint.tensor("model.norm.weight", dtype="float32")


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_output_head_of_its_own_or_the_embedding_once_more(tmp_path, rng, layout):
    wanted = specs(tied=False)
    weights = random_weights(rng, wanted)
    embedding = weights["model.embed_tokens.weight"]
    for head, same in ((weights["lm_head.weight"], False), (embedding, True)):
        stored = weights | {"lm_head.weight": head}
        save(
            tmp_path / "model.safetensors", stored if layout == "huggingface" else to_paddle(stored)
        )
        checkpoint = open_checkpoint(tmp_path)
        checkpoint.require(wanted, optional=("lm_head.weight",))
        assert "lm_head.weight" in checkpoint
        assert checkpoint.equals("lm_head.weight", embedding) is same
        assert not checkpoint.equals("lm_head.weight", embedding[1:])
    del stored["lm_head.weight"]
    save(tmp_path / "model.safetensors", stored if layout == "huggingface" else to_paddle(stored))
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.require(wanted, optional=("lm_head.weight",))
    assert "lm_head.weight" not in checkpoint


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_one_log_line_names_the_layout(tmp_path, rng, caplog, layout):
    weights = random_weights(rng, specs())
    folder = tmp_path / "tiny"
    folder.mkdir()
    save(folder / "model.safetensors", weights if layout == "huggingface" else to_paddle(weights))
    with caplog.at_level(logging.INFO, logger="ernie_kernels"):
        checkpoint = open_checkpoint(folder)
    tensors = len(weights) - (0 if layout == "huggingface" else 2 * 3)
    nbytes = sum(array.nbytes for array in weights.values())
    assert [record.message for record in caplog.records] == [
        f"'tiny': {layout} layout, 1 file, {tensors} tensors, {nbytes} bytes, bfloat16"
    ]
    assert checkpoint.layout == layout


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_progress_ends_at_all_bytes(tmp_path, rng, capsys, layout):
    weights = random_weights(rng, specs())
    save(tmp_path / "model.safetensors", weights if layout == "huggingface" else to_paddle(weights))
    with open_checkpoint(tmp_path, progress=True) as checkpoint:
        checkpoint.require(specs())
        for name in weights:
            checkpoint.tensor(name, dtype="float32")
        assert checkpoint._bar.n == checkpoint._bar.total == checkpoint.nbytes
    assert "weights: 100%" in capsys.readouterr().err
    with open_checkpoint(tmp_path) as checkpoint:  # no terminal here
        checkpoint.require(specs())
        checkpoint.tensor("model.norm.weight", dtype="float32")
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------- memory

LOAD = """
import re, sys
import numpy as np
from ernie_kernels.models.loader import WeightSpec, open_checkpoint

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

hidden, outputs, layers = map(int, sys.argv[2:5])
names = [f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(layers) for m in "qkv"]
before = peak()
with open_checkpoint(sys.argv[1]) as checkpoint:
    checkpoint.require({name: WeightSpec((outputs, hidden)) for name in names})
    weights = []
    for i in range(0, len(names), 3):
        temporary = checkpoint.tensor(*names[i : i + 3], dtype="bfloat16")
        weights.append(temporary.copy())  # as the runner does, which packs and drops it
print(peak() - before, sum(w.nbytes for w in weights))
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
def test_peak_memory_of_a_load(tmp_path, rng, layout):
    hidden, outputs, layers = 2048, 2048, 8  # 24 matrices of 8 MiB
    block = rng.integers(0, 1 << 14, (3 * outputs, hidden), np.uint16).view(BFLOAT16)
    parts = dict(zip("qkv", np.split(block, 3), strict=True))
    weights = {
        f"model.layers.{i}.self_attn.{m}_proj.weight": part
        for i in range(layers)
        for m, part in parts.items()
    }
    save(tmp_path / "model.safetensors", weights if layout == "huggingface" else to_paddle(weights))
    package = Path(ek.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), str(hidden), str(outputs), str(layers)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
        check=True,
    )
    peak, held = map(int, done.stdout.split())
    assert held == sum(array.nbytes for array in weights.values())
    largest = held // layers
    assert held <= peak <= held + largest + (64 << 20)
