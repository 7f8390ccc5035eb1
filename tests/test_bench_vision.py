"""The benches of the vision half: what they count and keep, and that they time no wrong model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek

ROOT = Path(__file__).parent.parent
TINY_TOWER = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 96}
TINY_TEXT = {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}
GRIDS = {"image": (1, 4, 6), "frames": (4, 2, 4)}


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    threads = ek.num_threads()
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield
    ek.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch):
    """The benches of a model that is made and run at once, with ceilings that are quick to measure."""
    import bench_vision_stages
    import bench_vision_tower
    import synthetic_model
    import vision_encoders

    monkeypatch.setattr(synthetic_model, "POOL_SIZE", 9973)
    config = vision_encoders.CONFIG_VL_28B
    small = config | {
        "text_config": config["text_config"] | TINY_TEXT,
        "vision_config": config["vision_config"] | TINY_TOWER,
    }
    for module in (bench_vision_stages, bench_vision_tower):
        monkeypatch.setattr(module, "CONFIG_VL_28B", small)
    monkeypatch.setattr(bench_vision_tower, "PICTURES", GRIDS)
    monkeypatch.setattr(bench_vision_tower.ProductCeiling, "OUT_FEATURES", 32)
    monkeypatch.setattr(bench_vision_tower, "read_bandwidth", lambda device: 10.0)
    monkeypatch.setattr(bench_vision_stages, "SIZES", [(84, 112)])
    return small


def test_the_real_sizes():
    from bench_vision_tower import flops_of
    from vision_encoders import CONFIG_VL_28B, checked_config

    config = checked_config(CONFIG_VL_28B)
    assert config.vision is not None
    assert (config.vision.depth, config.vision.head_dim, config.hidden_size) == (32, 80, 2560)
    image, frames = (1, 32, 32), (16, 16, 16)

    def operations(part, grid):
        return flops_of(part, grid, config.vision, config.hidden_size)

    assert operations("tower", image) == pytest.approx(1.46e12, rel=0.005)
    assert operations("resampler", image) == pytest.approx(73.8e9, rel=0.005)
    # Four times the patches, each of which sees a quarter as many; half as many tokens as images have.
    attention = 32 * 4 * 1280 * 1024**2
    assert operations("tower", frames) == 4 * operations("tower", image) - 3 * attention
    assert operations("resampler", frames) < 4 * operations("resampler", image)


def test_runs_without_peers(tiny, tmp_path, monkeypatch, capsys):
    import bench_vision_tower

    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    target = tmp_path / "results.jsonl"
    words = f"--threads 1 2 --rounds 2 --only image --json {target}"
    bench_vision_tower.main(words.split())
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["threads"], row["op"], row["ours"]) for row in rows] == [
        (threads, f"vision {part}", dtype)
        for part in ("tower", "resampler")
        for threads in (1, 2)
        for dtype in ("bfloat16", "float32")
    ]
    for row in rows:
        assert 0 < row["best_us"] <= row["p25_us"] <= row["median_us"]
        assert row["peers"] == {}
        assert row["error"] < (0.05 if row["ours"] == "bfloat16" else 1e-4)
    assert "torch is not installed" in capsys.readouterr().err


def test_a_tower_that_computes_something_else_is_refused(tiny, monkeypatch):
    import bench_vision_tower as bench
    from vision_encoders import OurEncoder, Picture, checked_config, random_weights

    config = checked_config(tiny)
    with random_weights(config) as checkpoint:
        one, other = (OurEncoder(config, checkpoint, "float32") for _ in range(2))
    other.name = "transformers float32"
    for encoder in (one, other):
        encoder.show(Picture(GRIDS["frames"], TINY_TOWER["hidden_size"]))
    assert bench.errors_of([one, other], "tower")["ours float32"] == 0
    one.encoder.tower.blocks[1].norm2.eps = 0.01
    with pytest.raises(bench.DisagreementError, match="tower: ours float32"):
        bench.errors_of([one, other], "tower")
    monkeypatch.setattr(one, "tower", lambda: one.resampler())
    with pytest.raises(bench.DisagreementError, match="instead of"):
        bench.errors_of([one, other], "tower")


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_transformers_gets_the_same_weights(tiny, dtype, grid):
    import bench_vision_tower as bench
    from vision_encoders import (
        OurEncoder,
        Picture,
        TransformersEncoder,
        checked_config,
        random_weights,
    )

    config = checked_config(tiny)
    with random_weights(config) as checkpoint:
        encoders = [
            OurEncoder(config, checkpoint, dtype),
            TransformersEncoder(tiny, checkpoint, dtype),
        ]
        encoders.append(TransformersEncoder(tiny, checkpoint, "float32"))
    for encoder in encoders:
        encoder.show(Picture(grid, TINY_TOWER["hidden_size"]))
    for part in bench.PARTS:
        errors = bench.errors_of(encoders, part)
        assert errors[f"ours {dtype}"] < (0.05 if dtype == "bfloat16" else 1e-5)


def test_stages_add_up(tiny, tmp_path, capsys):
    import bench_vision_stages as bench

    target = tmp_path / "stages.jsonl"
    bench.main(f"--threads 1 --rounds 2 --json {target}".split())
    (row,) = map(json.loads, target.read_text().splitlines())
    stages = row["stages_us"]
    whole = stages.pop(bench.WHOLE)
    assert sum(stages.values()) == pytest.approx(whole, rel=0.01)
    assert list(stages)[:3] == list(bench.PREPARATION)
    matrices = {f"blocks: {name}" for name in bench.MATRICES}
    assert {*stages} >= {
        *bench.PREPARATION,
        *bench.TIMED_OPS,
        *matrices,
        "resampler: mlp",
        "between",
    }
    assert all(value > 0 for value in stages.values())
    assert "JPEG 84 x 112, bfloat16, 1 threads" in capsys.readouterr().out


def test_the_fastest_run_is_shown_whole():
    from bench_vision_stages import WHOLE, stages

    found = stages([{"a": 1.0, WHOLE: 9.0}, {"a": 2.0, "b": 1.5, WHOLE: 4.0}])
    assert found == {"a": 2.0, "b": 1.5, "between": 0.5, WHOLE: 4.0}
    assert np.isclose(sum(found.values()), 2 * found[WHOLE])
