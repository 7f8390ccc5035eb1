"""Bugs of the decode step as a graph, and in its order of calls."""

from __future__ import annotations

from backends import RACE, UNWRITTEN, WRONG
from bug import Bug

DECODE_GRAPH_PY = "python/ernie_kernels/runner/decode_graph.py"
DECODE_GRAPH = ["tests/models/test_decode_graph.py"]
GRAPHS = ["tests/simt/test_graphs.py"]
DECODE_CALLS = ["tests/simt/test_decode_calls.py"]

BUGS = [
    Bug(
        "graph: a call of the capturing thread goes to the default stream",
        "csrc/bindings/tensor_caster.cpp",
        "return captured_stream({t->device, t->stream});",
        "return {t->device, t->stream};",
        GRAPHS,
        (WRONG,),
    ),
    Bug(
        "graph: allocations are not refused",
        "csrc/core/memory.cpp",
        'if (nbytes > 0) refuse_capture("allocates memory");',
        "(void)0;",
        GRAPHS,
        (WRONG,),
    ),
    Bug(
        "graph: other threads may not allocate during a capture",
        "csrc/cuda/graph.cu",
        "cudaStreamCaptureModeThreadLocal",
        "cudaStreamCaptureModeGlobal",
        GRAPHS,
        (WRONG,),
    ),
    Bug(
        "graph: an exception leaves the capture open",
        "csrc/core/graph.cpp",
        "cuda::drop_capture(end());",
        "end();",
        GRAPHS,
        (WRONG,),
    ),
    Bug(
        "graph: pinned memory is never released",
        "csrc/cuda/memory.cu",
        "  ignore_error(cudaFreeHost(p));\n",
        "",
        GRAPHS,
        (WRONG,),
    ),
    Bug(
        "decode step: the graph does not hold the upload",
        DECODE_GRAPH_PY,
        "        self._upload.send()\n",
        "        if not self._has_run:\n            self._upload.send()\n",
        DECODE_GRAPH,
        (UNWRITTEN, WRONG),
    ),
    Bug(
        "decode step: padding writes to the cache",
        DECODE_GRAPH_PY,
        'arrays["slot_mapping"][count:] = -1',
        'arrays["slot_mapping"][count:] = 0',
        DECODE_GRAPH,
        (WRONG, RACE),
    ),
    Bug(
        "decode step: a graph outlives the choice of kernels",
        DECODE_GRAPH_PY,
        "size = num_rows, length, _core.batch_invariant()",
        "size = num_rows, length, False",
        DECODE_GRAPH,
        (WRONG,),
    ),
    Bug(
        "decode step: attention takes a workspace of its own",
        DECODE_GRAPH_PY,
        "replace(buffers, attention_workspace=self._attention_workspace)",
        "replace(buffers, attention_workspace=None)",
        DECODE_GRAPH,
        (WRONG,),
    ),
    Bug(
        "decode step: workspace for the longest sequences alone",
        DECODE_GRAPH_PY,
        "max(self._attention_bytes(*size) for size in self._sizes())",
        "self._attention_bytes(1, SHORTEST_LENGTH)",
        DECODE_GRAPH,
        (WRONG,),
    ),
    Bug(
        "transfers: filled again while the copy may be on its way",
        "python/ernie_kernels/runner/transfers.py",
        "if self._filled_after == self._transfers.num_waits:",
        "if self._filled_after > self._transfers.num_waits:",
        DECODE_CALLS,
        (WRONG,),
    ),
    Bug(
        "sampler: waits for the logits too",
        "python/ernie_kernels/runner/sampler.py",
        "            self._asked.queue(logits[row : row + 1], index)\n",
        "            self._asked.queue(logits[row : row + 1], index)\n            self._transfers.wait()\n",
        DECODE_CALLS,
        (WRONG,),
    ),
]
