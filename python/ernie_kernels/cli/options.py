"""Options that commands share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ernie_kernels.checkpoint_file import quoted
from ernie_kernels.llm import LLM
from ernie_kernels.models.quantization import QUANTIZATIONS
from ernie_kernels.runner.sampling import SamplingParams


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-path",
        "--model",
        metavar="DIR",
        help="folder of a checkpoint, in the Hugging Face or Paddle layout (default: the demo "
        "model that comes with the package)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="of activations (default: auto, that of the checkpoint)",
    )
    group.add_argument(
        "--quantization",
        type=quantization,
        metavar="HOW",
        help="round the weights while loading: wint8 (int8 weights), w8a8 (int8 activations too; "
        "CPU only), wint4 (4-bit experts, int8 in the rest), or one for each kind of matrix: "
        '\'{"dense_quant_type": "wint4", "moe_quant_type": "wint4"}\' (4 bits in all); '
        "default: leave them as they are",
    )
    add_speculative_config(group)
    add_mm_processor_kwargs(group)
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N"
    )
    group.add_argument("--num-threads", type=int, metavar="N", help="CPU threads (default: all)")
    group.add_argument(
        "--max-model-len", type=int, metavar="N", help="tokens of prompt and answer together"
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="say on stderr what is loaded, and every five seconds how it goes",
    )


def add_mm_processor_kwargs(parser: Any) -> None:
    parser.add_argument(
        "--mm-processor-kwargs",
        type=json_object,
        metavar="JSON",
        help="how images and videos are prepared, in place of what the checkpoint's files say: "
        '\'{"image_max_pixels": 500000, "fps": 1, "max_frames": 32}\' takes fewer tokens',
    )


def add_speculative_config(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--speculative-config",
        type=json_object,
        metavar="JSON",
        help="guess tokens ahead with the checkpoint's multi-token prediction module: "
        '\'{"method": "mtp", "num_speculative_tokens": 1}\'; the same tokens, in fewer steps where '
        "the guesses are good",
    )


def quantization(text: str) -> str | dict[str, Any]:
    """A word, or a JSON object, which is looked at where the model is loaded."""
    if text.lstrip().startswith("{"):
        return json_object(text)
    if text not in QUANTIZATIONS:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {quoted(text)} (choose from {', '.join(QUANTIZATIONS)}, or a JSON "
            "object)"
        )
    return text


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {quoted(text)}")
    return value


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: str) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--max-length",
        "--max-tokens",
        dest="max_tokens",
        type=int,
        metavar="N",
        help=f"new tokens at most (default: {max_tokens})",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 (default) always takes the most probable token; 0.7 is livelier, 1 follows the "
        "model's own probabilities",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="choose among the most probable tokens that reach this probability (default: 1, all)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="choose among the K most probable tokens (default: 0, all)",
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="drop tokens below this share of the most probable one's probability (default: 0)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 against loops"
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end before this text; may be given several times",
    )


def add_folder(parser: argparse.ArgumentParser, metavar: str) -> None:
    """The model's folder without ``--model_path`` before it, which stays possible."""
    parser.add_argument(
        "model_path",
        nargs="?",
        # Leaves what the option says alone.
        default=argparse.SUPPRESS,
        metavar=metavar,
        help="folder of a checkpoint (default: the demo model)",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :meth:`LLM.from_pretrained` takes beside the folder."""
    names = (
        "device",
        "dtype",
        "quantization",
        "num_threads",
        "max_model_len",
        "speculative_config",
        "mm_processor_kwargs",
    )
    return {name: getattr(arguments, name) for name in names}


def load_model(arguments: argparse.Namespace, **changes: Any) -> LLM:
    return LLM.from_pretrained(arguments.model_path, **{**load_options(arguments), **changes})


def sampling_params(arguments: argparse.Namespace, **changes: Any) -> SamplingParams:
    values = {
        name: getattr(arguments, name)
        for name in ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "stop")
    }
    if arguments.max_tokens is not None:
        values["max_tokens"] = arguments.max_tokens
    return SamplingParams(**{**values, **changes})
