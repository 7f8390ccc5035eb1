"""The multi-token prediction module: its logits against float64, and which files it is read from."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import ernie_kernels as ek
import reference_model
import safetensors_bytes
from ernie_kernels.runner.batch import TokenSpan
from mtp_checkpoint import MTP, PROJECTION, write_mtp_checkpoint
from tiny_checkpoint import MOE_SHAPES, random_ids, to_paddle

SHAPES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "one_kv_head_odd_sizes": {
        "vocab_size": 101,
        "hidden_size": 37,
        "intermediate_size": 53,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "bias": {"use_bias": True, "rope_theta": 10000.0, "num_hidden_layers": 1},
    # The block is dense in models with experts too.
    **MOE_SHAPES,
}


def options(hidden_state: str) -> dict:
    return {**MTP, "hidden_state": hidden_state}


def rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def expected_logits(config, weights, ids: list[int], hidden_state: str) -> np.ndarray:
    """For tokens 2, 3, ... of a sequence: ``[len(ids) - 1, vocab_size]``."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    hidden = reference_model.forward(config, w, ids, with_head=False)[:-1]
    return run_module(config, w, ids[1:], hidden, hidden_state)


def expected_behind_draft(config, weights, ids: list[int], token: int, hidden_state: str):
    """For the token behind a draft, which is behind ``ids``: ``[vocab_size]``."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    hidden = reference_model.forward(config, w, ids, with_head=False)[:-1]
    made = run_module(config, w, ids[1:], hidden, hidden_state, with_head=False)[-1:]
    hidden = np.concatenate([hidden, made])
    return run_module(config, w, [*ids[1:], token], hidden, hidden_state)[-1]


def run_module(config, w, ids: list[int], hidden, hidden_state: str, *, with_head: bool = True):
    """Of each position its next token and its hidden state before the norm are given."""
    eps, table = config["rms_norm_eps"], w["model.embed_tokens.weight"]
    if hidden_state == "after_norm":
        hidden = rms(hidden, w["model.norm.weight"], eps)
    e = rms(table[ids], w["model.mtp_emb_norm.0.weight"], eps)
    g = rms(hidden, w["model.mtp_hidden_norm.0.weight"], eps)
    joined = np.concatenate([e, g], axis=1) @ w[PROJECTION].T
    # The rest is a dense model of one layer, whose embeddings are these.
    block = "model.mtp_block.0."
    layer = {n.replace(block, "model.layers.0."): a for n, a in w.items() if n.startswith(block)}
    rest = {
        "model.embed_tokens.weight": joined,
        **layer,
        "model.norm.weight": w["model.norm.weight"],
        "lm_head.weight": w.get("lm_head.weight", table),
    }
    rows = list(range(len(joined)))
    one_layer = {**config, "num_hidden_layers": 1}
    return reference_model.forward(one_layer, rest, rows, with_head=with_head)


def draft_logits(
    llm: ek.LLM, ids: list[int], cuts: tuple[int, ...] = (), wanted: int | None = None
) -> np.ndarray:
    """What the loaded module makes of a sequence, run in pieces; of each the last few if wanted."""
    runner = llm._engine._runner
    tokens = np.array(ids, np.int64)
    blocks = np.arange(-(-len(ids) // 32), dtype=np.int32)[::-1].copy()
    rows = []
    edges = [0, *cuts, len(ids) - 1]
    for start, stop in itertools.pairwise(edges):
        span = TokenSpan(tokens[start:stop], start, blocks, 0)
        runner.run([span])
        follow = TokenSpan(tokens[start + 1 : stop + 1], start, blocks, wanted or stop - start)
        rows.append(runner.draft(np.arange(stop - start), [follow]).numpy().copy())
    return np.concatenate(rows)


@pytest.mark.parametrize("hidden_state", ["before_norm", "after_norm"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_float64(tmp_path, rng, device, shape, hidden_state):
    config, weights = write_mtp_checkpoint(tmp_path, **SHAPES[shape])
    with ek.LLM.from_pretrained(
        tmp_path, device=device, speculative_config=options(hidden_state)
    ) as llm:
        for ids in random_ids(rng, 2, 3, 70, vocab_size=config["vocab_size"]):
            expected = expected_logits(config, weights, ids, hidden_state)
            assert np.abs(draft_logits(llm, ids) - expected).max() < 1e-4


@pytest.mark.parametrize("hidden_state", ["before_norm", "after_norm"])
def test_behind_its_own_draft(tmp_path, rng, hidden_state):
    config, weights = write_mtp_checkpoint(tmp_path)
    ids, (token,) = random_ids(rng, 40, 1)
    with load(tmp_path, speculative_config=options(hidden_state)) as llm:
        assert len(draft_logits(llm, ids, wanted=3)) == 3
        tokens = np.array([*ids, token], np.int64)
        blocks = np.arange(2, dtype=np.int32)[::-1].copy()
        # Of the rows that were wanted the last one is gone on from.
        span = TokenSpan(tokens[-1:], len(ids) - 1, blocks, 1)
        actual = llm._engine._runner.draft(np.array([2]), [span]).numpy()
    expected = expected_behind_draft(config, weights, ids, token, hidden_state)
    assert actual.shape == (1, config["vocab_size"])
    assert np.abs(actual[0] - expected).max() < 1e-4


SMALL = {
    "dense": {},
    "21b": MOE_SHAPES["21b"],
    "300b": {**MOE_SHAPES["300b"], "moe_layer_start_index": 1},
}


@pytest.mark.parametrize(
    ("shape", "quantization", "count"),
    [
        ("dense", None, 1),
        ("dense", None, 3),
        ("21b", None, 1),
        ("21b", None, 3),
        ("21b", "wint8", 1),
        ("21b", "wint4", 2),
        ("300b", None, 2),
    ],
)
def test_answers_are_those_without_drafts(tmp_path, rng, device, shape, quantization, count):
    write_mtp_checkpoint(tmp_path, noise=0.003, **{**SMALL[shape], "num_hidden_layers": 2})
    prompts = random_ids(rng, 3, 34)
    params = ek.SamplingParams(max_tokens=7, ignore_eos=True, temperature=0.7, seed=2)
    answers = []
    for config in (None, {**MTP, "num_speculative_tokens": count}):
        with load(
            tmp_path,
            device=device,
            quantization=quantization,
            speculative_config=config,
            max_num_seqs=2,
        ) as llm:
            outputs = llm.generate(prompt_token_ids=prompts, params=params)
            answers.append([output.outputs for output in outputs])
            accepted = llm.stats()["accepted_tokens"]
    assert answers[0] == answers[1]
    assert accepted >= 4


def test_which_hidden_state_makes_a_difference(tmp_path, rng):
    config, weights = write_mtp_checkpoint(tmp_path)
    (ids,) = random_ids(rng, 20)
    one, other = (expected_logits(config, weights, ids, h) for h in ("before_norm", "after_norm"))
    assert np.abs(one - other).max() > 0.1


def test_bfloat16_is_near_float64(tmp_path, rng):
    config, weights = write_mtp_checkpoint(tmp_path, dtype="bfloat16")
    (ids,) = random_ids(rng, 60)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", speculative_config=MTP) as llm:
        actual = draft_logits(llm, ids)
    expected = expected_logits(config, weights, ids, "before_norm")
    assert np.abs(actual - expected).max() < 0.06
    assert np.abs(actual - expected).mean() < 0.01


def test_in_pieces_as_at_once(tmp_path, rng):
    write_mtp_checkpoint(tmp_path)
    (ids,) = random_ids(rng, 80)
    with ek.LLM.from_pretrained(tmp_path, device="cpu", speculative_config=MTP) as llm:
        expected = draft_logits(llm, ids)
        for cuts in ((1,), (31, 32, 33), (64,), tuple(range(1, 79))):
            assert np.array_equal(draft_logits(llm, ids, cuts), expected)


@pytest.mark.parametrize("quantization", ["wint8", "w8a8"])
def test_quantised_while_loading(tmp_path, rng, quantization):
    write_mtp_checkpoint(tmp_path)
    (ids,) = random_ids(rng, 40)
    logits = []
    for method in (None, quantization):
        with ek.LLM.from_pretrained(
            tmp_path, device="cpu", quantization=method, speculative_config=MTP
        ) as llm:
            logits.append(draft_logits(llm, ids))
    assert 0 < np.abs(logits[0] - logits[1]).mean() < 0.03


# ------------------------------------------------------------------------------------------- files


def rewrite(folder, weights) -> None:
    safetensors_bytes.save(folder / "model.safetensors", weights)


def load(folder, **changes) -> ek.LLM:
    return ek.LLM.from_pretrained(
        folder,
        **{"device": "cpu", "speculative_config": MTP, "kv_cache_memory": 1 << 20, **changes},
    )


def turned(weights: dict) -> dict:
    return {**weights, PROJECTION: weights[PROJECTION].T.copy()}


def paddle(weights: dict) -> dict:
    """Every linear layer transposed, also the one whose name ends in a number."""
    stored = to_paddle(weights)
    name = PROJECTION.replace("model.", "ernie.")
    return {**stored, name: weights[PROJECTION].T.copy()}


def paddle_turned(weights: dict) -> dict:
    return {**to_paddle(weights), PROJECTION.replace("model.", "ernie."): weights[PROJECTION]}


@pytest.mark.parametrize("stored", [turned, paddle, paddle_turned])
def test_every_way_of_storing_it(tmp_path, rng, stored):
    _, weights = write_mtp_checkpoint(tmp_path)
    (ids,) = random_ids(rng, 30)
    with load(tmp_path) as llm:
        expected = draft_logits(llm, ids)
    rewrite(tmp_path, stored(weights))
    with load(tmp_path) as llm:
        assert np.array_equal(draft_logits(llm, ids), expected)


def test_asked_for_and_not_there(tmp_path):
    _, weights = write_mtp_checkpoint(tmp_path)
    rewrite(tmp_path, {name: array for name, array in weights.items() if "mtp" not in name})
    with pytest.raises(ek.ConfigError, match=r"checkpoint has none \(model.mtp_linear_proj.0"):
        load(tmp_path)
    with load(tmp_path, speculative_config=None) as llm:
        assert llm.model.mtp is None


@pytest.mark.parametrize(
    "missing",
    [PROJECTION, "model.mtp_emb_norm.0.weight", "model.mtp_block.0.mlp.down_proj.weight"],
)
def test_only_a_part_is_there(tmp_path, missing):
    _, weights = write_mtp_checkpoint(tmp_path)
    rewrite(tmp_path, {name: array for name, array in weights.items() if name != missing})
    with pytest.raises(ek.WeightError, match=f"1 tensors missing: '{missing}'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (PROJECTION, (48, 95), r"shape \[48, 95\], expected \[48, 96\] from hidden_size"),
        ("model.mtp_hidden_norm.0.weight", (47,), r"shape \[47\], expected \[48\]"),
        ("model.mtp_block.0.mlp.up_proj.weight", (48, 70), r"expected \[70, 48\]"),
    ],
)
def test_of_another_shape(tmp_path, name, shape, expected):
    _, weights = write_mtp_checkpoint(tmp_path)
    rewrite(tmp_path, {**weights, name: np.zeros(shape, np.float32)})
    with pytest.raises(ek.WeightError, match=expected):
        load(tmp_path)
    with load(tmp_path, speculative_config=None):
        pass


def test_not_asked_for_it_takes_no_memory(tmp_path, caplog):
    caplog.set_level("INFO", "ernie_kernels")
    write_mtp_checkpoint(tmp_path)
    with load(tmp_path, speculative_config=None) as llm:
        without = llm.stats()
        assert llm._engine._runner._drafter is None
    told = "12 tensors of a multi-token prediction module left out: speculative_config uses them"
    assert told in caplog.messages
    caplog.clear()
    with load(tmp_path) as llm:
        assert llm.stats()["weight_bytes"] > without["weight_bytes"]
        assert told not in caplog.messages
        # Four layers share what three had.
        of_block = [s["kv_cache_bytes"] // s["num_blocks"] for s in (llm.stats(), without)]
        assert of_block[0] * 3 == of_block[1] * 4


# ---------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("mtp", TypeError, "speculative_config: expected a dict, got str"),
        ({}, ek.ArgumentError, "speculative_config: method is missing"),
        ({"method": "mtp"}, ek.ArgumentError, "num_speculative_tokens is missing"),
        ({**MTP, "method": "eagle"}, ek.ArgumentError, "method: expected one of mtp, got 'eagle'"),
        ({**MTP, "model": "x"}, ek.ArgumentError, "key: expected one of method, num_spec"),
        ({**MTP, 3: "x"}, TypeError, "key: expected str, got int"),
        ({**MTP, "num_speculative_tokens": 0}, ek.ArgumentError, r"expected 1\.\.8, got 0"),
        ({**MTP, "num_speculative_tokens": 9}, ek.ArgumentError, r"expected 1\.\.8, got 9"),
        ({**MTP, "num_speculative_tokens": 1.0}, TypeError, "expected an integer, got float"),
        ({**MTP, "hidden_state": "last"}, ek.ArgumentError, "before_norm, after_norm, got 'last'"),
        ({**MTP, "hidden_state": None}, TypeError, "hidden_state: expected str, got NoneType"),
    ],
)
def test_wrong_options(tmp_path, given, error, message):
    with pytest.raises(error, match=message):
        load(tmp_path, speculative_config=given)


# ------------------------------------------------------------------------- the live comparison


@pytest.mark.oracle
@pytest.mark.parametrize("hidden_state", ["before_norm", "after_norm"])
def test_equals_layers_of_transformers(tmp_path, rng, hidden_state):
    """No class of transformers has the module: its own layers, put together as it is defined."""
    import torch
    from transformers import Ernie4_5ForCausalLM
    from transformers.models.ernie4_5.modeling_ernie4_5 import Ernie4_5DecoderLayer, Ernie4_5RMSNorm

    config, weights = write_mtp_checkpoint(tmp_path)
    (ids,) = random_ids(rng, 50)
    with load(tmp_path, speculative_config=options(hidden_state)) as llm:
        actual = draft_logits(llm, ids)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    rewrite(tmp_path, {name: array for name, array in weights.items() if "mtp" not in name})
    whole = Ernie4_5ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    def norm(name):
        layer = Ernie4_5RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        layer.weight.data = tensors[f"model.mtp_{name}_norm.0.weight"]
        return layer

    block = Ernie4_5DecoderLayer(whole.config, 0).eval()
    prefix = "model.mtp_block.0."
    block.load_state_dict(
        {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    )
    kept = []  # what goes into the final norm
    whole.model.norm.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    tokens = torch.tensor([ids])
    with torch.no_grad():
        whole(tokens)
        hidden = kept[0][:, :-1]
        if hidden_state == "after_norm":
            hidden = whole.model.norm(hidden)
        e = norm("emb")(whole.model.embed_tokens(tokens[:, 1:]))
        u = torch.cat([e, norm("hidden")(hidden)], dim=-1) @ tensors[PROJECTION].T
        positions = torch.arange(len(ids) - 1)[None]
        count = len(ids) - 1
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        u = block(
            u,
            position_embeddings=whole.model.rotary_emb(u, positions),
            attention_mask=mask,
            position_ids=positions,
        )
        u = u[0] if isinstance(u, tuple) else u
        expected = whole.lm_head(whole.model.norm(u))[0].numpy()
    assert np.abs(actual - expected).max() < 1e-4


def test_a_config_may_tell_of_the_module(tmp_path):
    write_mtp_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    with load(tmp_path) as llm:
        assert llm.model.mtp is not None
