"""``verify`` passes what is right and refuses every planted fault, in float32 and bfloat16."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ernie_kernels as ek
import reference_model
import safetensors_bytes
import tokenizer_files
from ernie_kernels import ops
from ernie_kernels.verify.bounds import Expected
from ernie_kernels.verify.check import verify, verify_loaded
from ernie_kernels.verify.engine_trace import EngineTrace
from ernie_kernels.verify.prompts import make_prompts
from ernie_kernels.verify.report import Limits, PartResult, worst_of
from tiny_checkpoint import in_shards, to_paddle, write_checkpoint

DTYPES = ["float32", "bfloat16"]
SHAPES = {
    "tied": {},
    "untied": {"hidden_size": 64, "tie_word_embeddings": False},
    "bias_untied": {"num_key_value_heads": 4, "use_bias": True, "tie_word_embeddings": False},
    "one_kv_head_odd_sizes": {
        "vocab_size": 101, "hidden_size": 37, "intermediate_size": 53, "num_key_value_heads": 1,
        "head_dim": 8, "use_bias": True,
    },
    "real_head_dim": {
        "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 128,
        "rms_norm_eps": 1e-3, "rope_theta": 10000.0,
    },
}  # fmt: skip


# -------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_models_pass(tmp_path, device, shape, dtype):
    write_checkpoint(tmp_path, dtype=dtype, seed=3, **SHAPES[shape])
    report = verify(tmp_path, device=device)
    assert report.failures == []
    assert report.passed
    assert report.dtype == dtype
    assert [stage.name for stage in report.stages[:2]] == ["embedding", "layer 0"]
    assert report.stages[-1].name == "head"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_demo_model_passes(dtype):
    report = verify(dtype=dtype)
    assert report.failures == []
    assert report.logits.mean_kl < (1e-10 if dtype == "float32" else 1e-3)
    assert report.logits.top1 > 0.95


@pytest.mark.parametrize("seed", range(6))
def test_no_false_alarm_over_seeds_and_scales(tmp_path, seed):
    """Weights of other sizes too: small ones, and such that attention and residuals grow large."""
    config, weights = write_checkpoint(tmp_path, dtype=DTYPES[seed % 2], seed=seed, use_bias=True)
    scale = [1.0, 4.0, 0.05][seed % 3]
    scaled = {name: (w * w.dtype.type(scale)).astype(w.dtype) for name, w in weights.items()}
    safetensors_bytes.save(tmp_path / "model.safetensors", scaled)
    assert config["num_hidden_layers"] == 3
    assert verify(tmp_path, tokens=100).failures == []


def test_what_rounding_alone_makes_is_no_fault(tmp_path):
    """Logits so large that bfloat16 changes the probabilities; the same model in float32."""
    _, weights = write_checkpoint(tmp_path, dtype="bfloat16", hidden_size=64, seed=1)
    scaled = {name: (w * w.dtype.type(3)).astype(w.dtype) for name, w in weights.items()}
    safetensors_bytes.save(tmp_path / "model.safetensors", scaled)
    report = verify(tmp_path)
    assert report.failures == []
    assert report.logits.mean_kl > 3e-3
    assert report.mean_kl_limit == pytest.approx(1e-5 + 10 * (report.rounding.mean_kl + 0.3 / 97))
    assert report.top1_limit <= 0.98
    exact = verify(tmp_path, dtype="float32")
    assert exact.failures == []
    assert exact.rounding is None
    assert exact.logits.mean_kl < 1e-7


@pytest.mark.parametrize(("stored", "run"), [("float32", "bfloat16"), ("bfloat16", "float32"),
                                             ("float16", "auto"), ("float16", "bfloat16")])  # fmt: skip
def test_weights_are_rounded_as_the_engine_rounds_them(tmp_path, stored, run):
    write_checkpoint(tmp_path, dtype=stored, use_bias=True)
    assert verify(tmp_path, dtype=run).failures == []


@pytest.mark.parametrize("shape", ["bias_untied", "one_kv_head_odd_sizes"])
def test_every_layout_is_read(tmp_path, shape):
    """Paddle's names, transposes and fused tensors; several files; one against the other."""
    one, paddle = tmp_path / "one", tmp_path / "paddle"
    _, weights = write_checkpoint(one, dtype="bfloat16", **SHAPES[shape])
    paddle.mkdir()
    (paddle / "config.json").write_text((one / "config.json").read_text())
    safetensors_bytes.save_sharded(paddle, in_shards(to_paddle(weights)))
    for folder, reference in ((paddle, None), (paddle, one), (one, paddle)):
        assert verify(folder, reference=reference).failures == []


