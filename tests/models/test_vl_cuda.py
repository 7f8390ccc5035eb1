"""Vision-language models with device cuda beside the CPU: the same integers, and logits as near as text models'."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
from ernie_kernels import ops
from ernie_kernels.models.media_positions import IMAGE, POSITION_RULES, VIDEO
from ernie_kernels.runner.batch import ForwardBatch
from media_prompt import media_prompt, together, visual_item
from vl_checkpoint import VL_SHAPES, write_vl_checkpoint

pytestmark = pytest.mark.cuda

# The video has more frames than rows and columns: the rules of positions part behind it.
MEDIA = ((IMAGE, (1, 4, 6)), (VIDEO, (6, 2, 2)), (IMAGE, (1, 2, 2)))


def load(folder, device: str, **changes) -> ek.LLM:
    return ek.LLM.from_pretrained(folder, device=device, max_model_len=256, **changes)


def prompts_of(rng, shape: str = "28b") -> list:
    config = VL_SHAPES[shape]
    return [
        media_prompt(rng, config, *MEDIA),
        media_prompt(rng, config, text=9),
        media_prompt(rng, config, MEDIA[1], text=2),
    ]


def logits_of(folder, device: str, prompts, rule: str = "baidu", **changes) -> np.ndarray:
    with load(folder, device, **changes) as llm:
        ids = [prompt.ids for prompt in prompts]
        return np.concatenate(llm.forward(ids, **together(prompts), position_rule=rule))


@pytest.mark.parametrize("rule", POSITION_RULES)
@pytest.mark.parametrize("shape", ["28b", "424b"])
def test_float32_is_that_of_the_cpu(tmp_path, rng, shape, rule):
    write_vl_checkpoint(tmp_path, shape=shape)
    prompts = prompts_of(rng, shape)
    expected, got = (logits_of(tmp_path, d, prompts, rule) for d in ("cpu", "cuda"))
    assert np.abs(expected).max() > 0.5
    assert np.abs(got - expected).max() < 1e-4


@pytest.mark.parametrize("shape", ["28b", "real_heads"])
def test_bfloat16_is_near_float32_of_the_same_weights(tmp_path, rng, shape):
    """Its router sees rounded hidden states: where scores are nearly equal it takes another expert."""
    write_vl_checkpoint(tmp_path, dtype="bfloat16", shape=shape)
    prompts = prompts_of(rng, shape)
    expected = logits_of(tmp_path, "cpu", prompts, dtype="float32")
    differences = np.abs(logits_of(tmp_path, "cuda", prompts) - expected)
    assert differences.mean() < 0.02
    assert np.quantile(differences, 0.9) < 0.05


WORDS = {"wint8": "wint8", "wint4": {"dense_quant_type": "wint4", "moe_quant_type": "wint4"}}


@pytest.mark.parametrize("quantization", WORDS)
def test_weights_alone(tmp_path, rng, quantization):
    write_vl_checkpoint(tmp_path)
    prompts, word = prompts_of(rng), WORDS[quantization]
    expected, got = (
        logits_of(tmp_path, device, prompts, quantization=word) for device in ("cpu", "cuda")
    )
    assert np.abs(got - expected).max() < 1e-4
    assert np.abs(got - logits_of(tmp_path, "cpu", prompts)).max() > 1e-3


def test_integers_are_those_of_the_cpu(tmp_path, rng, monkeypatch):
    """Positions, rows of features, banks and chosen experts."""
    write_vl_checkpoint(tmp_path)
    prompts = prompts_of(rng)[:1]
    seen: list[np.ndarray] = []
    from_spans, moe_route = ForwardBatch.from_spans.__func__, ops.moe_route

    def watched_batch(cls, *args) -> ForwardBatch:
        batch = from_spans(cls, *args)
        of_media = (batch.mrope_positions, batch.banks, batch.visual_rows)
        seen.extend(each.numpy().copy() for each in (batch.positions, *of_media))
        return batch

    def watched_route(*args, **options):
        weights, ids = moe_route(*args, **options)
        seen.append(ids.numpy().copy())
        return weights, ids

    monkeypatch.setattr(ForwardBatch, "from_spans", classmethod(watched_batch))
    monkeypatch.setattr(ops, "moe_route", watched_route)
    for device in ("cpu", "cuda"):
        logits_of(tmp_path, device, prompts)
    half = len(seen) // 2
    assert half >= 4 + 3
    for of_cpu, of_cuda in zip(seen[:half], seen[half:], strict=True):
        assert np.array_equal(of_cpu, of_cuda)
    experts = np.unique(np.concatenate([ids.reshape(-1) for ids in seen[4:half]]))
    assert experts.min() < 8 <= experts.max() < 16  # of both banks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_of_pixels(tmp_path, rng, dtype):
    write_vl_checkpoint(tmp_path, dtype=dtype)
    items = [
        visual_item(rng, "image", (1, 6, 4)),
        visual_item(rng, "video", (4, 2, 4)),
        visual_item(rng, "image", (1, 2, 2)),
    ]
    with load(tmp_path, "cpu", dtype="float32") as llm:
        expected = llm.model.visual_features(items).numpy()
    with load(tmp_path, "cuda") as llm:
        features = llm.model.visual_features(items)
        assert features.device == "cuda:0"
        differences = np.abs(features.numpy().astype(np.float32) - expected)
    assert np.abs(expected).max() > 1
    assert differences.max() < {"float32": 1e-4, "bfloat16": 0.15}[dtype]
    assert differences.mean() < {"float32": 1e-5, "bfloat16": 0.02}[dtype]
