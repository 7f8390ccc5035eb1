"""Bugs of the multi-token prediction module and of the drafts that it makes."""

from __future__ import annotations

from bug import Bug

MODULE = ["tests/models/test_mtp.py"]
DRAFTS = ["tests/runner/test_speculation.py"]
ENGINE = ["tests/runner/test_engine_operations.py"]
REQUESTS = ["tests/runner/test_random_requests.py"]

MTP = "python/ernie_kernels/models/mtp.py"
SPECULATION = "python/ernie_kernels/runner/speculation.py"
ENGINE_FILE = "python/ernie_kernels/runner/engine.py"
SCHEDULER_FILE = "python/ernie_kernels/runner/scheduler.py"
RUNNER = "python/ernie_kernels/runner/model_runner.py"

BUGS = [
    Bug(
        "mtp: the hidden state's half comes first",
        MTP,
        "embedded, carried = joined",
        "carried, embedded = joined",
        MODULE,
    ),
    Bug(
        "mtp: embeddings not normed",
        MTP,
        "        self.emb_norm(embedded, out=embedded)\n",
        "",
        MODULE,
    ),
    Bug(
        "mtp: the two norms mixed up",
        MTP,
        "self.hidden_norm(hidden_states, out=carried)",
        "self.emb_norm(hidden_states, out=carried)",
        MODULE,
    ),
    Bug(
        "mtp: a norm of its own behind the block",
        MTP,
        "self._decoder.norm.add(output, residual)",
        "self.hidden_norm.add(output, residual)",
        MODULE,
    ),
    Bug(
        "mtp: a transposed projection not known as such",
        "python/ernie_kernels/models/weight_specs.py",
        "WeightSpec.of(hidden, joined, either_way=True)",
        "WeightSpec.of(hidden, joined)",
        MODULE,
    ),
    Bug(
        "mtp: loaded where nobody asked for it",
        "python/ernie_kernels/models/ernie.py",
        "weight_specs(config) | (mtp_specs(config) if with_mtp else {})",
        "weight_specs(config) | mtp_specs(config)",
        MODULE,
    ),
    Bug(
        "drafts: the hidden state before the norm for the one after it",
        SPECULATION,
        "after_norm if self._reads_normed else before_norm",
        "before_norm if self._reads_normed else after_norm",
        MODULE,
    ),
    Bug(
        "drafts: hidden states of the first sequence for all",
        SPECULATION,
        "np.arange(first, first + len(span.token_ids))",
        "np.arange(len(span.token_ids))",
        REQUESTS,
    ),
    Bug(
        "drafts: only the rows that are sampled from have hidden states",
        RUNNER,
        "replace(batch, outputs=replace(batch.queries))",
        "batch",
        MODULE,
    ),
    Bug(
        "drafts: the module reads the token itself, not the next",
        SPECULATION,
        "sequence.token_ids[span.start + 1 : stop + 1]",
        "sequence.token_ids[span.start : stop]",
        DRAFTS,
    ),
    Bug(
        "drafts: the module one position ahead",
        SPECULATION,
        "TokenSpan(token_ids, span.start, span.blocks",
        "TokenSpan(token_ids, span.start + 1, span.blocks",
        DRAFTS,
    ),
    Bug(
        "drafts: a wrong one counts as computed",
        SPECULATION,
        "stop = min(span.stop, sequence.num_tokens - 1)",
        "stop = span.stop",
        ENGINE,
    ),
    Bug(
        "drafts: one for the last token, too",
        SPECULATION,
        "return room >= 2",
        "return room >= 1",
        DRAFTS,
    ),
    Bug(
        "drafts: blocks named without the token behind them",
        SPECULATION,
        "LOOKAHEAD = 1 ",
        "LOOKAHEAD = 0 ",
        ENGINE,
    ),
    Bug(
        "drafts: every one is right",
        ENGINE_FILE,
        "if guess != token or sequence.is_finished:",
        "if sequence.is_finished:",
        ENGINE,
    ),
    Bug(
        "drafts: tokens behind the end",
        ENGINE_FILE,
        "if guess != token or sequence.is_finished:",
        "if guess != token:",
        ENGINE,
    ),
    Bug(
        "drafts: both choices by the key of the first",
        ENGINE_FILE,
        "[(s, s.num_tokens + i) for s, span in sampled",
        "[(s, s.num_tokens + 0 * i) for s, span in sampled",
        DRAFTS,
    ),
    Bug(
        "drafts: where there is none, the one before",
        ENGINE_FILE,
        "            sequence.num_drafted = 0\n            self._drafts.drafted",
        "            self._drafts.drafted",
        DRAFTS,
    ),
    Bug(
        "drafts: one that is no token",
        SPECULATION,
        "            if token < 0:  # the module overflows\n                continue\n",
        "",
        DRAFTS,
    ),
    Bug(
        "drafts: what a router says of a wrong one ends the request",
        ENGINE_FILE,
        " and not is_draft:",
        ":",
        DRAFTS,
    ),
    Bug(
        "drafts: penalties do not see them",
        "python/ernie_kernels/runner/sampler.py",
        "sequence.token_ids[:position] if",
        "sequence.token_ids[: sequence.num_tokens] if",
        DRAFTS,
    ),
    Bug(
        "drafts: blocks that are not there",
        SCHEDULER_FILE,
        "room = (sequence.num_blocks + manager.num_free)",
        "room = (sequence.num_blocks + manager.num_blocks)",
        DRAFTS,
    ),
    Bug(
        "drafts: no room in the step",
        SCHEDULER_FILE,
        "_Step(self._max_tokens_per_step - num_drafted)",
        "_Step(self._max_tokens_per_step)",
        DRAFTS,
    ),
    Bug(
        "drafts: kept by who loses its blocks",
        SCHEDULER_FILE,
        "        sequence.num_drafted = 0\n        self._block_manager.release(blocks)",
        "        self._block_manager.release(blocks)",
        DRAFTS,
    ),
    Bug(
        "drafts: kept after an interrupt",
        SCHEDULER_FILE,
        "            sequence.num_drafted = 0\n            if sequence.num_computed",
        "            if sequence.num_computed",
        DRAFTS,
    ),
    Bug(
        "drafts: the second at the position of the first",
        SPECULATION,
        "[at : at + 1], at - 1,",
        "[at : at + 1], at - 2,",
        ENGINE,
    ),
    Bug(
        "drafts: the second from the model's hidden state",
        SPECULATION,
        "        self.keep(before_norm=before_norm, after_norm=after_norm)\n",
        "",
        MODULE,
    ),
    Bug(
        "drafts: the second from another sequence's",
        SPECULATION,
        "[row for row, _, _ in further]",
        "list(range(len(further)))",
        ENGINE,
    ),
    Bug(
        "drafts: the second beyond the sequence's blocks",
        SPECULATION,
        "if span.stop <= sequence.num_blocks * runner.block_size:",
        "if span.stop > 0:",
        ENGINE,
    ),
    Bug(
        "drafts: the second by the key of the first",
        SPECULATION,
        "[s.num_tokens + s.num_drafted for s in drafting]",
        "[s.num_tokens for s in drafting]",
        DRAFTS,
    ),
]
