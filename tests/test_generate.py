"""Generation: what comes out, and that it depends on the request alone."""

from __future__ import annotations

import numpy as np
import pytest

import ernie_kernels as ek
import tokenizer_files
from tiny_checkpoint import random_ids, write_checkpoint, write_checkpoint_with_tokenizer

VOCAB = tokenizer_files.VOCAB_SIZE


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = write_checkpoint_with_tokenizer(tmp_path_factory.mktemp("model"), eos_token_id=2)
    with ek.LLM.from_pretrained(folder, device="cpu", max_num_seqs=8) as model:
        yield model


@pytest.fixture(autouse=True)
def _blocks_come_back(llm):
    yield
    assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
    llm._engine.check()


def sampled(**changes) -> ek.SamplingParams:
    return ek.SamplingParams(**{"temperature": 1.0, "seed": 5, "ignore_eos": True, **changes})


def tokens_of(outputs: list[ek.RequestOutput]) -> list[list[int]]:
    return [answer.token_ids for output in outputs for answer in output.outputs]


def test_greedy_is_argmax_of_forward(llm, rng):
    prompts = random_ids(rng, 1, 7, 40, vocab_size=VOCAB)
    outputs = llm.generate(
        prompt_token_ids=prompts, params=ek.SamplingParams(max_tokens=12, ignore_eos=True)
    )
    for ids, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        logits = llm.forward([ids + answer.token_ids])[0]
        logits = logits[len(ids) - 1 : -1, : llm.tokenizer.vocab_size]
        assert answer.token_ids == logits.argmax(-1).tolist()
        assert (answer.finish_reason, answer.stop_reason) == ("length", None)
        assert output.prompt_token_ids == ids
        assert output.prompt is None


def test_text_is_the_decoded_tokens(llm):
    (output,) = llm.generate("Hello there", sampled(max_tokens=30))
    assert output.prompt == "Hello there"
    assert output.prompt_token_ids == llm.tokenizer.encode("Hello there", add_special_tokens=True)
    assert output.outputs[0].text == llm.tokenizer.decode(output.outputs[0].token_ids)


def test_ids_beyond_the_tokenizer_are_never_chosen(llm):
    limit = llm.tokenizer.vocab_size
    assert limit < VOCAB
    outputs = llm.generate(["a"] * 8, sampled(max_tokens=60, temperature=50.0, seed=None))
    assert max(max(ids) for ids in tokens_of(outputs)) < limit


# --------------------------------------------------------------------------------------- endings