def test_text_is_used_where_there_is_a_tokenizer(tmp_path):
    write_checkpoint(tmp_path, vocab_size=tokenizer_files.VOCAB_SIZE)
    tokenizer_files.write_tokenizer(tmp_path)
    assert verify(tmp_path).failures == []
    with ek.LLM.from_pretrained(tmp_path) as llm:
        lengths = [len(ids) for ids in make_prompts(llm.tokenizer, 300, 2048, 64)]
        text, drawn = (
            make_prompts(each, tokenizer_files.VOCAB_SIZE, 2048, 64)
            for each in (llm.tokenizer, None)
        )
    assert lengths == [1, 9, 23, 64]
    assert not np.array_equal(text[3], drawn[3])
    assert [len(ids) for ids in make_prompts(None, 300, 16, 64)] == [1, 9, 16, 16]


def test_float64_is_what_the_tests_have_too(tmp_path):
    """Two float64 models, written apart: their logits are the same."""
    from ernie_kernels.verify import check
    from ernie_kernels.verify.comparison import Comparison

    config, weights = write_checkpoint(tmp_path, **SHAPES["bias_untied"])
    made = []

    class Kept(Comparison):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "Comparison", Kept)
        verify(tmp_path)
    prompts = make_prompts(None, config["vocab_size"], 2048, 64)
    expected = [reference_model.forward(config, weights, ids) for ids in prompts]
    # Their angles differ: rounded to float32 here, exact there.
    assert np.abs(made[0].logits - np.concatenate(expected)).max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trace_is_the_engine(tmp_path, dtype):
    """Run layer by layer, the last tokens one by one, it computes what ``forward`` computes."""
    write_checkpoint(tmp_path, dtype=dtype, **SHAPES["bias_untied"])
    with ek.LLM.from_pretrained(tmp_path, device="cpu") as llm:
        prompts = make_prompts(None, llm.config.vocab_size, llm.max_model_len, 70)
        trace = EngineTrace(llm.model, llm.config, prompts, device="cpu", dtype=llm.dtype)
        for _ in trace.layers():
            pass
        traced = trace.logits(trace.final()[3])
        expected = np.concatenate(llm.forward([ids.tolist() for ids in prompts]))
    assert np.array_equal(traced, expected)


# ------------------------------------------------------------------ corrupted in the model's memory

LINEARS = {  # layer 1's tensors: where they are, and their rows
    "q": ("self_attn.qkv_proj", 0, 64),
    "k": ("self_attn.qkv_proj", 64, 96),
    "v": ("self_attn.qkv_proj", 96, 128),
    "o": ("self_attn.o_proj", 0, 64),
    "gate": ("mlp.gate_up_proj", 0, 80),
    "up": ("mlp.gate_up_proj", 80, 160),
    "down": ("mlp.down_proj", 0, 64),
    "embedding": ("model.embed_tokens", 0, 203),
    "head": ("lm_head", 0, 203),
}


@pytest.fixture(scope="module", params=DTYPES)
def folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(
        folder, dtype=request.param, hidden_size=64, intermediate_size=80,
        tie_word_embeddings=False, use_bias=True,
    )  # fmt: skip
    return folder


