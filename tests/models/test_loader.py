"""Loading checkpoints: folders, both layouts, exact key sets, and what broken ones get."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels.errors import ArgumentError, FormatError, WeightError
from ernie_kernels.models import tensor_pieces
from ernie_kernels.models.checkpoint_folder import is_plain_shard_name
from ernie_kernels.models.loader import WeightSpec, open_checkpoint
from safetensors_bytes import BFLOAT16, save, save_sharded
from tiny_checkpoint import in_shards, to_paddle

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 6, 2, 1, 4, 10, 13
INDEX = "model.safetensors.index.json"


def specs(*, use_bias: bool = False, tied: bool = True) -> dict[str, WeightSpec]:
    """The tensors of a dense model with two layers."""
    outputs = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    embedding = WeightSpec((VOCAB, HIDDEN), ("vocab_size", "hidden_size"))
    result = {"model.embed_tokens.weight": embedding}
    for layer in ("model.layers.0.", "model.layers.1."):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            result[f"{layer}{norm}.weight"] = WeightSpec((HIDDEN,), ("hidden_size",))
        for name, shape in outputs.items():
            result[f"{layer}{name}.weight"] = WeightSpec(shape, ("hidden_size", "head_dim"))
            if use_bias:
                result[f"{layer}{name}.bias"] = WeightSpec(shape[:1])
    result["model.norm.weight"] = WeightSpec((HIDDEN,), ("hidden_size",))
    if not tied:
        result["lm_head.weight"] = embedding
    return result


def random_weights(rng, wanted, dtype=BFLOAT16) -> dict[str, np.ndarray]:
    return {n: rng.standard_normal(s.shape, np.float32).astype(dtype) for n, s in wanted.items()}


def assert_loads(folder: Path, weights: dict[str, np.ndarray], wanted=None) -> None:
    with open_checkpoint(folder) as checkpoint:
        checkpoint.require(wanted or specs())
        for name, expected in weights.items():
            dtype = expected.dtype.name
            np.testing.assert_array_equal(checkpoint.tensor(name, dtype=dtype), expected)


# --------------------------------------------------------------------------------- what is loaded


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


# ---------------------------------------------------------------------------- folders that are not


def test_no_folder(tmp_path):
    with pytest.raises(FormatError, match=r"'absent': no folder that can be listed \(ENOENT\)"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FormatError, match=r"\(ENOTDIR\)"):
        open_checkpoint(tmp_path / "notes.txt")
    with pytest.raises(FormatError, match=r"\(not a path\)"):
        open_checkpoint("a\0b")
    with pytest.raises(FormatError, match=r"\(ENAMETOOLONG\)"):
        open_checkpoint("x" * 300)
    with pytest.raises(FormatError, match=r"no .safetensors file; expected model.safetensors or"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_state.pdparams", "model.PT"])
def test_pickles_are_never_read(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(FormatError, match=rf"only '{name}'; .*pickles.*safe_serialization=True"):
        open_checkpoint(tmp_path)


def test_several_files_without_an_index(tmp_path, rng):
    for shard, tensors in in_shards(random_weights(rng, specs())).items():
        save(tmp_path / shard, tensors)
    with pytest.raises(FormatError, match=rf"3 .safetensors files, .* no {INDEX}"):
        open_checkpoint(tmp_path)
    for shard in sorted(tmp_path.iterdir())[1:]:
        shard.unlink()
    with pytest.raises(FormatError, match=rf"1 .safetensors files, .* no {INDEX}"):
        open_checkpoint(tmp_path)


def test_a_single_file_beside_an_index_that_does_not_list_it(tmp_path, rng):
    weights = random_weights(rng, specs())
    save_sharded(tmp_path, in_shards(weights))
    save(tmp_path / "model.safetensors", weights)
    with pytest.raises(FormatError, match="holds both"):
        open_checkpoint(tmp_path)


def test_layouts_are_not_mixed_or_guessed(tmp_path, rng):
    weights = random_weights(rng, specs())
    save(tmp_path / "model.safetensors", weights | {"ernie.norm.weight": np.zeros(2, np.float32)})
    with pytest.raises(WeightError, match=r"mixes two layouts: 'model.* 'ernie.norm.weight'"):
        open_checkpoint(tmp_path)
    save(tmp_path / "model.safetensors", {"transformer.w": np.zeros(2, np.float32)})
    with pytest.raises(WeightError, match=r"none of the 1 tensors .* first is 'transformer.w'"):
        open_checkpoint(tmp_path)
    save(tmp_path / "model.safetensors", {})
    with pytest.raises(WeightError, match="none of the 0 tensors"):
        open_checkpoint(tmp_path)


# ------------------------------------------------------------------------------------- the index


@pytest.fixture
def sharded(tmp_path, rng):
    save_sharded(tmp_path, in_shards(random_weights(rng, specs())))
    return tmp_path


def rewrite_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_row_17_missing_shard(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    lost = 7
    with pytest.raises(
        WeightError,
        match=rf"'model-00002-of-00003.safetensors' with {lost} tensors is missing; .* 2 of the 3",
    ):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "C:x.safetensors",
        "..",
        ".",
        "",
        ".hidden.safetensors",
        "a\0.safetensors",
        "a\n.safetensors",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        "model.bin",
    ],
)
def test_row_18_index_may_not_leave_the_folder(sharded, shard):
    assert not is_plain_shard_name(shard)
    rewrite_index(sharded, lambda weights: weights.update({"model.norm.weight": shard}))
    with pytest.raises(FormatError, match=r"'model.norm.weight': expected the base name") as caught:
        open_checkpoint(sharded)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) <= 512


@pytest.mark.parametrize("value", [1, None, ["a"], {}])
def test_index_values_are_strings(sharded, value):
    rewrite_index(sharded, lambda weights: weights.update({"model.norm.weight": value}))
    with pytest.raises(FormatError, match="expected the base name"):
        open_checkpoint(sharded)


def test_weight_files_behind_links_load(tmp_path, rng):
    """As a hub cache lays them out: the snapshot's files are links to blobs beside it."""
    weights = random_weights(rng, specs())
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_sharded(blobs, in_shards(weights))
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    assert_loads(snapshot, weights)
    linked = tmp_path / "linked"
    linked.symlink_to(snapshot)
    assert_loads(linked, weights)


