"""The door: arguments, limits, state after errors and interrupts, threads."""

from __future__ import annotations

import _thread
import gc
import json
import logging
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import ernie_kernels as ek
import tokenizer_files
from ernie_kernels import _core
from ernie_kernels.runner.capacity import CachePlan
from tiny_checkpoint import random_ids, write_checkpoint, write_checkpoint_with_tokenizer

PARAMS = ek.SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint_with_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory):
    """A checkpoint without a tokenizer."""
    folder = tmp_path_factory.mktemp("bare")
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=64) as model:
        yield model


# --------------------------------------------------------------------------------------- loading


def test_import_is_light():
    code = (
        "import sys, ernie_kernels as ek; heavy = {'jinja2', 'numpy', 'sentencepiece', "
        "'tokenizers', 'torch', 'transformers', 'tqdm'} & set(sys.modules); assert not heavy, heavy; "
        "ek.LLM, ek.SamplingParams; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'LMM'"):
        _ = ek.LMM


def test_attributes_and_stats(llm):
    assert (llm.device, llm.dtype, llm.max_model_len) == ("cpu", "float32", 64)
    assert llm.config.num_hidden_layers == 3
    assert llm.tokenizer.vocab_size < llm.config.vocab_size
    stats = llm.stats()
    assert stats["num_blocks"] == stats["num_free_blocks"] == 32 * 64 // stats["block_size"]
    # keys and values of 3 layers, 2 heads of 16, float32
    assert stats["kv_cache_bytes"] == stats["num_blocks"] * stats["block_size"] * 2 * 3 * 2 * 16 * 4
    llm.generate(prompt_token_ids=[[1, 2, 3]], params=PARAMS)
    after = llm.stats()
    assert after["prompt_tokens"] - stats["prompt_tokens"] == 3
    assert after["generated_tokens"] - stats["generated_tokens"] == 8