def attribute(root, path: str):
    for name in path.split("."):
        root = getattr(root, name)
    return root


def owner_of(llm, tensor: str):
    path, begin, end = LINEARS[tensor]
    root = llm.model.model.layers[1] if "proj" in path else llm.model
    return attribute(root, path), begin, end


def plain(weight) -> np.ndarray:
    """A writable view of a packed weight whose [row // 16, column, row % 16] are its elements."""
    packed = weight.tensor.numpy()
    if packed.ndim == 3:
        return packed
    panels, pairs, rows, two = packed.shape
    return packed.swapaxes(2, 3).reshape(panels, pairs * two, rows)


def corrupt(llm, tensor: str, extent: str) -> None:
    layer, begin, end = owner_of(llm, tensor)
    packed = layer.weight.tensor.numpy()
    unpacked = plain(layer.weight).copy()
    if extent == "tensor":
        for row in range(begin, end):
            unpacked[row // 16, :, row % 16] *= unpacked.dtype.type(1.25)
    elif extent == "panel":
        panel = (end - 1) // 16 if begin // 16 == (end - 1) // 16 else begin // 16 + 1
        unpacked[panel] = unpacked[panel][::-1]
    elif extent == "block":
        unpacked[begin // 16, 20:24, 3:5] = 0
    else:
        element = unpacked[(end - 1) // 16, 17, (end - 1) % 16]
        unpacked[(end - 1) // 16, 17, (end - 1) % 16] = -element
    if packed.ndim == 4:
        panels, pairs, rows, two = packed.shape
        unpacked = unpacked.reshape(panels, pairs, two, rows).swapaxes(2, 3)
    assert not np.array_equal(packed, unpacked)
    packed[...] = unpacked


EXPECTED_PART = {"embedding": "table", "head": "head weights"}


@pytest.mark.parametrize("extent", ["tensor", "panel", "block", "element"])
@pytest.mark.parametrize("tensor", LINEARS)
def test_a_corrupted_matrix_is_found(folder, tensor, extent):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        corrupt(llm, tensor, extent)
        report = verify_loaded(llm, folder)
    assert not report.passed
    stage = {"embedding": "embedding", "head": "head"}.get(tensor, "layer 1")
    part = EXPECTED_PART.get(tensor, f"{tensor}_proj weights")
    assert any(failure.startswith(f"{stage}: {part}:") for failure in report.failures)
    # Nowhere else: every part is judged on what it was given.
    wrong = {each.name for each in report.stages if not each.passed}
    assert wrong == {stage}


VECTORS = [
    "model.layers.0.input_layernorm.weight", "model.layers.1.post_attention_layernorm.weight",
    "model.norm.weight", "model.layers.2.self_attn.qkv_proj.bias",
    "model.layers.0.self_attn.o_proj.bias", "model.layers.1.mlp.gate_up_proj.bias",
    "model.layers.2.mlp.down_proj.bias",
]  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_one_wrong_element_of_a_vector_is_found(folder, name):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        words = name.split(".")
        root = llm.model.model
        if words[1] == "layers":
            root = root.layers[int(words[2])]
            words = words[2:]
        vector = attribute(root, ".".join(words[1:])).numpy()
        vector[5] = vector[5] * vector.dtype.type(1.1)
        report = verify_loaded(llm, folder)
    assert not report.passed


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 1.1e-5])
@pytest.mark.parametrize("place", ["layers.0.input_layernorm", "layers.1.input_layernorm",
                                   "layers.2.post_attention_layernorm", "norm"])  # fmt: skip
def test_a_wrong_eps_is_found(folder, place, eps):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        model = llm.model.model
        if place != "norm":
            _, index, name = place.split(".")
            norm = getattr(model.layers[int(index)], name)
        else:
            norm = model.norm
        assert norm.eps == 1e-5
        norm.eps = eps
        report = verify_loaded(llm, folder)
    assert any("near eps" in failure for failure in report.failures)


@pytest.mark.parametrize("which", ["both", "query", "key"])
def test_the_other_rope_pairing_is_found(folder, monkeypatch, which):
    """Half-split: element i turns with i + head_dim / 2, not 2i with 2i + 1."""
    right = ops.rope

    def half_split(query, key, positions, *, theta, table):
        def in_pairs(x):
            return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)

        turned = {}
        for name, tensor in (("query", query), ("key", key)):
            x = tensor.numpy()
            paired = np.ascontiguousarray(in_pairs(x))
            right(paired, paired.copy(), positions, theta=theta, table=table)
            back = paired.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)
            turned[name] = (x, back)
        right(query, key, positions, theta=theta, table=table)
        for name, (x, back) in turned.items():
            if which in (name, "both"):
                x[...] = back

    monkeypatch.setattr(ops, "rope", half_split)
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        report = verify_loaded(llm, folder)
    expected = {"both": ["q", "k"], "query": ["q"], "key": ["k"]}[which]
    for letter in expected:
        assert any(f"layer 0: {letter}_proj and RoPE" in failure for failure in report.failures)
    assert not any("weights" in failure for failure in report.failures)


