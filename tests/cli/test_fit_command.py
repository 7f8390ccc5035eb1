"""``ernie-kernels fit``: figures of released models, advice that follows from them, and errors."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import run

import ernie_kernels as ek
from ernie_kernels import cli
from ernie_kernels.cli.fit import bytes_of
from ernie_kernels.cli.fit_report import (
    HOST,
    Place,
    fit_report,
    layer_ranges,
    other_machine,
    this_machine,
)
from ernie_kernels.models.config import load_config_file
from released_configs import ERNIE_0_3B, ERNIE_21B, ERNIE_300B, ERNIE_VL_28B, ERNIE_VL_424B
from tiny_checkpoint import write_checkpoint

RELEASED = {
    "0.3B": ERNIE_0_3B,
    "21B": ERNIE_21B,
    "300B": ERNIE_300B,
    "VL-28B": ERNIE_VL_28B,
    "VL-424B": ERNIE_VL_424B,
}


@pytest.fixture
def released(tmp_path):
    for name, values in RELEASED.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    return lambda name: str(tmp_path / f"{name}.json")


def fit(capfd, *arguments):
    code, out, _ = run(capfd, "fit", *arguments, "--json")
    return code, json.loads(out)


# ------------------------------------------------------------------------------ what is reported


def test_a_table_of_the_21b(capfd, released):
    code, out, err = run(capfd, "fit", released("21B"), "--memory", "16GB", "--bandwidth", "100")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("'21B.json': 21.83 B parameters, 3.352 B of them for a token")
    assert lines[1] == "  layer 0: dense, width 12288"
    assert lines[2].startswith("  layers 1-27: 64 experts of width 1536, 6 for each token, and")
    table = {line.split()[0]: line for line in lines if line.startswith(("bf", "wi", "w8"))}
    assert list(table) == ["bfloat16", "wint8", "w8a8", "wint4", "wint4-all"]
    assert "43.7 GB" in table["bfloat16"]
    assert "no, needs 44.5 GB" in table["bfloat16"]
    assert table["wint4"].split()[-1] == "tokens"
    assert "host: take wint4, the most exact that leaves room for 8192 tokens." in lines
    assert lines[-1] == "  ernie-kernels chat --model-path DIR --quantization wint4"


def test_layers_of_a_vision_language_model(capfd, released):
    code, out, err = run(capfd, "fit", released("VL-28B"), "--memory", "64GB")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[2] == (
        "  layers 1-27: 64 text experts of width 1536 and 64 vision experts of width 512, 6 for each "
        "token, and shared ones of width 3072 together"
    )
    assert lines[3] == "  and a vision tower with its resampler: 774.7 M parameters"
    assert lines[4] == "  images and videos: up to 641.9 MB beside the weights, counted below"


def test_images_of_a_folder_that_says_how_large_they_are(capfd, tmp_path):
    """And what they take is not for the cache."""
    (tmp_path / "config.json").write_text(json.dumps(ERNIE_VL_28B))
    found = []
    for pixels in (6177 * 784, 20000 * 784):
        settings = {"size": {"shortest_edge": 3136, "longest_edge": pixels}}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        for path in (tmp_path, tmp_path / "config.json"):
            _, out, _ = run(capfd, "fit", str(path), "--memory", "64GB", "--json")
            way = json.loads(out)["ways"][0]
            counted = way["host"]["visual_bytes"], way["fits"]["host"]["tokens"]
            assert path == tmp_path or counted == found[-1]
            found += [counted] if path == tmp_path else []
        options = json.dumps({"image_max_pixels": 6177 * 784})
        _, out, _ = run(
            capfd,
            "fit",
            str(tmp_path),
            "--memory",
            "64GB",
            "--mm-processor-kwargs",
            options,
            "--json",
        )
        assert json.loads(out)["ways"][0]["host"]["visual_bytes"] == found[0][0]
    more = found[1][0] - found[0][0]
    assert more == 4 * (20000 - 6177) * (6 * 2560 + 320 + 16 + 588 + 3 * 2560 * 2 // 4)
    fewer = found[0][1] - found[1][1]
    assert abs(fewer * 57344 - more) < 64 * 57344


def test_files_about_images_do_not_matter_to_text_alone(capfd, released, tmp_path):
    (tmp_path / "config.json").write_text(Path(released("0.3B")).read_text())
    (tmp_path / "preprocessor_config.json").write_text("{")
    code, _, err = run(capfd, "fit", str(tmp_path), "--memory", "64GB")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("model", "parameters", "active", "layers", "values"),
    [
        ("0.3B", 0.361e9, 0.361e9, ["dense"] * 18, 9216),
        ("21B", 21.825e9, 3.35e9, ["dense"] + ["moe"] * 27, 28672),
        ("300B", 299.5e9, 47.9e9, ["dense"] * 3 + ["moe"] * 51, 110592),
        ("VL-28B", 29.40e9, 3.35e9, ["dense"] + ["moe"] * 27, 28672),
        ("VL-424B", 423.5e9, 47.9e9, ["dense"] * 3 + ["moe"] * 51, 110592),
    ],
)
def test_json_of_released_models(capfd, released, model, parameters, active, layers, values):
    code, report = fit(capfd, released(model), "--memory", "10TB")
    assert code == 0
    assert report["model"] == f"{model}.json"
    assert report["parameters"]["total"] == pytest.approx(parameters, rel=2e-3)
    assert report["parameters"]["active"] == pytest.approx(active, rel=2e-3)
    assert [layer["mlp"] for layer in report["layers"]] == layers
    assert report["places"] == [{"name": "host", "memory": 10**13}]
    for way in report["ways"]:
        assert way["host"]["kv_bytes_per_token"] == 2 * values
        assert way["tokens_per_second_at_most"] is None
        assert way["fits"]["host"]["tokens"] > 8192
    assert report["best"] == {"host": "bfloat16"}


def test_the_rate_is_bandwidth_over_what_a_token_reads(capfd, released):
    _, report = fit(capfd, released("21B"), "--memory", "64GB", "--bandwidth", "100")
    rates = {way["name"]: way["tokens_per_second_at_most"] for way in report["ways"]}
    assert rates["bfloat16"] == pytest.approx(100e9 / (2 * 3.352e9), rel=1e-2)
    assert rates["bfloat16"] < rates["wint8"] == rates["w8a8"] < rates["wint4"]
    assert rates["wint4-all"] == pytest.approx(100e9 / (3.352e9 / 2), rel=2e-2)
    options = {way["name"]: way["options"] for way in report["ways"]}
    option, value = options["wint4-all"]
    assert option == "--quantization"
    assert json.loads(value) == {"dense_quant_type": "wint4", "moe_quant_type": "wint4"}


@pytest.mark.parametrize("places", [[HOST], ["cuda:0"], [HOST, "cuda:0"]])
def test_what_is_said_to_fit_does_and_no_more(released, places):
    """Weights, cache of those tokens, workspace and reserve are within the memory; one block more
    of cache is not."""
    config = load_config_file(Path(released("21B")))
    report = fit_report("21B", config, [Place(name, 24 * 10**9) for name in places], None)
    seen = 0
    for way in report.ways:
        for found in way.fits:
            plan = way.on_host if found.place == HOST else way.on_gpu
            share = 1.0 if found.place == HOST else 0.9
            left = 24 * 10**9 - plan.weight_bytes - plan.workspace_bytes - (256 << 20)
            if found.tokens:
                seen += 1
                cache = found.tokens * plan.kv_bytes_per_token
                assert cache <= share * left < cache + 32 * plan.kv_bytes_per_token
            elif found.place == HOST:
                assert plan.host_peak_bytes > 23 * 10**9
            else:
                assert plan.weight_bytes > 23 * 10**9
    assert seen >= 2 * len(places)


def test_a_load_to_a_gpu_needs_host_memory_too(capfd, released):
    machine = ("--memory", "500MB", "--gpu-memory", "80GB")
    code, report = fit(capfd, released("21B"), *machine)
    assert code == 1
    assert all(fit["tokens"] == 0 for way in report["ways"] for fit in way["fits"].values())
    _, out, _ = run(capfd, "fit", released("21B"), *machine)
    assert "no, host needs 865" in out


@pytest.mark.parametrize(
    ("machine", "best"),
    [
        (("--memory", "64GB"), {"host": "bfloat16"}),
        (("--memory", "24GB"), {"host": "wint8"}),
        (("--memory", "16GB"), {"host": "wint4"}),
        (("--gpu-memory", "22.3GB"), {"cuda:0": "wint4"}),  # wint8 would leave too little context
        (("--memory", "10GB"), {"host": None}),
        (("--gpu-memory", "24GB"), {"cuda:0": "wint8"}),
        (("--memory", "16GB", "--gpu-memory", "80GB"), {"host": "wint4", "cuda:0": "bfloat16"}),
    ],
)
def test_the_most_exact_that_fits_is_advised(capfd, released, machine, best):
    code, report = fit(capfd, released("21B"), *machine)
    assert report["best"] == best
    assert code == (0 if any(best.values()) else 1)


def test_advice_where_little_context_fits(capfd, released):
    code, out, _ = run(capfd, "fit", released("0.3B"), "--gpu-memory", "600MB")
    assert code == 0
    *_, first, command = out.splitlines()
    tokens = int(command.split()[-1])
    assert first.startswith(f"cuda:0: take wint4-all. No more than {tokens} tokens of context fit")
    option = """--quantization '{"dense_quant_type": "wint4"}'"""
    assert command.endswith(f"chat --model-path DIR {option} --max-model-len {tokens}")
    assert 0 < tokens < 8192


def test_nothing_fits(capfd, released):
    code, out, err = run(capfd, "fit", released("300B"), "--memory", "24GiB")
    assert (code, err) == (1, "")
    assert "host: nothing fits. The smallest, wint4-all, needs 153.3 GB." in out


def test_a_float32_checkpoint_may_be_rounded_to_bfloat16(capfd, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**ERNIE_0_3B, "torch_dtype": "float16"}))
    _, report = fit(capfd, str(tmp_path), "--memory", "4GB")
    ways = {way["name"]: way for way in report["ways"]}
    assert list(ways) == ["float32", "bfloat16", "wint8", "w8a8", "wint4-all"]
    assert json.loads(ways["wint4-all"]["options"][1]) == {"dense_quant_type": "wint4"}
    assert ways["w8a8"]["gpu"] is None
    assert ways["wint4-all"]["gpu"]["weight_bytes"] < ways["wint8"]["gpu"]["weight_bytes"]
    assert ways["bfloat16"]["options"] == ["--dtype", "bfloat16"]
    sizes = [ways[name]["host"]["weight_bytes"] for name in ("float32", "bfloat16")]
    assert sizes[0] == 2 * sizes[1]
    assert ways["wint8"]["host"]["kv_bytes_per_token"] == 4 * 9216


def test_no_experts_to_round_in_the_first_layer_alone(capfd, tmp_path):
    (tmp_path / "cut.json").write_text(json.dumps({**ERNIE_21B, "num_hidden_layers": 1}))
    _, report = fit(capfd, str(tmp_path / "cut.json"), "--memory", "64GB")
    assert ["--quantization", "wint4"] not in [way["options"] for way in report["ways"]]


def test_model_path_as_other_commands_take_it(capfd, released):
    asked = ("--memory", "4GB", "--json")
    code, out, _ = run(capfd, "fit", "--model_path", released("0.3B"), *asked)
    assert code == 0
    assert out == run(capfd, "fit", released("0.3B"), *asked)[1]


def test_this_machine(capfd):
    """The demo model, for which there is room."""
    code, report = fit(capfd)
    assert code == 0
    assert report["model"] == "demo"
    assert [place["name"] for place in report["places"]] == [place.name for place in this_machine()]
    assert report["places"][0]["memory"] > 1e8
    assert report["best"]["host"] == "bfloat16"


def test_the_command_that_is_advised_runs(capfd, tmp_path):
    write_checkpoint(tmp_path / "a model", max_position_embeddings=64)
    _, out, _ = run(capfd, "fit", str(tmp_path / "a model"), "--memory", "1GB")
    words = shlex.split(out.splitlines()[-1])
    assert words[:2] == ["ernie-kernels", "chat"]
    assert words[2:] == ["--model-path", str(tmp_path / "a model")]
    with ek.LLM.from_pretrained(words[3], device="cpu") as llm:
        assert llm.config.max_position_embeddings == 64


@pytest.mark.parametrize(
    ("places", "devices"),
    [
        ([HOST], [""]),
        (["cuda:0"], [""]),
        ([HOST, "cuda:0"], ["--device cpu", ""]),
        ([HOST, "cuda:0", "cuda:1"], ["--device cpu", "", "--device cuda:1"]),
    ],
)
def test_advice_names_a_device_that_auto_would_not_choose(
    capfd, released, tmp_path, monkeypatch, places, devices
):
    Path(released("0.3B")).rename(tmp_path / "config.json")
    machine = [Place(name, 10**10) for name in places]
    monkeypatch.setattr("ernie_kernels.cli.fit.this_machine", lambda: machine)
    code, out, _ = run(capfd, "fit", str(tmp_path / "config.json"))
    commands = [line.strip() for line in out.splitlines() if "ernie-kernels chat" in line]
    command = f"ernie-kernels chat --model-path {tmp_path}"
    assert commands == [f"{command} {device}".strip() for device in devices]
    assert code == 0


def test_layer_ranges(tmp_path):
    values = {**ERNIE_21B, "moe_layer_interval": 2, "moe_layer_start_index": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    ranges = [text for _, text in layer_ranges(load_config_file(tmp_path / "config.json"))]
    assert ranges == ["0-2, 4, 6, 8, ...", "3, 5, 7, 9, ..."]


def test_a_prediction_module_is_told_of(capfd, released):
    _, out, _ = run(capfd, "fit", released("21B"), "--memory", "64GB")
    assert "multi-token prediction module" in out
    _, out, _ = run(capfd, "fit", released("0.3B"), "--memory", "64GB")
    assert "multi-token prediction module" not in out


DRAFTS = '{"method": "mtp", "num_speculative_tokens": 1}'


def test_drafts_count_where_they_are_asked_for(capfd, released, tmp_path):
    """The module's weights, its layer of the cache and the option in the advice."""
    machine = ("--memory", "64GB", "--gpu-memory", "80GB", "--bandwidth", "100")
    _, without = fit(capfd, released("21B"), *machine)
    code, report = fit(capfd, released("21B"), *machine, "--speculative_config", DRAFTS)
    assert code == 0
    assert report["speculative_config"] == json.loads(DRAFTS)
    assert without["speculative_config"] is None
    for way, other in zip(report["ways"], without["ways"], strict=True):
        for place in ("host", "gpu"):
            if way[place] is None:
                continue
            module = way[place]["mtp_weight_bytes"]
            assert module == other[place]["mtp_weight_bytes"] > 100e6 / 2
            assert way[place]["weight_bytes"] == other[place]["weight_bytes"] + module
            cache = way[place]["kv_bytes_per_token"]
            assert cache * 28 == other[place]["kv_bytes_per_token"] * 29
        assert way["fits"]["host"]["tokens"] < other["fits"]["host"]["tokens"]
        assert way["tokens_per_second_at_most"] == other["tokens_per_second_at_most"]
        assert way["options"] == [*other["options"], "--speculative-config", DRAFTS]
    Path(released("21B")).rename(tmp_path / "config.json")
    _, out, _ = run(capfd, "fit", str(tmp_path), *machine, "--speculative-config", DRAFTS)
    assert "a multi-token prediction module: 246.4 MB, counted below" in out
    command = shlex.split(out.splitlines()[-1])
    assert command[-2:] == ["--speculative-config", DRAFTS]


