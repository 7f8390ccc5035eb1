"""Which files of a folder are a checkpoint: folders that are none, and the index of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ernie_kernels.errors import FormatError, WeightError
from ernie_kernels.models.checkpoint_folder import is_plain_shard_name
from ernie_kernels.models.loader import open_checkpoint
from safetensors_bytes import save, save_sharded
from tiny_checkpoint import in_shards
from wanted_weights import assert_loads, random_weights, specs

INDEX = "model.safetensors.index.json"

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