def test_one_log_line_tells_what_was_loaded(folder, caplog):
    with caplog.at_level(logging.INFO, "ernie_kernels"):
        ek.LLM.from_pretrained(folder, device="cpu", kv_cache_memory=100_000).close()
    lines = [r.getMessage() for r in caplog.records if "cache of" in r.getMessage()]
    (line,) = lines
    for part in ("float32 on cpu", ek.cpu_tier(), "threads", "model length 128 of 2048"):
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "tpu"}, ek.ArgumentError, "device: expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, ek.ArgumentError, "device: expected auto"),
        ({"device": 0}, TypeError, "device: expected str, got int"),
        ({"device": "cuda:99"}, ek.DeviceError, "device: cuda:99 needed"),
        ({"dtype": "float16"}, ek.ArgumentError, "dtype: expected one of auto, float32, bfloat16"),
        ({"dtype": None}, TypeError, "dtype: expected str, got NoneType"),
        (
            {"quantization": "wint4"},
            ek.ArgumentError,
            "wint4 rounds experts and this model has none",
        ),
        ({"quantization": "int8"}, ek.ArgumentError, "quantization: expected one of wint8, w8a8"),
        ({"quantization": 8}, TypeError, "quantization: expected str or Mapping, got int"),
        (
            {"quantization": {"dense": "wint4"}},
            ek.ArgumentError,
            "quantization: key: expected one of dense_quant_type, moe_quant_type, quantization, got",
        ),
        ({"quantization": {4: "wint4"}}, TypeError, "quantization: key: expected str, got int"),
        (
            {"quantization": {"dense_quant_type": "int4"}},
            ek.ArgumentError,
            "quantization: dense_quant_type: expected one of wint8, w8a8, wint4, got 'int4'",
        ),
        (
            {"quantization": {"dense_quant_type": 4}},
            TypeError,
            "quantization: dense_quant_type: expected str, got int",
        ),
        (
            {"quantization": {"dense_quant_type": "ccq"}},
            ek.UnsupportedError,
            "quantization: dense_quant_type: ccq is not in this version",
        ),
        (
            {"quantization": {"quantization": "mix_quant"}},
            ek.ArgumentError,
            "quantization: dense_quant_type and moe_quant_type are missing",
        ),
        (
            {"quantization": {"quantization": "wint4", "dense_quant_type": "wint4"}},
            ek.ArgumentError,
            "quantization: quantization: expected one of mix_quant, got 'wint4'",
        ),
        (
            {"quantization": {"dense_quant_type": "wint8", "moe_quant_type": "wint4"}},
            ek.ArgumentError,
            "wint4 rounds experts and this model has none",
        ),
        (
            {"quantization": {"moe_quant_type": "wint8"}},
            ek.ArgumentError,
            "moe_quant_type rounds experts and this model has none; pass dense_quant_type alone",
        ),
        ({"kv_cache_dtype": "int8"}, ek.UnsupportedError, "the cache is float32"),
        ({"kv_cache_dtype": "bfloat16"}, ek.UnsupportedError, "the cache is float32"),
        ({"kv_cache_dtype": "x"}, ek.ArgumentError, "kv_cache_dtype: expected one of auto"),
        ({"batch_invariant": "yes"}, ek.ArgumentError, "batch_invariant: expected one of auto"),
        ({"max_num_seqs": 0}, ek.ArgumentError, "max_num_seqs: expected 1..1024, got 0"),
        ({"max_num_seqs": True}, TypeError, "max_num_seqs: expected an integer, got bool"),
        ({"max_model_len": 0}, ek.ArgumentError, "max_model_len: expected 1.."),
        ({"max_model_len": 4096}, ek.ArgumentError, "max_model_len: expected 1..2048"),
        ({"kv_cache_memory": 10}, ek.ArgumentError, "kv_cache_memory: expected at least"),
        ({"kv_cache_memory": 1.5}, TypeError, "kv_cache_memory: expected an integer"),
        ({"kv_cache_memory": 100_000, "max_model_len": 2048}, ek.CapacityError, "needs"),
        ({"num_threads": 0}, ek.ArgumentError, "num_threads: expected 1..1024"),
        ({"path": 5}, TypeError, "path: expected str or PathLike, got int"),
        (
            {"path": "no/such-folder"},
            ek.ConfigError,
            "path: 'such-folder' is not a folder; pass the one",
        ),
        ({"path": "a\0b"}, ek.ConfigError, "is not a folder"),
    ],
    ids=str,
)
def test_loading_refuses(folder, arguments, error, message):
    with pytest.raises(error) as caught:
        ek.LLM.from_pretrained(**{"path": folder, "device": "cpu", **arguments})
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_model_length_is_what_the_cache_holds(folder):
    with ek.LLM.from_pretrained(folder, device="cpu", kv_cache_memory=100_000) as llm:
        assert llm.max_model_len == 128
        llm.generate(prompt_token_ids=[[1] * 120], params=PARAMS)


def test_closed(folder):
    llm = ek.LLM.from_pretrained(folder, device="cpu")
    stream = llm.generate("Hello", PARAMS, stream=True)
    next(stream)
    llm.close()
    llm.close()
    for call in (
        lambda: llm.forward([[1]]),
        lambda: llm.generate("a"),
        lambda: llm.chat([{"role": "user", "content": "a"}]),
        lambda: next(stream),
    ):
        with pytest.raises(ek.ArgumentError, match="closed"):
            call()


# ------------------------------------------------------------------------------------- bad input