def test_no_drafts_of_a_vision_language_model(capfd, released):
    """As where it is loaded."""
    code, out, err = run(capfd, "fit", released("VL-28B"), "--speculative-config", DRAFTS)
    assert (code, out) == (2, "")
    assert (
        "--speculative-config: speculative_config: not for a vision-language model: no released one is known"
        in err
    )


@pytest.mark.parametrize(
    ("model", "value", "words"),
    [
        ("0.3B", DRAFTS, "configuration of '0.3B.json' names no multi-token prediction module"),
        ("21B", "{}", "speculative_config: method is missing; pass"),
        ("21B", '{"method": "eagle", "num_speculative_tokens": 1}', "expected one of mtp"),
        ("21B", "mtp", "expected a JSON object, got 'mtp'"),
    ],
)
def test_drafts_that_cannot_be(capfd, released, model, value, words):
    code, out, err = run(capfd, "fit", released(model), "--speculative-config", value)
    assert (code, out) == (2, "")
    assert words in err


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16GB", 16 * 10**9), ("16G", 16 * 10**9), ("16 gb", 16 * 10**9), ("1.5GiB", 3 << 29),
        ("512Mi", 512 << 20), ("2TB", 2 * 10**12), ("640kB", 640_000),
    ],
)  # fmt: skip
def test_sizes(text, expected):
    assert bytes_of("--memory", text) == expected


