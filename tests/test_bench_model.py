"""The whole-model bench on tiny checkpoints: what it keeps, and that it times no wrong model."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
from tiny_checkpoint import write_checkpoint

ROOT = Path(__file__).parent.parent
# llama.cpp's types come in blocks of 32.
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "bos_token_id": 1}
TINY_EXPERTS = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 203,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
                "moe_num_experts": 8, "moe_k": 3, "moe_intermediate_size": 96}  # fmt: skip


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    threads = ek.num_threads()
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield
    ek.set_num_threads(threads)


@pytest.fixture
def bench_model(monkeypatch):
    """With ceilings that are quick to measure."""
    import bench_model

    from model_records import Ceilings

    monkeypatch.setattr(Ceilings, "OUT_FEATURES", 32)
    return bench_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_checkpoint(folder, dtype="bfloat16", **SHAPE)
    return folder


def test_runs_without_peers(bench_model, checkpoint, tmp_path, monkeypatch, capsys):
    for name in ("torch", "transformers", "llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    load = ek.LLM.from_pretrained

    def older_version(*args, quantization, **options):
        if quantization is not None:
            raise ek.UnsupportedError("refused")
        return load(*args, **options)

    monkeypatch.setattr(ek.LLM, "from_pretrained", older_version)

    target = tmp_path / "results.jsonl"
    options = "--threads 1 2 --quantization none w8a8 --prefill 40 --context 20 --new-tokens 3"
    bench_model.main(
        [str(checkpoint), *options.split(), "--rounds", "2", "--json", str(target),
         "--cache", str(tmp_path)]
    )  # fmt: skip
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["threads"], row["case"], row["ours"]) for row in rows] == [
        (threads, case, "bfloat16")
        for threads in (1, 2)
        for case in ("decode after 20", "prefill 40")
    ]
    for row in rows:
        assert 0 < row["best_us"] <= row["p25_us"] <= row["median_us"]
        assert row["peers"] == {}
        assert row["agreement"]["regret"] == 0  # of greedy tokens, with itself as the reference
        assert row["tokens_per_s"] > 0
    assert [row["samples"] for row in rows] == [6, 2, 6, 2]
    out, err = capsys.readouterr()
    for how in ("pip install torch transformers", "pip install gguf llama-cpp-python"):
        assert how in err
    assert "left out: ours w8a8: refused" in err
    assert "not measured" in out


def test_a_prompt_that_the_cache_knows_is_not_timed(checkpoint):
    from model_peers import OurEngine

    engine = OurEngine(checkpoint, "auto", None)
    prompt = list(range(3, 70))
    assert len(list(engine.stream(prompt, 2))) == 2
    with pytest.raises(RuntimeError, match="prefix cache"):
        list(engine.stream(prompt, 2))


@pytest.mark.oracle
def test_transformers_agrees(bench_model, checkpoint, tmp_path):
    target = tmp_path / "results.jsonl"
    peers = ["transformers/bfloat16", "transformers/float32"]
    options = "--threads 1 --quantization none --prefill --context 20 --new-tokens 3 --rounds 2"
    bench_model.main([str(checkpoint), *options.split(), "--json", str(target), "--peers", *peers])
    (row,) = map(json.loads, target.read_text().splitlines())
    assert list(row["peers"]) == [peer.replace("/", " ") for peer in peers]
    for peer in row["peers"].values():
        assert peer["ratio_best"] == pytest.approx(peer["best_us"] / row["best_us"], abs=0.01)
    assert 0 < row["agreement"]["kl"] < 1e-3


def test_llama_cpp_agrees_and_a_wrong_conversion_does_not(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from random_checkpoint import CONFIG_21B
    from random_checkpoint import write_checkpoint as write_random_checkpoint

    import gguf_file
    from model_agreement import DisagreementError, check, compare_logits
    from model_peers import llama_engines, our_engines

    experts = tmp_path / "experts"
    write_random_checkpoint(experts, CONFIG_21B | TINY_EXPERTS)
    prompt = np.random.default_rng(1).integers(3, 203, 64).tolist()
    check(
        compare_logits(
            our_engines(experts, "auto", ["none"]) + llama_engines(experts, ["BF16"], tmp_path),
            prompt,
        )
    )
    ours = our_engines(checkpoint, "auto", ["none"])
    check(
        compare_logits(ours + llama_engines(checkpoint, ["BF16", "F16", "Q8_0"], tmp_path), prompt)
    )

    read = gguf_file.stored_tensors

    def other_pairing(path):
        tensors = read(path)
        for name, tensor in tensors.items():
            if "q_proj" in name or "k_proj" in name:
                pairs = tensor.reshape(-1, 2, SHAPE["head_dim"] // 2, tensor.shape[1])
                tensors[name] = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.shape)
        return tensors

    monkeypatch.setattr(gguf_file, "stored_tensors", other_pairing)
    with pytest.raises(DisagreementError, match=r"llama\.cpp BF16: KL"):
        check(compare_logits(ours + llama_engines(checkpoint, ["BF16"], tmp_path / "w"), prompt))


def test_a_token_reads_the_experts_that_it_goes_to():
    from model_sizes import flops_of, read_per_token
    from random_checkpoint import CONFIG_0_3B, CONFIG_21B, shapes_of

    from model_timing import ModelCase

    def parameters(config):
        return sum(int(np.prod(shape)) for shape in shapes_of(config).values())

    assert parameters(CONFIG_0_3B) == pytest.approx(0.361e9, abs=0.001e9)
    assert parameters(CONFIG_21B) == pytest.approx(21.825e9, abs=0.001e9)
    assert read_per_token(1000, 4, CONFIG_0_3B) == 1000
    active = read_per_token(parameters(CONFIG_21B) * 2, 16, CONFIG_21B) // 2
    assert active == pytest.approx(3.35e9, abs=0.005e9)
    decode = flops_of(ModelCase(1, 1), CONFIG_21B)
    assert decode == pytest.approx(2 * active, rel=0.01)  # tied: the head is the embedding


def test_experts_that_follow_each_other_are_joined_without_a_copy(tmp_path):
    from random_checkpoint import CONFIG_21B, write_checkpoint

    import gguf_file

    write_checkpoint(tmp_path, CONFIG_21B | TINY_EXPERTS)
    stored = gguf_file.stored_tensors(tmp_path / "model.safetensors")
    joined = gguf_file.with_experts_joined(stored)
    for matrix, kind in gguf_file.NAMES_OF_EXPERTS.items():
        experts = joined[f"blk.1.{kind}.weight"]
        assert len(experts) == TINY_EXPERTS["moe_num_experts"]
        for e, expert in enumerate(experts):
            one = stored[f"model.layers.1.mlp.experts.{e}.{matrix}.weight"]
            assert np.shares_memory(expert, one)
            assert np.array_equal(expert.view(np.uint16), one.view(np.uint16))
    apart = [np.ones((2, 3)), np.zeros((2, 3)), np.ones((2, 3))]
    assert np.array_equal(gguf_file.stacked(apart), np.stack(apart))


class Sleeper:
    """An engine that takes a given time per token and always answers with token 1."""

    def __init__(self, name: str, seconds: float, **options) -> None:
        self.name, self.seconds, self.options = name, seconds, options
        self.weight_bytes, self.answers = 1000, 0

    def stream(self, ids, count):
        self.answers += 1
        for _ in range(count):
            time.sleep(self.seconds)
            yield 1


def test_the_slower_setting_is_tried_and_dropped(rng):
    from model_timing import TRIAL_ROUNDS, ModelCase, time_case

    engines = [Sleeper("a", 0.02, flash=True), Sleeper("a", 0.0, flash=False), Sleeper("b", 0.0)]
    result = time_case(engines, ModelCase(4, 3), rng=rng, vocab_size=50, rounds=TRIAL_ROUNDS + 2,
                       each_round=lambda: None)  # fmt: skip
    assert [engine.answers for engine in engines] == [TRIAL_ROUNDS + 1, *[TRIAL_ROUNDS + 3] * 2]
    assert list(result.seconds) == engines[1:]
    assert result.trials.keys() == {engines[0]}
    assert result.trials[engines[0]] >= 0.02
    assert len(result.seconds[engines[2]]) == 3 * (TRIAL_ROUNDS + 2)
    assert result.answers == {engine: [1, 1, 1, 1] for engine in engines}


def test_a_token_far_from_the_best_is_refused(rng):
    from model_agreement import Agreement, DisagreementError, check, regret

    logits = rng.standard_normal((4, 100)).astype(np.float32)
    best = logits.argmax(-1)
    assert regret(logits, best.tolist()) == 0
    worst = best.copy()
    worst[2] = logits[2].argmin()
    found = regret(logits, worst.tolist())
    assert found > 1  # the least logit is below the mean
    engine = Sleeper("llama.cpp Q8_0", 0)
    check({engine: Agreement("ours bfloat16", kl=0.0, top1=1.0, regret=0.0)})
    for wrong in (
        Agreement("ours bfloat16", kl=0.0, top1=1.0, regret=found),
        Agreement("ours bfloat16", kl=0.5, top1=1.0),
        Agreement("ours bfloat16", kl=float("nan"), top1=1.0),
        Agreement("ours bfloat16", kl=0.0, top1=0.1),
    ):
        with pytest.raises(DisagreementError, match=r"llama\.cpp Q8_0"):
            check({engine: wrong})


def row(ours: str, case: str, p25: float, peers: dict[str, float], share: float) -> dict:
    return {
        "ours": ours,
        "case": case,
        "threads": 2,
        "p25_us": p25,
        "of_read": share,
        "of_matrix": share,
        "of_int8": share,
        "peers": {
            name: {"p25_us": time, "ratio_best": time / p25, "ratio_p25": time / p25 * 1.1,
                   "of_read": 0.4, "of_matrix": 0.4, "of_int8": 0.4}
            for name, time in peers.items()
        },
    }  # fmt: skip


def test_goals_take_the_fastest_of_each_side(capsys):
    from model_goals import Standing, show_goals, standings

    records = [
        row("bfloat16", "decode after 128", 10.0, {"llama.cpp BF16": 11.0}, share=0.8),
        row("wint8", "prefill 512", 9.0, {"llama.cpp Q8_0": 40.0, "llama.cpp Q4_K": 30.0}, 0.5),
        row("w8a8", "prefill 512", 6.0, {"llama.cpp Q8_0": 40.0, "llama.cpp Q4_K": 30.0}, 0.5),
        row("wint4", "decode after 128", 10.0, {"llama.cpp Q4_0": 13.0}, share=0.8),
        row(
            "wint4-all",
            "decode after 128",
            9.0,
            {"llama.cpp Q4_0": 13.0, "llama.cpp Q4_K": 11.0, "llama.cpp Q8_0": 8.0},
            share=0.8,
        ),
    ]
    found = {s.goal.name: s for s in standings(records) if isinstance(s, Standing)}
    assert found.keys() == {"C1b", "C1d", "C3b", "MoE"}
    assert not found["C1b"].is_met
    assert found["C1b"].most_possible == pytest.approx(1.1 / 0.8)  # the floor is within reach
    assert found["C3b"].is_met
    assert found["C3b"].ours["ours"] == "w8a8"
    assert found["C3b"].peer_name == "llama.cpp Q4_K"
    assert (found["C1b"].ceiling, found["C3b"].ceiling) == ("of_read", "of_int8")
    assert (found["C1d"].peer_name, found["C1d"].is_met) == ("llama.cpp Q4_K", False)
    assert (found["MoE"].ours["ours"], found["MoE"].is_met) == ("wint4-all", True)
    show_goals(records)
    lines = capsys.readouterr().out.splitlines()
    assert sum("not measured" in line for line in lines) == 5
    assert sum("MISSED" in line for line in lines) == 2


def test_a_model_without_a_file(monkeypatch):
    """Made while it is loaded, the same every time, and one that computes: no weight is left out."""
    import synthetic_model
    from random_checkpoint import CONFIG_21B, shapes_of

    monkeypatch.setattr(synthetic_model, "POOL_SIZE", 9973)
    config = CONFIG_21B | TINY_EXPERTS
    ids = list(range(3, 40))
    logits = {}
    for quantization in (None, "wint4", "wint4"):
        with synthetic_model.load(
            config, device="cpu", quantization=quantization, max_model_len=64, max_num_seqs=1
        ) as llm:
            logits.setdefault(quantization, []).append(llm.forward([ids])[0])
            speeds = synthetic_model.run(llm, prompt_tokens=9, new_tokens=3)
            weights = llm.stats()["weight_bytes"]
    assert all(speed > 0 for speed in speeds.values())
    assert np.array_equal(*logits["wint4"])
    exact = logits[None][0]
    assert 0.2 < exact.std() < 5
    assert np.abs(logits["wint4"][0] - exact).mean() < 0.3 * exact.std()
    assert weights < synthetic_model.SyntheticCheckpoint(shapes_of(config)).nbytes / 2