GENERATE = [
    ({}, ek.InputError, "expected either prompts or prompt_token_ids"),
    ({"prompts": "a", "prompt_token_ids": [[1]]}, ek.InputError, "expected either prompts or"),
    ({"prompts": 5}, TypeError, "prompts: expected a list, got int"),
    ({"prompts": [5]}, TypeError, "prompts[0]: expected a str, got int"),
    ({"prompts": ["a", None]}, TypeError, "prompts[1]: expected a str, got NoneType"),
    ({"prompts": ["a", "\ud800"]}, ek.InputError, "prompts[1]: lone surrogate U+D800 at position 0"),
    ({"prompts": "a" * (16 << 20 | 1)}, ek.LimitError, "prompts[0]: expected at most 16777216 bytes"),
    ({"prompts": "a", "stream": "no"}, TypeError, "stream: expected bool, got str"),
    ({"prompts": ["a"] * 1025}, ek.LimitError, "prompts: expected at most 1024 prompts, got 1025"),
    ({"prompt_token_ids": "a"}, TypeError, "prompt_token_ids: expected a list, got str"),
    ({"prompt_token_ids": [1]}, TypeError, "prompt_token_ids[0]: expected a list of token ids"),
    ({"prompt_token_ids": [[]]}, ek.InputError, "prompt_token_ids[0]: expected at least one token, got 0 tokens"),
    ({"prompt_token_ids": [[1], [5, -1]]}, ek.InputError, "prompt_token_ids[1]: position 1: expected an id 0..659 (vocab_size=660), got -1"),
    ({"prompt_token_ids": [[660]]}, ek.InputError, "position 0: expected an id 0..659 (vocab_size=660), got 660"),
    ({"prompt_token_ids": [[1 << 70]]}, ek.InputError, "got 1180591620717411303424"),
    ({"prompt_token_ids": [[1.0]]}, TypeError, "position 0: expected an integer, got float"),
    ({"prompt_token_ids": [[True]]}, TypeError, "position 0: expected an integer, got bool"),
    ({"prompt_token_ids": [np.zeros(3)]}, TypeError, "array of float64, rank 1"),
    ({"prompt_token_ids": [[1] * 57]}, ek.LimitError, "57 tokens and max_tokens=8 make 65, more than the model length of 64"),
    ({"prompt_token_ids": [[1] * 65]}, ek.LimitError, "65 tokens, more than the model length of 64"),
    ({"prompts": "a", "params": {}}, TypeError, "params: expected SamplingParams, got dict"),
    ({"prompts": "a", "params": [PARAMS] * 2}, ek.InputError, "params: expected one for each of 1 prompts, got 2"),
    ({"prompts": "a", "params": ek.SamplingParams(stop_token_ids=[1, 660])}, ek.InputError, "stop_token_ids: position 1: expected an id 0..659 (vocab_size=660), got 660"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "message"), GENERATE)
@pytest.mark.parametrize("stream", [False, True])
def test_generate_refuses_and_nothing_changes(llm, arguments, error, message, stream):
    good = llm.generate(prompt_token_ids=[[1, 2, 3]], params=PARAMS)
    before = llm.stats()
    with pytest.raises(error) as caught:
        llm.generate(**{"params": PARAMS, "stream": stream, **arguments})
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert len(str(caught.value)) <= 512
    assert llm.stats() == before
    again = llm.generate(prompt_token_ids=[[1, 2, 3]], params=PARAMS)
    assert [output.outputs for output in again] == [output.outputs for output in good]


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (5, TypeError, "prompt_token_ids: expected a list, got int"),
        (
            [[1], []],
            ek.InputError,
            "prompt_token_ids[1]: expected at least one token, got 0 tokens",
        ),
        ([[1, 660]], ek.InputError, "position 1: expected an id 0..659"),
        ([[1] * 65], ek.LimitError, "65 tokens, more than the model length of 64"),
    ],
)
def test_forward_refuses(llm, ids, error, message):
    before = llm.stats()
    with pytest.raises(error) as caught:
        llm.forward(ids)
    assert message in str(caught.value)
    assert llm.stats() == before


def test_chat_refuses(llm):
    before = llm.stats()
    with pytest.raises(ek.InputError, match="role"):
        llm.chat([{"role": "robot", "content": "a"}])
    with pytest.raises(ek.LimitError, match="model length of 64"):
        llm.chat([{"role": "user", "content": "a"}], ek.SamplingParams(max_tokens=60))
    assert llm.stats() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"params": 5}, TypeError, "params: expected SamplingParams, got int"),
        ({"params": [PARAMS, PARAMS]}, ek.InputError, "params: expected one for each of 1 prompts"),
        ({"stream": 1}, TypeError, "stream: expected bool, got int"),
        ({"enable_thinking": "no"}, TypeError, "enable_thinking: expected bool, got str"),
        ({"tools": 5}, TypeError, "tools: expected a list, got int"),
        (
            {"chat_template_kwargs": 5},
            TypeError,
            "chat_template_kwargs: expected a dict, got int",
        ),
        (
            {"chat_template_kwargs": {5: 1}},
            TypeError,
            "chat_template_kwargs: expected names as keys, got int",
        ),
        (
            {"chat_template_kwargs": {"messages": []}},
            ek.InputError,
            "chat_template_kwargs: 'messages' is an argument of chat itself",
        ),
    ],
    ids=str,
)
def test_chat_names_the_wrong_argument(llm, arguments, error, message):
    with pytest.raises(error) as caught:
        llm.chat([{"role": "user", "content": "a"}], **arguments)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_empty_batch(llm):
    assert llm.forward([]) == []
    assert llm.generate([]) == []
    assert llm.generate(prompt_token_ids=[]) == []
    assert list(llm.generate([], stream=True)) == []


