"""``ernie-kernels fit``: what a model takes, and whether it fits, from its ``config.json`` alone."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.cli.command import add_command, add_json
from ernie_kernels.cli.fit_report import (
    HOST,
    FitReport,
    Place,
    Way,
    fit_report,
    layer_ranges,
    other_machine,
    this_machine,
)
from ernie_kernels.cli.options import add_mm_processor_kwargs, add_speculative_config
from ernie_kernels.errors import ArgumentError, UnsupportedError
from ernie_kernels.llm import DEMO_FOLDER
from ernie_kernels.load_arguments import (
    check_mm_processor_kwargs,
    check_speculative_config,
    check_speculative_of,
)
from ernie_kernels.models.config import (
    CONFIG_FILE,
    LayerPlan,
    ModelConfig,
    load_config,
    load_config_file,
)
from ernie_kernels.vision.settings import VisionSettings

EXIT_DOES_NOT_FIT = 1

DESCRIPTION = """\
Say what a model takes of memory in each way to load it, what of it fits, and which way to take. The
config.json is enough: fetch it before the weights.

  ernie-kernels fit ./ERNIE-4.5-21B-A3B-PT
      a folder that has a config.json, with or without weights; on this machine
  ernie-kernels fit config.json --memory 16GB
      on a machine with 16 GB of memory free, and no GPU
  ernie-kernels fit config.json --memory 64GB --gpu-memory 24GB --bandwidth 1000
      with a GPU besides; its memory is read at 1000 GB/s
  ernie-kernels fit config.json --speculative-config '{"method": "mtp", "num_speculative_tokens": 1}'
      with the multi-token prediction module and its part of the cache
  ernie-kernels fit config.json --json > fit.json

Ways to load it, from the most exact to the smallest:
  bfloat16, float32   as it is stored; a float32 checkpoint can be rounded with --dtype bfloat16
  wint8               --quantization wint8: matrices as int8
  w8a8                --quantization w8a8: activations too; faster for long prompts, CPU only
  wint4               --quantization wint4: experts in 4 bits, the other matrices as int8
  wint4-all           all matrices in 4 bits, the head too: the least exact. The option is
                      --quantization '{"dense_quant_type": "wint4", "moe_quant_type": "wint4"}'

How to read the table:
  size                of the weights when they are loaded
  read per token      of these: one sequence's next token reads all that it goes through, so of many
                      experts a few. Memory sets the pace: half the bytes, up to twice the tokens.
                      What drafts cost and bring is left out, here and in tokens/s
  while loading       the most host memory that the load takes
  cache               keys and values of 1000 tokens of context
  tokens/s at most    of one sequence, where memory is read at --bandwidth. The cache of a long
                      context is read as well and makes it slower
  host, cuda:N        tokens of context, of all sequences together, that fit beside the weights, and
                      what images and videos take where the model reads them. On
                      the host the cache gets a tenth of them unless --max-model-len asks for more,
                      and never less than 8192 tokens

