"""One request that breaks the arithmetic: its neighbours' bits do not change."""

from __future__ import annotations

import os

import numpy as np
import pytest
from recorder import Recorder, fill_taken_blocks_with_nan

import ernie_kernels as ek
import safetensors_bytes
from tiny_checkpoint import random_ids, write_checkpoint

# tests/long/run.sh raises it.
TRIALS = int(os.environ.get("ERNIE_TEST_ISOLATION_TRIALS", "100"))
HOSTILE = 7
CONFIG = {"tie_word_embeddings": False, "num_hidden_layers": 2}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def llm(request, tmp_path_factory):
    """One token has what no other has, a last channel; projected, it makes infinite keys and values."""
    folder = tmp_path_factory.mktemp("model")
    _, weights = write_checkpoint(folder, dtype=request.param, **CONFIG)
    weights["model.embed_tokens.weight"][:, -1] = 0
    weights["model.embed_tokens.weight"][HOSTILE, -1] = 1
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[-1] = 0
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            array[:, -1] = 3e38
    safetensors_bytes.save(folder / "model.safetensors", weights)
    with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=96, max_num_seqs=6) as model:
        fill_taken_blocks_with_nan(model)
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


def test_the_token_breaks_keys_and_values(llm):
    """That is, the test above tests something: what it leaves in the cache is not finite."""
    with pytest.raises(ek.NumericError):
        llm.generate(prompt_token_ids=[[HOSTILE] * 40], params=ek.SamplingParams(max_tokens=1))
    caches = [cache.numpy() for cache in (llm._engine._runner._kv_caches[0].v_cache,)]
    held = [c[:, :, 0].astype(np.float32) for c in caches]
    assert any(np.isinf(values).any() for values in held)