@pytest.mark.parametrize(
    "text", ["", "16", "GB", "-1GB", "0GB", "1e3GB", "16XB", "16GBs", "9999999999TB", "٣GB", "nan"]
)
def test_what_is_no_size(capfd, released, text):
    code, out, err = run(capfd, "fit", released("0.3B"), f"--gpu-memory={text}")
    assert (code, out) == (2, "")
    assert "fit: --gpu-memory: expected a size such as 16GB" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "'nowhere': no such file or folder; give a config.json"),
        (["a\0b"], "no such file or folder"),
        (["."], "'config.json': is missing"),
        (["text.txt"], "'text.txt': not valid JSON at line 1, column 1"),
        (["dense.json"], "'dense.json': hidden_size: missing"),
        (["vision.json"], "'vision.json': moe_intermediate_size: expected a list of two widths"),
        (["0.3B.json", "--bandwidth", "0"], "--bandwidth: expected GB/s above 0, got 0.0"),
        (["0.3B.json", "--bandwidth", "nan"], "--bandwidth: expected GB/s above 0, got nan"),
        (["0.3B.json", "--bandwidth", "fast"], "invalid float value: 'fast'"),
    ],
)
def test_errors_say_what_to_do(capfd, released, tmp_path, monkeypatch, arguments, words):
    released("0.3B")
    (tmp_path / "text.txt").write_text("hello")
    dense = {key: value for key, value in ERNIE_0_3B.items() if key != "hidden_size"}
    (tmp_path / "dense.json").write_text(json.dumps(dense))
    (tmp_path / "vision.json").write_text(json.dumps({"model_type": "ernie4_5_vl_moe"}))
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, "fit", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_help_explains_each_column_and_way(capfd):
    code, out, _ = run(capfd, "fit", "--help")
    assert code == 0
    for word in ("size", "read per token", "while loading", "cache", "tokens/s at most", "wint4",
                 "Exit code: 0 it fits somewhere, 1 nowhere", "--gpu-memory", "config.json"):  # fmt: skip
        assert word in out
    assert all(len(line) <= 100 for line in cli.DESCRIPTION.splitlines())


def test_another_machine_has_what_was_asked_about():
    assert other_machine(5, None) == [Place("host", 5)]
    assert other_machine(None, 7) == [Place("cuda:0", 7)]
    assert [place.name for place in other_machine(5, 7)] == ["host", "cuda:0"]