Exit code: 0 it fits somewhere, 1 nowhere, 2 the configuration or an option is wrong.
"""

UNITS = {
    **{letter: 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}i": 1024**power for power, letter in enumerate("kmgt", 1)},
}
MAX_SIZE = 1 << 60  # bytes


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "fit",
        run,
        summary="what a model takes of memory, and whether it fits",
        description=DESCRIPTION,
    )
    parser.add_argument("--model-path", "--model", dest="config", help=argparse.SUPPRESS)
    parser.add_argument(
        "config",
        nargs="?",
        default=argparse.SUPPRESS,  # leaves what the option says alone
        metavar="CONFIG_OR_DIR",
        help="a config.json under any name, or the folder it is in (default: the demo model)",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="free host memory of another machine: 16GB, 23.5GiB"
    )
    parser.add_argument(
        "--gpu-memory",
        metavar="SIZE",
        help="free memory of another machine's GPU; with either of the two, this machine does not "
        "count",
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        metavar="GB/S",
        help="how fast memory is read; 'bench' tells of this machine",
    )
    add_speculative_config(parser)
    add_mm_processor_kwargs(parser)
    add_json(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    memory, gpu_memory = (
        None if text is None else bytes_of(option, text)
        for option, text in (
            ("--memory", arguments.memory),
            ("--gpu-memory", arguments.gpu_memory),
        )
    )
    bandwidth = arguments.bandwidth
    if bandwidth is not None and not 0 < bandwidth <= 1e9:
        raise ArgumentError(f"fit: --bandwidth: expected GB/s above 0, got {quoted(bandwidth)}")
    here = memory is None and gpu_memory is None
    places = this_machine() if here else other_machine(memory, gpu_memory)
    path = DEMO_FOLDER if arguments.config is None else Path(arguments.config)
    config = config_at(path)
    speculative = arguments.speculative_config
    drafts = check_speculative_config(speculative)
    try:
        check_speculative_of(config, drafts)
    except UnsupportedError as error:
        raise ArgumentError(f"fit: --speculative-config: {error}") from None
    if drafts and not config.num_nextn_predict_layers:
        raise ArgumentError(
            f"fit: --speculative-config: the configuration of {quoted(path.resolve().name)} names no "
            "multi-token prediction module (num_nextn_predict_layers); leave the option out"
        )
    report = fit_report(
        path.resolve().name,
        config,
        places,
        bandwidth and bandwidth * 1e9,
        speculative_config=speculative,
        settings=settings_at(path, config, arguments.mm_processor_kwargs),
    )
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, path, here)
    return 0 if report.something_fits else EXIT_DOES_NOT_FIT


def config_at(path: Path) -> ModelConfig:
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except ValueError:  # a null character
        is_folder = is_there = False
    if not is_there:
        raise ArgumentError(
            f"fit: {quoted(path.name)}: no such file or folder; give a config.json, or the folder "
            "that it is in"
        )
    return load_config(path) if is_folder else load_config_file(path)


def settings_at(path: Path, config: ModelConfig, options: dict[str, Any] | None) -> VisionSettings:
    """How large the files beside a configuration let images be, and the options before them."""
    settings = check_mm_processor_kwargs(options).settings
    if config.vision is None:
        return VisionSettings()
    return VisionSettings.from_folder(path if path.is_dir() else path.parent, **settings)


def bytes_of(option: str, text: str) -> int:
    """``16GB``, ``16g``, ``1.5GiB``: a number of bytes."""
    found = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([kmgt]i?)b?", text.strip().lower())
    if found:
        number = float(found[1]) * UNITS[found[2]]
        if 1 <= number <= MAX_SIZE:
            return int(number)
    raise ArgumentError(
        f"fit: {option}: expected a size such as 16GB (10**9 bytes each) or 16GiB (2**30), got "
        f"{quoted(text)}"
    )


# ------------------------------------------------------------------------------------ the report


def print_report(report: FitReport, path: Path, here: bool) -> None:
    config, parameters = report.config, report.parameters
    print(
        f"{quoted(report.name)}: {count(parameters.total)} parameters"
        + (f", {count(parameters.active)} of them for a token" if config.num_experts else "")
        + f"; {config.dtype or 'no dtype named, taken as bfloat16'}"
        + f"; {config.max_position_embeddings:,} positions"
    )
    for plan, layers in layer_ranges(config):
        print(f"  layer{'' if layers.isdigit() else 's'} {layers}: {described(plan)}")
    if config.vision is not None:
        print(f"  and a vision tower with its resampler: {count(parameters.vision)} parameters")
        images = size(report.ways[0].on_host.visual_bytes)
        print(f"  images and videos: up to {images} beside the weights, counted below")
    if config.num_nextn_predict_layers:
        module = size(report.ways[0].on_host.mtp_weight_bytes)
        counted = "counted below" if report.speculative_config else "more with --speculative-config"
        print(f"  and a multi-token prediction module: {module}, {counted}")
    print()
    print_table(report)
    print()
    for place in report.places:
        for line in advice(report, place, path):
            print(line)
    if here and len(report.places) == 1:
        print("No GPU that this build can use: 'ernie-kernels doctor' says why.")


def described(plan: LayerPlan) -> str:
    if plan.mlp == "dense":
        return f"dense, width {plan.intermediate_size}"
    shared = plan.shared_intermediate_size
    banks = ("text", "vision") if plan.vision_intermediate_size else ("",)
    experts = " and ".join(
        f"{plan.num_experts} {bank} experts of width {width}".replace("  ", " ")
        for bank, width in zip(banks, plan.bank_widths, strict=True)
    )
    return f"{experts}, {plan.top_k} for each token" + (
        f", and shared ones of width {shared} together" if shared else ""
    )


def print_table(report: FitReport) -> None:
    only_gpus = all(place.name != HOST for place in report.places)
    rows = [["weights", "size", "read per token", "while loading", "cache, 1000 tokens"]]
    if report.bandwidth:
        rows[0].append("tokens/s at most")
    rows[0] += [f"{place.name}, {size(place.memory)} free" for place in report.places]
    for way in report.ways:
        plan = (way.on_gpu if only_gpus else None) or way.on_host
        row = [
            way.name,
            size(plan.weight_bytes),
            size(plan.read_bytes_per_token),
            size(plan.host_peak_bytes),
            size(1000 * plan.kv_bytes_per_token),
        ]
        if report.bandwidth:
            row.append(f"{report.rate(way) or 0:.1f}")
        rows.append(row + [verdict(way, place) for place in report.places])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("   ".join(cells))


def verdict(way: Way, place: Place) -> str:
    fit = way.fit(place.name)
    if fit is None:
        return "not for a GPU"
    if fit.tokens:
        return f"{fit.tokens:,} tokens"
    if fit.needed > place.memory:
        return f"no, needs {size(fit.needed)}"
    return f"no, host needs {size(fit.host_needed)}"


def advice(report: FitReport, place: Place, path: Path) -> list[str]:
    """What to take in ``place``, and the command that does."""
    smallest = report.smallest(place.name)
    best = report.best(place.name)
    if best is None:
        needs = verdict(smallest, place).removeprefix("no, ")
        return [f"{place.name}: nothing fits. The smallest, {smallest.name}, {needs}."]
    if best is report.ways[0]:
        lines = [f"{place.name}: take it as it is. It fits, and nothing is rounded."]
    else:
        room = f"leaves room for {report.enough} tokens"
        lines = [f"{place.name}: take {best.name}, the most exact that {room}."]
    options = [*best.options, *report.options]
    fit = best.fit(place.name)
    if fit and fit.tokens < report.enough:
        room = (
            f"No more than {fit.tokens} tokens of context fit beside it, and with no other as many."
        )
        lines = [f"{place.name}: take {best.name}. {room}"]
        options += ["--max-model-len", str(fit.tokens)]
    elif best is not smallest:
        factor = best.on_host.read_bytes_per_token / smallest.on_host.read_bytes_per_token
        if factor > 1.1:
            lines.append(
                f"  {shlex.join(smallest.options)} reads {factor:.1f} times fewer bytes for a token: "
                f"up to {factor:.1f} times as fast, but less exact."
            )
    chosen_by_auto = HOST if [each.name for each in report.places] == [HOST] else "cuda:0"
    if place.name != chosen_by_auto:
        options += ["--device", "cpu" if place.name == HOST else place.name]
    model = [] if path == DEMO_FOLDER else ["--model-path", model_folder(path)]
    lines.append(f"  {shlex.join(['ernie-kernels', 'chat', *model, *options])}")
    return lines


def model_folder(path: Path) -> str:
    if path.is_dir():
        return str(path)
    return str(path.parent) if path.name == CONFIG_FILE else "DIR"


def count(number: int) -> str:
    for scale, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= scale:
            return f"{number / scale:.4g}{unit}"
    return str(number)


def size(number: int) -> str:
    for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number} B"