def test_numpy_ids_and_integers(llm):
    expected = llm.forward([[1, 2, 3]])[0]
    for ids in (np.array([1, 2, 3], np.int32), (1, 2, 3), [np.int64(1), np.uint8(2), 3]):
        assert np.array_equal(llm.forward([ids])[0], expected)


def test_without_a_tokenizer(bare_folder):
    with ek.LLM.from_pretrained(bare_folder, device="cpu") as llm:
        assert llm.tokenizer is None
        (output,) = llm.generate(prompt_token_ids=[[1, 2]], params=PARAMS)
        assert output.outputs[0].text is None
        assert len(output.outputs[0].token_ids) == 8
        chunks = list(llm.generate(prompt_token_ids=[[1, 2]], params=PARAMS, stream=True))
        assert {chunk.delta for chunk in chunks} == {None}
        for call in (
            lambda: llm.generate("text"),
            lambda: llm.generate(prompt_token_ids=[[1]], params=ek.SamplingParams(stop="a")),
            lambda: llm.chat([{"role": "user", "content": "a"}]),
        ):
            with pytest.raises(ek.ConfigError, match=r"tokenizer\.model or tokenizer\.json"):
                call()


# ----------------------------------------------------------------------- capacity and interruption


def test_requests_wait_for_blocks(folder, rng):
    """A cache of four blocks serves twenty requests, a few at a time."""
    prompts = random_ids(rng, *rng.integers(1, 80, 20))
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        expected = llm.generate(prompt_token_ids=prompts, params=PARAMS)
        logits = llm.forward(prompts)
    with ek.LLM.from_pretrained(folder, device="cpu", kv_cache_memory=4 * 24576) as llm:
        assert llm.stats()["num_blocks"] == 4
        actual = llm.generate(prompt_token_ids=prompts, params=PARAMS)
        assert [a.outputs for a in actual] == [e.outputs for e in expected]
        for a, b in zip(llm.forward(prompts), logits, strict=True):
            assert np.array_equal(a, b)
        assert llm.stats()["num_free_blocks"] == 4


@pytest.mark.parametrize("max_num_seqs", [1, 32, 256, 512, 1024])
def test_a_step_has_room_for_prompts_beside_all_answers(folder, max_num_seqs):
    """Not for a token or two, the little that so many answers may leave of it."""
    with ek.LLM.from_pretrained(
        folder, device="cpu", max_num_seqs=max_num_seqs, max_model_len=32
    ) as llm:
        assert llm._engine._runner.max_tokens_per_step - max_num_seqs >= 256


def test_unfinished_stream_lets_others_in(folder):
    """It holds the whole cache and nobody reads it: the calls of others advance it."""
    with ek.LLM.from_pretrained(folder, device="cpu", kv_cache_memory=4 * 24576) as llm:
        alone = llm.generate(prompt_token_ids=[[1] * 110], params=PARAMS)[0]
        expected = llm.generate(prompt_token_ids=[[1]], params=PARAMS)[0].outputs
        stream = llm.generate(prompt_token_ids=[[1] * 110], params=PARAMS, stream=True)
        next(stream)
        assert llm.stats()["num_free_blocks"] == 0
        assert llm.generate(prompt_token_ids=[[1]], params=PARAMS)[0].outputs == expected
        assert llm.stats()["num_free_blocks"] == 4
        assert [*stream][-1].output.outputs == alone.outputs


def call_for_ever(llm: ek.LLM, kind: str) -> None:
    prompts = [[1] * 300] * 12
    params = ek.SamplingParams(max_tokens=1500, ignore_eos=True)
    while True:
        if kind == "forward":
            llm.forward(prompts)
        elif kind == "stream":
            for _ in llm.generate(prompt_token_ids=prompts, params=params, stream=True):
                pass
        else:
            llm.generate(prompt_token_ids=prompts, params=params)