def test_a_wrong_theta_and_a_wrong_scale_of_scores_are_found(folder, monkeypatch):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        decoder = llm.model.model
        config = decoder._config
        decoder._config = replace(config, rope_theta=10000.0)
        assert any("q_proj and RoPE" in failure for failure in verify_loaded(llm, folder).failures)
        decoder._config = config
        attention = ops.attention
        monkeypatch.setattr(ops, "attention", lambda *a, **k: attention(*a, **k, scale=0.3))
        failures = verify_loaded(llm, folder).failures
    assert any("attention:" in failure for failure in failures)


def test_not_a_number_fails(folder):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        llm.model.model.layers[1].mlp.down_proj.bias.numpy()[3] = np.nan
        report = verify_loaded(llm, folder)
    assert not report.passed
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text)["passed"] is False


# --------------------------------------------------------------------------- corrupted in the files


def rewritten(source: Path, target: Path, change) -> Path:
    """A checkpoint whose weights ``change(config, weights)`` has changed in place."""
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    _, weights = write_checkpoint(target, **{k: v for k, v in config.items() if k != "dtype"},
                                  dtype=config["dtype"])  # fmt: skip
    change(config, weights)
    (target / "config.json").write_text(json.dumps(config))
    safetensors_bytes.save(target / "model.safetensors", weights)
    return target


TENSORS = [
    "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight",
    *(f"model.layers.1.{name}" for name in (
        "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_proj.weight",
        "self_attn.k_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight",
        "mlp.gate_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight",
    )),
]  # fmt: skip


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_file_that_differs_from_its_reference_is_found(folder, tmp_path, tensor):
    def change(config, weights):
        flat = weights[tensor].reshape(-1)
        flat[len(flat) // 2] += flat.dtype.type(0.25)

    converted = rewritten(folder, tmp_path / "converted", change)
    assert verify(converted).passed
    report = verify(converted, reference=folder)
    assert not report.passed
    assert report.reference == folder.name


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
def test_a_config_that_differs_from_its_reference_is_found(folder, tmp_path, key):
    def change(config, weights):
        config[key] = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0}[key]

    converted = rewritten(folder, tmp_path / "converted", change)
    assert verify(converted).passed
    assert not verify(converted, reference=folder).passed