def test_end_token_stops_unless_ignored(llm, rng):
    prompts = random_ids(rng, 5, vocab_size=VOCAB)
    free = llm.generate(prompt_token_ids=prompts, params=sampled(max_tokens=20))[0].outputs[0]
    stop = free.token_ids[6]
    at = free.token_ids.index(stop)
    params = sampled(max_tokens=20, stop_token_ids=[stop])
    answer = llm.generate(prompt_token_ids=prompts, params=params)[0].outputs[0]
    assert answer.token_ids == free.token_ids[: at + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.text == llm.tokenizer.decode(free.token_ids[:at])


def test_stop_string_cuts_the_text(llm):
    free = llm.generate("Hello", sampled(max_tokens=40))[0].outputs[0]
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    params = sampled(max_tokens=40, stop=["never there", stop])
    answer = llm.generate("Hello", params)[0].outputs[0]
    assert answer.text == free.text[: free.text.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert answer.token_ids == free.token_ids[: len(answer.token_ids)]
    chunks = list(llm.generate("Hello", params, stream=True))
    assert "".join(chunk.delta for chunk in chunks) == answer.text


def test_max_tokens_wins_over_nothing(llm):
    answer = llm.generate("Hello", sampled(max_tokens=1))[0].outputs[0]
    assert len(answer.token_ids) == 1
    assert answer.finish_reason == "length"


# ------------------------------------------------------------------------------------- streaming


def test_streamed_equals_final(llm):
    params = sampled(max_tokens=25, n=2, logprobs=1)
    prompts = ["Hello", "Nice to meet you", "def wrap(text):"]
    expected = llm.generate(prompts, params)
    texts: dict[tuple[int, int], str] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    last = {}
    for chunk in llm.generate(prompts, params, stream=True):
        key = (chunk.request_index, chunk.index)
        texts[key] = texts.get(key, "") + chunk.delta
        tokens.setdefault(key, []).extend(chunk.token_ids)
        assert len(chunk.logprobs) == len(chunk.token_ids) == 1
        if chunk.output is not None:
            assert chunk.request_index not in last
            last[chunk.request_index] = chunk.output
    assert [last[index] for index in range(3)] == expected
    for output in expected:
        for answer in output.outputs:
            assert texts[output.index, answer.index] == answer.text
            assert tokens[output.index, answer.index] == answer.token_ids


def test_stream_checks_its_arguments_at_once(llm):
    with pytest.raises(ek.InputError, match="0 tokens"):
        llm.generate(prompt_token_ids=[[]], stream=True)


def test_abandoned_stream_gives_its_blocks_back(llm):
    stream = llm.generate(["Hello"] * 3, sampled(max_tokens=50), stream=True)
    next(stream)
    assert llm.stats()["num_free_blocks"] < llm.stats()["num_blocks"]
    stream.close()
    assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]


def test_streams_interleave(llm):
    params = sampled(max_tokens=10)
    alone = tokens_of(llm.generate(["Hello", "text"], params))
    streams = [llm.generate(text, params, stream=True) for text in ("Hello", "text")]
    tokens: list[list[int]] = [[], []]
    for _ in range(10):
        for stream, mine in zip(streams, tokens, strict=True):
            mine += next(stream).token_ids
    assert tokens == alone
    for stream in streams:
        assert list(stream) == []


# ------------------------------------------------------------------------ the request alone counts


def test_batch_makes_no_difference(llm, rng):
    """More requests than run at once, of mixed lengths and parameters."""
    lengths = [*rng.integers(1, 90, 19), 600]
    prompts = random_ids(rng, *lengths, vocab_size=VOCAB)
    params = [
        sampled(
            seed=index,
            max_tokens=int(rng.integers(1, 20)),
            temperature=float(rng.uniform(0, 1.5)),
            top_k=int(rng.integers(0, 50)),
            top_p=float(rng.uniform(0.5, 1)),
            repetition_penalty=float(rng.uniform(0.9, 1.3)),
            presence_penalty=0.5 * (index % 2),
            frequency_penalty=0.3 * (index % 3),
        )
        for index in range(20)
    ]
    together = tokens_of(llm.generate(prompt_token_ids=prompts, params=params))
    alone = [
        tokens_of(llm.generate(prompt_token_ids=[ids], params=each))[0]
        for ids, each in zip(prompts, params, strict=True)
    ]
    assert together == alone


def test_seeds(llm):
    same = [llm.generate("Hello", sampled(max_tokens=12))[0].outputs[0] for _ in range(2)]
    other = llm.generate("Hello", sampled(max_tokens=12, seed=6))[0].outputs[0]
    assert same[0] == same[1]
    assert other.token_ids != same[0].token_ids


def test_drawn_seed_is_told_and_reproduces(llm):
    first, second = (llm.generate("Hello", sampled(seed=None, max_tokens=12))[0] for _ in "ab")
    assert first.seed != second.seed
    again = llm.generate("Hello", sampled(seed=first.seed, max_tokens=12))[0]
    assert again == first


def test_several_answers(llm):
    (output,) = llm.generate("Hello", sampled(n=3, max_tokens=12))
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    (one,) = llm.generate("Hello", sampled(n=1, max_tokens=12))
    assert one.outputs[0] == output.outputs[0]


def test_penalties_change_the_choice(llm):
    plain = ek.SamplingParams(max_tokens=40, ignore_eos=True)
    fresh = ek.SamplingParams(max_tokens=40, ignore_eos=True, repetition_penalty=100.0)
    before, after = (tokens_of(llm.generate("Hello", each))[0] for each in (plain, fresh))
    assert len(set(after)) > len(set(before))


# ------------------------------------------------------------------------------ log-probabilities


def test_logprobs_are_those_of_forward(llm, rng):
    (ids,) = random_ids(rng, 9, vocab_size=VOCAB)
    params = sampled(max_tokens=6, logprobs=3, repetition_penalty=2.0)
    answer = llm.generate(prompt_token_ids=[ids], params=params)[0].outputs[0]
    limit = llm.tokenizer.vocab_size
    logits = llm.forward([ids + answer.token_ids])[0][len(ids) - 1 : -1, :limit].astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert len(answer.logprobs) == len(answer.token_ids)
    for token, row, entries in zip(answer.token_ids, exact, answer.logprobs, strict=True):
        assert next(iter(entries)) == token
        assert set(entries) == {token, *np.argsort(-row)[:3].tolist()}
        for token_id, entry in entries.items():
            assert entry.logprob == pytest.approx(row[token_id], abs=1e-4)
            assert entry.rank == 1 + (row > row[token_id]).sum()
            assert entry.decoded_token == llm.tokenizer.decode([token_id], False)


def test_no_logprobs_unless_asked(llm):
    assert llm.generate("a", sampled(max_tokens=2))[0].outputs[0].logprobs is None
    (answer,) = llm.generate("a", sampled(max_tokens=2, logprobs=0))[0].outputs
    assert [list(entries) for entries in answer.logprobs] == [[t] for t in answer.token_ids]


# ------------------------------------------------------------------------------------------ chat


def test_chat_renders_and_answers(llm):
    messages = [{"role": "user", "content": "Hello"}]
    output = llm.chat(messages, sampled(max_tokens=8))
    text = llm.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=False)
    assert text == "<|begin_of_sentence|>User: Hello\nAssistant: "
    assert output.outputs[0].text == llm.tokenizer.decode(output.outputs[0].token_ids)
    assert output.outputs[0].reasoning is None
    chunks = list(llm.chat(messages, sampled(max_tokens=8), stream=True))
    assert "".join(chunk.delta for chunk in chunks) == output.outputs[0].text
    assert chunks[-1].output == output


