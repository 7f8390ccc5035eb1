"""Bugs of vision-language models on a GPU: which steps are graphs, what is copied, and who waits."""

from __future__ import annotations

from backends import UNWRITTEN, WRONG
from bug import VARLEN_ATTENTION, Bug

MODEL_RUNNER_PY = "python/ernie_kernels/runner/model_runner.py"
VL_MODEL = ["tests/models/test_vl_cuda.py"]
MEDIA = ["tests/runner/test_media_cuda.py"]
MEDIA_CALLS = ["tests/simt/test_media_calls.py"]

BUGS = [
    Bug(
        "decode step: a graph reads the last token of a prompt with images",
        MODEL_RUNNER_PY,
        "        if any(s.media is not None and s.start < len(s.media.plan.banks) for s in spans):\n"
        "            return None\n",
        "",
        MEDIA,
        (WRONG,),
    ),
    Bug(
        "decode step: a graph reads ids that ask the vision experts",
        MODEL_RUNNER_PY,
        "        first = self.first_vision_id\n",
        "        first = None\n",
        MEDIA,
        (WRONG,),
    ),
    Bug(
        "decode step: positions as if media were text",
        "python/ernie_kernels/runner/decode_graph.py",
        "numbers + [span.position_delta for span in spans]",
        "numbers",
        MEDIA,
        (WRONG,),
    ),
    Bug(
        "step: features of every image in the rows of the first",
        "python/ernie_kernels/runner/step_media.py",
        "            begin += len(each)\n",
        "            begin += 0\n",
        VL_MODEL,
        (UNWRITTEN, WRONG),
    ),
    Bug(
        "features: copies wait for the vision tower",
        "python/ernie_kernels/runner/visual_features.py",
        "            queue_copy(own, rows[first : first + count])\n",
        "            own = rows[first : first + count].to('cpu').to(rows.device)\n",
        MEDIA_CALLS,
        (WRONG,),
    ),
    Bug(
        "segments: float32 keys of the first for all",
        "csrc/cuda/attention/keys.cuh",
        "(first_token_ + key) * source.token_stride",
        "int64_t{key} * source.token_stride",
        VARLEN_ATTENTION,
        (WRONG,),
        "csrc/cuda/attention/float32.cu",
    ),
    Bug(
        "segments: 16-byte copies of 80 values as of 64",
        "csrc/cuda/attention/tile.cuh",
        "    constexpr int kUnits = kHeadDim / kUnit;\n",
        "    constexpr int kUnits = 64 / kUnit;\n",
        VARLEN_ATTENTION,
        (UNWRITTEN, WRONG),
        "csrc/cuda/attention/hdim80_segments_bf16.cu",
    ),
]
