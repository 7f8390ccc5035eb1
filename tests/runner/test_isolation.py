"""One request that breaks the arithmetic: its neighbours' bits do not change."""

from __future__ import annotations

import os

import numpy as np
import pytest
from recorder import Recorder, fill_taken_blocks_with_nan

import ernie_kernels as ek
import safetensors_bytes
from ernie_kernels.runner.batch import TokenSpan
from tiny_checkpoint import MOE_SHAPES, random_ids, write_checkpoint

# tests/long/run.sh raises it.
TRIALS = int(os.environ.get("ERNIE_TEST_ISOLATION_TRIALS", "100"))
HOSTILE = 7
CONFIG = {"tie_word_embeddings": False, "num_hidden_layers": 2}
# Of the last layer only the rows that are sampled from are computed.
EXPERTS = {**MOE_SHAPES["21b"], "tie_word_embeddings": False, "num_hidden_layers": 3}


def break_keys_and_values(weights: dict[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            array[:, -1] = 3e38


def break_routers(weights: dict[str, np.ndarray]) -> None:
    for name, array in weights.items():
        if name.endswith("mlp.gate.weight"):
            array[:, -1] = 3e38


def load(folder, break_by, dtype: str, **changes) -> ek.LLM:
    """One token has what no other has, a last channel; multiplied, it becomes infinite."""
    _, weights = write_checkpoint(folder, dtype=dtype, **changes)
    weights["model.embed_tokens.weight"][:, -1] = 0
    weights["model.embed_tokens.weight"][HOSTILE, -1] = 100
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[-1] = 0
    break_by(weights)
    safetensors_bytes.save(folder / "model.safetensors", weights)
    llm = ek.LLM.from_pretrained(folder, device="cpu", max_model_len=96, max_num_seqs=6)
    fill_taken_blocks_with_nan(llm)
    return llm


MODELS = {
    "float32": (break_keys_and_values, "float32", CONFIG),
    "bfloat16": (break_keys_and_values, "bfloat16", CONFIG),
    "experts-float32": (break_routers, "float32", EXPERTS),
    "experts-bfloat16": (break_routers, "bfloat16", EXPERTS),
}


@pytest.fixture(scope="module", params=MODELS)
def llm(request, tmp_path_factory):
    break_by, dtype, changes = MODELS[request.param]
    with load(tmp_path_factory.mktemp("model"), break_by, dtype, **changes) as model:
        yield model


def requests(rng: np.random.Generator, count: int) -> tuple[list, list]:
    lengths = rng.integers(1, 70, count)
    prompts = random_ids(rng, *lengths)
    prompts = [[token if token != HOSTILE else 8 for token in ids] for ids in prompts]
    params = [
        ek.SamplingParams(
            max_tokens=int(rng.integers(1, 6)),
            ignore_eos=True,
            seed=int(rng.integers(1 << 30)),
            temperature=float(rng.integers(2)),
            logprobs=2,
            repetition_penalty=float(rng.choice([1.0, 1.5])),
        )
        for _ in range(count)
    ]
    return prompts, params


def test_others_do_not_notice(llm):
    rng = np.random.default_rng(11)
    broken = 0
    for _ in range(TRIALS):
        count = int(rng.integers(2, 6))
        prompts, params = requests(rng, count)
        try:
            with Recorder(llm) as recorder:
                expected = llm.generate(prompt_token_ids=prompts, params=params)
        except ek.NumericError:
            continue  # one chose the token by itself
        at = int(rng.integers(count + 1))
        hostile = random_ids(rng, int(rng.integers(1, 60)))[0]
        hostile[int(rng.integers(len(hostile)))] = HOSTILE
        with Recorder(llm) as beside, pytest.raises(ek.NumericError) as caught:
            llm.generate(
                prompt_token_ids=[*prompts[:at], hostile, *prompts[at:]],
                params=[*params[:at], ek.SamplingParams(seed=1 << 40, max_tokens=9), *params[at:]],
            )
        llm._engine.check()
        outputs = caught.value.outputs
        assert outputs.pop(at).outputs[0].finish_reason == "error"
        broken += 1
        assert [o.outputs for o in outputs] == [o.outputs for o in expected]
        logits = {key: row for key, row in beside.logits.items() if key[0] != 1 << 40}
        assert logits == recorder.logits
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
    assert broken > TRIALS / 2
    print(f"\n{TRIALS} trials, {broken} with a request that broke")


# That is, the test above tests something: what is left behind is not finite.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_token_breaks_keys_and_values(tmp_path, dtype):
    with load(tmp_path, break_keys_and_values, dtype, **CONFIG) as llm:
        with pytest.raises(ek.NumericError):
            llm.generate(prompt_token_ids=[[HOSTILE] * 40], params=ek.SamplingParams(max_tokens=1))
        cache = llm._engine._runner._kv_caches[0].v_cache.numpy()
        assert np.isinf(cache[:, :, 0].astype(np.float32)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_expert_can_be_chosen_for_the_token(tmp_path, dtype):
    """Found in the step that reads it, long before the prompt has been read."""
    with load(tmp_path, break_routers, dtype, **EXPERTS) as llm:
        ids = [*range(10, 30), HOSTILE, *range(30, 60)]
        llm._engine._scheduler._max_tokens_per_step = 25
        with pytest.raises(
            ek.NumericError, match="router's logits of token 20 are not finite"
        ) as e:
            llm.generate(prompt_token_ids=[ids, [8, 9]], params=ek.SamplingParams(max_tokens=3))
        assert llm.stats()["prompt_tokens"] <= 25 + 2
        broken, other = e.value.outputs
        assert broken.outputs[0].finish_reason == "error"
        assert len(other.outputs[0].token_ids) == 3
        llm._engine.check()
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]


def test_a_token_that_breaks_a_router_is_flagged(tmp_path):
    with load(tmp_path, break_routers, "float32", **EXPERTS) as llm:
        runner = llm._engine._runner

        def flagged(*prompts):
            spans = [
                TokenSpan(np.array(ids), 0, np.array([i], np.int32), len(ids))
                for i, ids in enumerate(prompts)
            ]
            runner.run(spans)
            return runner.flagged(spans)

        assert flagged([1, 2, 3], [4, 5]) == []
        assert flagged([1, HOSTILE, 3, HOSTILE], [4, 5], [HOSTILE]) == [(0, 1), (2, 0)]
        assert flagged([1, 2], [3]) == []  # nothing stays
        # Behind tokens that are in the cache: positions are those in the sequence.
        ids = np.array([5, 6, HOSTILE])
        spans = [TokenSpan(ids[2:], 2, np.array([0], np.int32), 1)]
        runner.run([TokenSpan(ids[:2], 0, np.array([0], np.int32), 0)])
        runner.run(spans)
        assert runner.flagged(spans) == [(0, 2)]