def test_dangling_link(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("absent")
    with pytest.raises(FormatError, match=r"model.safetensors: cannot open: ENOENT"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "JSON object at the top"),
        ("{}", "weight_map: expected an object .* got null"),
        ('{"weight_map": {}}', "got an empty one"),
        ('{"weight_map": []}', "got a list"),
        ('{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}', "'a' occurs twice"),
        ("[" * 100_000, "nesting of at most 64"),
        ('{"a":' * 65 + "1" + "}" * 65, "nesting of at most 64"),
    ],
)
def test_broken_index(tmp_path, text, match):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=match):
        open_checkpoint(tmp_path)


def test_too_many_shards(tmp_path):
    weight_map = {f"t{i}": f"s{i}.safetensors" for i in range(1025)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match="1025 shards, the limit is 1024"):
        open_checkpoint(tmp_path)


def test_row_19_tensor_in_another_shard_than_the_index_says(sharded):
    first, second = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    name = "model.embed_tokens.weight"
    rewrite_index(sharded, lambda weights: weights.update({name: second}))
    with pytest.raises(
        WeightError, match=rf"tensor '{name}' in '{first}', but {INDEX} places it in '{second}'"
    ):
        open_checkpoint(sharded)


def test_row_19_tensor_in_two_shards(sharded, rng):
    first, second = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    shards = in_shards(random_weights(rng, specs()))
    twice = next(iter(shards[first]))
    save(sharded / second, {twice: shards[first][twice]} | shards[second])
    with pytest.raises(WeightError, match=rf"'{twice}' in '{first}' is in '{second}' too"):
        open_checkpoint(sharded)


def test_row_19_tensor_that_the_index_does_not_list(sharded):
    name = "model.norm.weight"
    rewrite_index(sharded, lambda weights: weights.pop(name))
    with pytest.raises(WeightError, match=rf"'{name}' in .* places it nowhere"):
        open_checkpoint(sharded)


def test_row_19_tensor_that_no_shard_holds(sharded):
    shard = "model-00001-of-00003.safetensors"
    rewrite_index(sharded, lambda weights: weights.update({"model.ghost": shard}))
    with pytest.raises(
        WeightError, match=rf"'model.ghost' is not in '{shard}', where the index .*\(1 such tensors"
    ):
        open_checkpoint(sharded)


# ------------------------------------------------------------------------------ what the model needs


def checkpoint_of(tmp_path, weights):
    save(tmp_path / "model.safetensors", weights)
    return open_checkpoint(tmp_path)


