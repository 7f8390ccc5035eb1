"""``ernie-kernels verify``: a loaded model against float64, layer by layer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.cli.command import add_command, add_json
from ernie_kernels.cli.options import add_folder, add_model_options, load_options
from ernie_kernels.errors import Error

if TYPE_CHECKING:
    from ernie_kernels.verify.report import Report, StageResult

EXIT_FAILED = 1
EXIT_NOT_RUN = 2  # a usage error, or something that cannot be loaded

DESCRIPTION = """\
Compare a loaded model with a float64 model that reads the same folder by itself.

Every part of every layer (norms, projections, RoPE, attention, MLP, head) gets the engine's own
input and is judged element by element: its error may be as large as rounding to the dtype of the
activations and summing in float32 can make it, and no larger. Every weight and every norm's eps is
probed besides. At the end the engine's next-token probabilities are compared with those of a
float64 model that has run from the token ids on. A vision-language model is also shown an image and a
video of noise: its vision tower and resampler are looked at block by block, and positions and banks of
experts token by token.

Exit code: 0 all within bounds, 1 something is not, 2 could not be run.

  ernie-kernels verify
      the demo model
  ernie-kernels verify ./ERNIE-4.5-0.3B-PT --dtype float32
      a checkpoint, with float32 activations: the sharpest look at the weights
  ernie-kernels verify ./converted --reference ./ERNIE-4.5-0.3B-Paddle
      a converted checkpoint against the one it was made from
  ernie-kernels verify ./ERNIE-4.5-0.3B-PT --json > verification.json
"""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "verify",
        run,
        summary="check a loaded model layer by layer against float64",
        description=DESCRIPTION,
    )
    add_folder(parser, "DIR")
    parser.add_argument(
        "--reference",
        metavar="DIR",
        help="the float64 model reads this folder's config.json and tensors instead",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=64,
        metavar="N",
        help="of the longest prompt, up to 1024 (default: 64)",
    )
    add_json(parser)
    limits = parser.add_argument_group(
        "limits", "by default those of the dtype and the quantisation; the report names them"
    )
    limits.add_argument(
        "--bound-scale", type=float, metavar="X", help="allow X times the bound of every part"
    )
    limits.add_argument(
        "--max-mean-kl", type=float, metavar="NATS", help="of the next-token probabilities"
    )
    limits.add_argument(
        "--min-top1", type=float, metavar="SHARE", help="of equal most probable tokens, 0 to 1"
    )
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        report = verified(arguments)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NOT_RUN
    if arguments.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report)
    return 0 if report.passed else EXIT_FAILED


def verified(arguments: argparse.Namespace) -> Report:
    from tqdm import tqdm

    from ernie_kernels.verify.check import verify

    def progress(stages: Iterator[StageResult], count: int) -> Iterator[StageResult]:
        # disable=None: no bar where stderr is no terminal.
        return tqdm(stages, total=count, desc="verify", unit="stage", leave=False, disable=None)

    limits = {}
    if arguments.bound_scale is not None:
        limits["bound_scale"] = arguments.bound_scale
    if arguments.max_mean_kl is not None:
        limits |= {"mean_kl": arguments.max_mean_kl, "over_rounding_kl": 0.0}
    if arguments.min_top1 is not None:
        limits |= {"top1": arguments.min_top1, "over_rounding_top1": 0.0}
    return verify(
        arguments.model_path,
        reference=arguments.reference,
        tokens=arguments.tokens,
        limits=limits,
        progress=progress,
        **load_options(arguments),
    )


def print_report(report: Report) -> None:
    quantized = f", {report.quantization} weights" if report.quantization else ""
    lengths = ", ".join(map(str, report.prompt_lengths))
    print(
        f"{quoted(report.model)} ({report.dtype}{quantized} on {report.device}, {report.cpu_tier}) "
        f"against {quoted(report.reference)} in float64; prompts of {lengths} tokens"
    )
    if report.pictures:
        print(f"The last shows {' and '.join(report.pictures)}.")
    print()
    print(f"{'':<10} {'max error':>10} {'relative':>9}   worst part, and its share of its bound")
    for stage in report.stages:
        worst = stage.worst
        print(
            f"{stage.name:<10} {stage.max_error:>10.2e} {stage.relative_error:>9.2e}   "
            f"{worst.name:<28} {worst.share:>8.3g}   {'pass' if stage.passed else 'FAIL'}"
        )
    print_choices(report)
    print_logits(report)
    for failure in report.failures[:20]:
        print(f"FAIL: {failure}")
    if len(report.failures) > 20:
        print(f"... and {len(report.failures) - 20} more; --json has all")
    print(
        "\nA share of 1 is the most that rounding and the order of sums can make; correct rounding to\n"
        "bfloat16 alone comes close to it."
    )
    print(f"\n{'PASSED' if report.passed else 'FAILED'}: {summary(report)}")


def print_choices(report: Report) -> None:
    others = sum(stage.num_other_choices for stage in report.stages)
    if others:
        gap = max(stage.widest_gap for stage in report.stages)
        print(
            f"\nexperts: float64 alone would choose others for {others} tokens of a layer, by scores "
            f"{gap:.1e} apart\nat most; it takes the engine's choice, which is a part"
        )


def print_logits(report: Report) -> None:
    logits = report.logits
    if logits is None:
        return
    rounding = ""
    if report.rounding is not None:
        rounding = f"; rounding alone makes {report.rounding.mean_kl:.2e}"
    print(
        f"\nlogits of {logits.num_tokens} tokens: {'FAIL' if report.logits_failures else 'pass'}\n"
        f"  mean KL {logits.mean_kl:.2e} (limit {report.mean_kl_limit:.2g}{rounding}), "
        f"max KL {logits.max_kl:.2e}\n"
        f"  top-1 agreement {logits.top1:.1%}, without near ties {logits.clear_top1:.1%} "
        f"(limit {report.top1_limit:.1%})"
    )


def summary(report: Report) -> str:
    parts = [part for stage in report.stages for part in stage.parts]
    wrong = sum(not part.passed for part in parts)
    if report.passed:
        return f"all {len(parts)} parts are within their bounds"
    if not wrong:
        return "every part is within its bound, the logits are not"
    return f"{wrong} of {len(parts)} parts are beyond their bounds"
