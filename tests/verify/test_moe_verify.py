"""``verify`` of models with experts: passes what is right, names what is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels import ops
from ernie_kernels.verify.check import verify, verify_loaded
from tiny_checkpoint import MOE_SHAPES, in_shards, to_paddle, to_stacked, write_checkpoint

DTYPES = ["float32", "bfloat16"]
LAYER = 2  # with experts in the shape that is corrupted


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        "wint8",
        "w8a8",
        "wint4",
        {"dense_quant_type": "wint4", "moe_quant_type": "wint4"},
        {"dense_quant_type": "wint4", "moe_quant_type": "w8a8"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MOE_SHAPES)
def test_random_models_pass(tmp_path, shape, dtype, quantization):
    write_checkpoint(tmp_path, dtype=dtype, seed=3, **MOE_SHAPES[shape])
    report = verify(tmp_path, device="cpu", quantization=quantization)
    assert report.failures == []
    assert report.passed
    if (dtype, quantization) == ("float32", None):
        assert report.logits.mean_kl < 1e-10
        assert max(stage.widest_gap for stage in report.stages) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_random_model_passes_on_cuda(tmp_path, dtype):
    write_checkpoint(tmp_path, dtype=dtype, seed=3, **MOE_SHAPES["21b"])
    assert verify(tmp_path, device="cuda").failures == []


@pytest.mark.parametrize("changes", [
    {"moe_num_experts": 64, "moe_k": 6},  # a square router
    {"moe_layer_start_index": 0, "moe_layer_interval": 2, "moe_layer_end_index": 2},
    {"moe_num_experts": 1, "moe_k": 1, "moe_num_shared_experts": 1},
    {"num_hidden_layers": 1},  # dense: all of the model before its experts
])  # fmt: skip
@pytest.mark.parametrize("stored", [dict, to_paddle, to_stacked])
def test_every_layout_is_read(tmp_path, changes, stored):
    _, weights = write_checkpoint(tmp_path, **{**MOE_SHAPES["21b"], **changes})
    (tmp_path / "model.safetensors").unlink()
    safetensors_bytes.save_sharded(tmp_path, in_shards(stored(weights)))
    assert verify(tmp_path, device="cpu").failures == []


def test_layers_by_their_kinds(tmp_path):
    """As transformers 5 writes them, beside another name of the number of experts."""
    write_checkpoint(tmp_path, **MOE_SHAPES["21b"])
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"):
        del config[key]
    config["num_experts"] = config.pop("moe_num_experts")
    config["mlp_layer_types"] = ["dense", "sparse", "sparse", "sparse"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert verify(tmp_path, device="cpu").failures == []


def test_another_models_experts_are_refused(tmp_path):
    write_checkpoint(tmp_path / "one", **MOE_SHAPES["21b"])
    write_checkpoint(tmp_path / "other", **{**MOE_SHAPES["21b"], "moe_k": 2})
    with pytest.raises(ek.ConfigError, match="moe_k is 3 in the model and 2 in the reference"):
        verify(tmp_path / "one", reference=tmp_path / "other", device="cpu")


# ------------------------------------------------------------------ corrupted in the model's memory


@pytest.fixture(scope="module", params=DTYPES)
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, dtype=request.param, **MOE_SHAPES["21b"])
    return folder


def failures_after(folder, change, **options) -> list[str]:
    """Of the layer that ``change`` has corrupted; no other layer has any."""
    with ek.LLM.from_pretrained(folder, device="cpu", **options) as llm:
        change(llm.model.model.layers[LAYER].mlp)
        failures = verify_loaded(llm, folder, quantization=options.get("quantization")).failures
    parts = [failure for failure in failures if ": " in failure]
    assert all(failure.startswith(f"layer {LAYER}: ") for failure in parts)
    return [failure.removeprefix(f"layer {LAYER}: ") for failure in parts]


def flip(array: np.ndarray, *index: int) -> None:
    assert array[index] != 0
    array[index] = -array[index]


# Which element, by where it is in packed memory, and the part that it belongs to.
ELEMENTS = {
    "router weights": lambda moe: flip(moe.router.gate.weight.tensor.numpy(), 0, 3, 1),
    "correction bias": lambda moe: flip(moe.router.correction_bias.numpy(), 5),
    "experts.3.gate_proj weights": lambda moe: flip_expert(moe.gate_up_proj, 3, 0),
    "experts.7.up_proj weights": lambda moe: flip_expert(moe.gate_up_proj, 7, 2),
    "experts.0.down_proj weights": lambda moe: flip_expert(moe.down_proj, 0, 1),
    "shared gate_proj weights": lambda moe: flip_first(moe.shared_experts.gate_up_proj, 0),
    "shared up_proj weights": lambda moe: flip_first(moe.shared_experts.gate_up_proj, 3),
    "shared down_proj weights": lambda moe: flip_first(moe.shared_experts.down_proj, 1),
}


def flip_expert(experts, index: int, panel: int) -> None:
    weights = experts.weight.numpy()[index, panel]
    flip(weights, *(0 for _ in weights.shape))


def flip_first(layer, panel: int) -> None:
    weights = layer.weight.tensor.numpy()[panel]
    flip(weights, *(0 for _ in weights.shape))


@pytest.mark.parametrize("part", ELEMENTS)
def test_one_wrong_element_is_found(folder, part):
    assert any(f.startswith(f"{part}:") for f in failures_after(folder, ELEMENTS[part]))


@pytest.mark.parametrize("part", ["experts.3.gate_proj weights", "experts.0.down_proj weights"])
def test_a_wrong_expert_of_four_bits_is_found(folder, part):
    def turn(moe) -> None:
        experts = moe.gate_up_proj if "gate" in part else moe.down_proj
        weights = experts.weight.numpy()[int(part.split(".")[1])]
        weights[...] = weights[:, ::-1].copy()

    failures = failures_after(folder, turn, quantization="wint4")
    assert any(f.startswith(f"{part}:") for f in failures)


def swap_experts(moe) -> None:
    """Of one matrix alone: the tokens of two experts get the other's."""
    weights = moe.down_proj.weight.numpy()
    weights[[1, 6]] = weights[[6, 1]]