def interrupted(call, delay: float) -> tuple[BaseException, float]:
    """What ``call`` raises when Ctrl-C comes ``delay`` seconds after its start, and its duration.

    Whatever happens, the interrupt strikes in here and not in the test runner.
    """

    def interrupt():
        time.sleep(delay)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    start = time.perf_counter()
    try:
        thread.start()
        call()
    except BaseException as error:  # noqa: BLE001
        raised, duration = error, time.perf_counter() - start
    try:
        thread.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    return raised, duration


@pytest.mark.parametrize("delay", [0.001, 0.02, 0.11, 0.3])
@pytest.mark.parametrize("kind", ["generate", "stream", "forward"])
def test_interrupt_leaves_the_model_usable(folder, delay, kind):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        expected = llm.forward([[1, 2, 3]])[0]
        error, duration = interrupted(lambda: call_for_ever(llm, kind), delay)
        assert type(error) is KeyboardInterrupt
        assert duration < delay + 5  # a second, on a machine that has time
        del error  # its traceback holds the stream
        gc.collect()
        assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
        llm._engine.check()
        assert np.array_equal(llm.forward([[1, 2, 3]])[0], expected)


def test_cache_that_no_machine_holds(folder, monkeypatch):
    gc.collect()
    held = _core.cpu_bytes_allocated()
    with monkeypatch.context() as patch:
        # Beyond any address space, so that no setting of the system can grant it.
        patch.setattr("ernie_kernels.load_model.plan_cache", lambda **_: CachePlan(1 << 36, 64))
        with pytest.raises(
            ek.OutOfMemoryError, match=r"^loading the model: .* could not allocate \d+ bytes"
        ):
            ek.LLM.from_pretrained(folder, device="cpu")
    gc.collect()
    assert _core.cpu_bytes_allocated() == held
    with ek.LLM.from_pretrained(folder, device="cpu", max_model_len=64) as llm:
        assert llm.forward([[1, 2]])[0].shape == (2, tokenizer_files.VOCAB_SIZE)


def test_logits_that_do_not_fit_are_refused_before_they_are_computed(llm, monkeypatch):
    expected = llm.forward([[1, 2, 3]])[0]
    with monkeypatch.context() as patch:
        patch.setattr("ernie_kernels.calls.available_host_memory", lambda: 1000)
        with pytest.raises(ek.OutOfMemoryError, match="forward: 7920 bytes of logits needed, 1000"):
            llm.forward([[1, 2, 3]])
    assert np.array_equal(llm.forward([[1, 2, 3]])[0], expected)


def test_error_in_a_step_gives_the_blocks_back(llm, monkeypatch):
    from ernie_kernels.runner.model_runner import ModelRunner

    expected = llm.generate("Hello", PARAMS)[0].outputs
    run, calls = ModelRunner.run, []

    def failing(self, spans):
        calls.append(len(spans))
        if len(calls) == 3:
            raise MemoryError
        return run(self, spans)

    monkeypatch.setattr(ModelRunner, "run", failing)
    with pytest.raises(ek.OutOfMemoryError, match="generation: host memory exhausted"):
        llm.generate("Hello", PARAMS)
    monkeypatch.undo()
    assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]
    assert llm.generate("Hello", PARAMS)[0].outputs == expected


def test_threads_get_the_same_as_alone(llm):
    prompts = [[i + 1] * (i + 1) for i in range(6)]
    expected = [llm.generate(prompt_token_ids=[ids], params=PARAMS)[0].outputs for ids in prompts]
    results: list = [None] * 6

    def work(index):
        for _ in range(3):
            if index % 2:
                chunks = llm.generate(prompt_token_ids=[prompts[index]], params=PARAMS, stream=True)
                results[index] = list(chunks)[-1].output.outputs
            else:
                output = llm.generate(prompt_token_ids=[prompts[index]], params=PARAMS)
                results[index] = output[0].outputs
            llm.forward([prompts[index]])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected
    assert llm.stats()["num_free_blocks"] == llm.stats()["num_blocks"]


def test_config_errors_come_through(tmp_path):
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(ek.ConfigError, match="hidden_act"):
        ek.LLM.from_pretrained(tmp_path, device="cpu")