# --------------------------------------------------------------------------------- failing alone


def test_a_request_that_is_not_finite_ends_alone(tmp_path, rng):
    """One token makes the logits overflow; the requests without it do not notice."""
    import safetensors_bytes

    _, weights = write_checkpoint(tmp_path, tie_word_embeddings=False)
    # Only token 7 has anything in the last channel, no layer writes to it, and the head makes it
    # infinite.
    weights["model.embed_tokens.weight"][:, -1] = 0
    weights["model.embed_tokens.weight"][7, -1] = 1
    for name, array in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[-1] = 0
    weights["model.norm.weight"][-1] = 3e38
    weights["lm_head.weight"][:, -1] = 1e3
    safetensors_bytes.save(tmp_path / "model.safetensors", weights)
    good = [ids for ids in random_ids(rng, *[10] * 6) if 7 not in ids][:3]
    params = ek.SamplingParams(max_tokens=5, ignore_eos=True, temperature=1.0, seed=1)
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        expected = tokens_of(llm.generate(prompt_token_ids=good, params=params))
        assert all(7 not in ids for ids in expected)
        prompts = [good[0], [5, 5, 7], *good[1:]]
        with pytest.raises(ek.NumericError, match="request 1: the logits after token 2") as caught:
            llm.generate(prompt_token_ids=prompts, params=params)
        outputs = caught.value.outputs
        assert [output.outputs[0].finish_reason for output in outputs] == [
            "length", "error", "length", "length",
        ]  # fmt: skip
        assert tokens_of([outputs[0], *outputs[2:]]) == expected
        stream = llm.generate(prompt_token_ids=prompts, params=params, stream=True)
        reasons = []
        with pytest.raises(ek.NumericError):
            reasons.extend(chunk.finish_reason for chunk in stream)
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
        assert tokens_of(llm.generate(prompt_token_ids=good, params=params)) == expected