def test_swapped_experts_are_found(folder):
    failures = failures_after(folder, swap_experts)
    assert any("down_proj weights" in failure for failure in failures)


def test_a_missing_shared_expert_is_found(folder):
    def drop(moe) -> None:
        moe.shared_experts = None

    assert any(f.startswith("shared experts:") for f in failures_after(folder, drop))


# ----------------------------------------------------------------------------------- wrong routing

right_route, right_fused = ops.moe_route, ops.fused_moe


def rewritten_route(change):
    """A router whose results ``change(p, bias, top_k)`` makes: weights and ids."""

    def route(logits, bias, top_k, *, topk_weights, topk_ids, **_):
        z = logits.numpy().astype(np.float64)
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        topk_weights.numpy()[...], topk_ids.numpy()[...] = change(p, bias.numpy(), top_k)
        return topk_weights, topk_ids

    return route


def chosen(scores, top_k):
    return np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]


def taken(values, ids):
    return np.take_along_axis(values, ids, -1)


def normalised(weights):
    return weights / weights.sum(-1, keepdims=True)


def right(p, bias, k):
    ids = chosen(p + bias, k)
    return normalised(taken(p, ids)), ids


def bias_ignored(p, bias, k):
    ids = chosen(p, k)
    return normalised(taken(p, ids)), ids


def biased_scores_weigh(p, bias, k):
    ids = chosen(p + bias, k)
    return normalised(taken(p + bias, ids)), ids


def not_renormalised(p, bias, k):
    ids = chosen(p + bias, k)
    return taken(p, ids), ids


def an_expert_twice(p, bias, k):
    ids = chosen(p + bias, k)
    ids[:, -1] = ids[:, 0]
    return normalised(taken(p, ids)), ids


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (bias_ignored, "choice of experts"),
        (an_expert_twice, "choice of experts"),
        (biased_scores_weigh, "weights of experts"),
        (not_renormalised, "weights of experts"),
    ],
)
def test_a_wrong_router_is_found(folder, monkeypatch, change, part):
    for each, passes in ((right, True), (change, False)):
        monkeypatch.setattr(ops, "moe_route", rewritten_route(each))
        with ek.LLM.from_pretrained(folder, device="cpu") as llm:
            failures = verify_loaded(llm, folder).failures
        if passes:
            assert failures == []
        else:
            assert any(f"layer 1: {part}:" in failure for failure in failures)


def test_a_router_that_rounds_is_found(folder, monkeypatch):
    """Logits in bfloat16, as if the router ran in the dtype of the model."""

    def rounds(logits, *arguments, **options):
        import ml_dtypes

        array = logits.numpy()
        array[...] = array.astype(ml_dtypes.bfloat16)
        return right_route(logits, *arguments, **options)

    monkeypatch.setattr(ops, "moe_route", rounds)
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        failures = verify_loaded(llm, folder).failures
    assert any("layer 1: router:" in failure for failure in failures)


def test_a_fused_op_that_differs_is_found(folder, monkeypatch):
    """A shared expert left out of the sum, or weighed."""
    for shared_of in (lambda shared: None, lambda shared: shared.numpy() * shared.dtype.type(0.5)):

        def fused(*arguments, shared, out, shared_of=shared_of, **options):
            return right_fused(*arguments, shared=shared_of(shared), out=out, **options)

        monkeypatch.setattr(ops, "fused_moe", fused)
        with ek.LLM.from_pretrained(folder, device="cpu") as llm:
            failures = verify_loaded(llm, folder).failures
        assert any("layer 1: fused experts:" in failure for failure in failures)