def test_a_conversion_to_the_other_rope_pairing_is_found(folder, tmp_path):
    """Rows of q and k in half-split order: what a converter for other models would write."""

    def change(config, weights):
        for name, weight in weights.items():
            if ".q_proj." in name or ".k_proj." in name:
                heads = weight.reshape(-1, config["head_dim"] // 2, 2, *weight.shape[1:])
                weights[name] = heads.swapaxes(1, 2).reshape(weight.shape).copy()

    converted = rewritten(folder, tmp_path / "converted", change)
    failures = verify(converted, reference=folder).failures
    assert any("q_proj weights" in failure for failure in failures)


def test_a_reference_of_another_shape_is_refused(folder, tmp_path):
    write_checkpoint(tmp_path, hidden_size=48)
    with pytest.raises(ek.ConfigError, match="hidden_size is 64 in the model and 48"):
        verify(folder, reference=tmp_path)


# ------------------------------------------------------------------------------- quantised weights


def quantized(weight: np.ndarray, levels: int = 127) -> np.ndarray:
    step = np.abs(weight).max(-1, keepdims=True).astype(np.float64) / levels
    return (np.rint(weight / step) * step).astype(weight.dtype)


@pytest.mark.parametrize(("levels", "passes"), [(127, True), (31, False)])
def test_wint8_allows_eight_bits_and_no_fewer(folder, tmp_path, levels, passes):
    def change(config, weights):
        for name, weight in weights.items():
            if weight.ndim == 2:
                weights[name] = quantized(weight, levels)

    rounded = rewritten(folder, tmp_path / "rounded", change)
    with ek.LLM.from_pretrained(rounded, device="cpu") as llm:
        assert not verify_loaded(llm, folder).passed
        report = verify_loaded(llm, folder, quantization="wint8")
        assert report.passed is passes
        with pytest.raises(ek.ArgumentError, match="expected one of wint8, w8a8, wint4"):
            verify_loaded(llm, folder, quantization="int3")


# ------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("actual", "value", "bound"),
    [(np.nan, 1, 1), (np.inf, 1, 1), (1, np.nan, 1), (1, np.nan, np.nan), (np.inf, np.inf, np.inf)],
)
def test_what_is_no_number_is_the_worst_of_all(actual, value, bound):
    def part(*row: float) -> PartResult:
        actual, value, bound = (np.array([1.0, each, 1.0]) for each in row)
        return PartResult.of("some part", actual, Expected(value, bound))

    wrong, right = part(actual, value, bound), part(1, 1.5, 1)
    assert (right.share, right.passed) == (0.5, True)
    assert not wrong.passed
    assert worst_of([right, wrong]) is worst_of([wrong, right]) is wrong


def test_limits_are_options(folder):
    with ek.LLM.from_pretrained(folder, device="cpu") as llm:
        tight = verify_loaded(llm, folder, limits={"bound_scale": 1e-3})
        assert not tight.passed
        report = verify_loaded(llm, folder, limits={"mean_kl": 0.0, "over_rounding_kl": 0.0})
        (failure,) = report.failures
        assert failure.startswith("mean KL ")
        report = verify_loaded(llm, folder, limits={"top1": 1.0, "over_rounding_top1": 0.0})
        assert report.top1_limit == 1.0
        for limits in ({"top1": 1.5}, {"mean_kl": float("nan")}, {"bound_scale": 0.0}):
            with pytest.raises(ek.ArgumentError, match=f"verify: {next(iter(limits))}"):
                verify_loaded(llm, folder, limits=limits)


def test_defaults_are_wider_with_fewer_bits():
    exact, rounded, quantized = (
        Limits.default(dtype, is_quantized=bits)
        for dtype, bits in (("float32", False), ("bfloat16", False), ("bfloat16", True))
    )
    assert (exact.mean_kl, exact.top1, exact.over_rounding_kl) == (1e-5, 0.995, 0.0)
    assert exact.top1 > rounded.top1 > quantized.top1
    assert rounded.mean_kl < quantized.mean_kl
    assert rounded.over_rounding_kl == quantized.over_rounding_kl > 1
    four_bits = Limits.default("bfloat16", is_quantized=True, has_4_bits=True)
    assert four_bits.mean_kl > quantized.mean_kl
    assert four_bits.top1 < quantized.top1