def test_row_20_missing_tensors(tmp_path, rng):
    weights = random_weights(rng, specs())
    for name in [n for n in weights if "layers.1" in n]:
        del weights[name]
    with pytest.raises(WeightError, match=r"9 tensors missing: '[^']+'(, '[^']+'){4};"):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_20_unexpected_and_did_you_mean(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.layers.0.self_attn.q_porj.weight"] = weights.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )
    with pytest.raises(
        WeightError,
        match=r"1 tensors missing: '.*q_proj.weight'; did you mean '.*q_porj.weight'\?; 1 tensors unexp",
    ):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_20_message_stays_short(tmp_path, rng):
    weights = random_weights(rng, specs()) | {
        f"model.{'x' * 300}{i}": np.zeros(1, np.float32) for i in range(9)
    }
    with pytest.raises(WeightError, match="9 tensors unexpected") as caught:
        checkpoint_of(tmp_path, weights).require(specs())
    assert len(str(caught.value)) <= 512


def test_multi_token_prediction_weights_are_ignored(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.mtp_emb_norm.0.weight"] = np.zeros(3, np.float32)
    weights["model.mtp_block.0.mlp.up_proj.weight"] = np.zeros((3, 2), np.float32)
    checkpoint_of(tmp_path, weights).require(specs())


def test_an_output_head_that_a_tied_config_does_not_expect(tmp_path, rng):
    weights = random_weights(rng, specs(tied=False))
    with pytest.raises(WeightError, match=r"1 tensors unexpected: 'lm_head.weight'"):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_21_wrong_shape(tmp_path, rng):
    weights = random_weights(rng, specs())
    weights["model.layers.0.self_attn.q_proj.weight"] = np.zeros((HIDDEN, 8), BFLOAT16)
    with pytest.raises(
        WeightError,
        match=r"tensor 'model.layers.0.self_attn.q_proj.weight' in 'model.safetensors': shape "
        r"\[6, 8\], expected \[8, 6\] from hidden_size, head_dim of config.json",
    ):
        checkpoint_of(tmp_path, weights).require(specs())


def test_row_21_wrong_shape_of_a_fused_tensor(tmp_path, rng):
    stored = to_paddle(random_weights(rng, specs()))
    stored["ernie.layers.0.self_attn.qkv_proj.weight"] = np.zeros((HIDDEN, 12), BFLOAT16)
    with pytest.raises(
        WeightError, match=r"qkv_proj.weight' in .*: shape \[6, 12\], expected \[6, 16"
    ):
        checkpoint_of(tmp_path, stored).require(specs())


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.uint8, np.uint16])
def test_row_22_wrong_dtype(tmp_path, rng, dtype):
    weights = random_weights(rng, specs())
    weights["model.norm.weight"] = np.zeros(HIDDEN, dtype)
    with pytest.raises(
        WeightError, match=r"'model.norm.weight' in .*: dtype \w+, expected F32 or F16 or BF16 for"
    ):
        checkpoint_of(tmp_path, weights).require(specs())


@pytest.mark.parametrize("layout", ["huggingface", "paddle"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16])
def test_row_23_non_finite_weights(tmp_path, rng, monkeypatch, layout, value, dtype):
    monkeypatch.setattr(tensor_pieces, "CHUNK_BYTES", 40)  # the index counts across steps
    weights = random_weights(rng, specs(), dtype)
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name][3, 4] = weights[name][5, 9] = value
    stored = weights if layout == "huggingface" else to_paddle(weights)
    checkpoint = checkpoint_of(tmp_path, stored)
    checkpoint.require(specs())
    first = 3 * INTERMEDIATE + 4 if layout == "huggingface" else 4 * HIDDEN + 3
    with pytest.raises(
        WeightError, match=rf"down_proj.weight' .*: 2 values are NaN or inf.* flat index {first};"
    ):
        checkpoint.tensor(name, dtype="float32")
    checkpoint.tensor("model.norm.weight", dtype="float32")  # the checkpoint stays usable


def test_row_23_values_beyond_the_destinations_range(tmp_path, rng):
    weights = random_weights(rng, specs(), np.float32)
    weights["model.norm.weight"][2] = 3.4e38  # rounds to infinity in bfloat16
    checkpoint = checkpoint_of(tmp_path, weights)
    checkpoint.require(specs())
    assert checkpoint.tensor("model.norm.weight", dtype="float32")[2] == np.float32(3.4e38)
    with pytest.raises(WeightError, match="1 values are NaN or infinite as bfloat16"):
        checkpoint.tensor("model.norm.weight", dtype="bfloat16")


def test_zero_size_tensors_fail_unless_expected(tmp_path):
    weights = {"model.norm.weight": np.zeros(0, np.float32)}
    checkpoint = checkpoint_of(tmp_path, weights)
    with pytest.raises(WeightError, match=r"shape \[0\], expected \[6\]"):
        checkpoint.require({"model.norm.weight": WeightSpec((HIDDEN,))})
    checkpoint.require({"model.norm.weight": WeightSpec((0,))})
    assert checkpoint.tensor("model.norm.weight", dtype="float32").shape == (0,)


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
