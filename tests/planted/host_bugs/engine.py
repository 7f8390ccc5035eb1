"""Bugs of the engine, and of the steps that it runs."""

from __future__ import annotations

from bug import FORWARD, GENERATE, INTERRUPTS, INVARIANCE, LEFTOVERS, THREADS, Bug

BUGS = [
    Bug(
        "layers: outputs of the first rows",
        "python/ernie_kernels/runner/batch.py",
        "np.arange(stop - n, stop)",
        "np.arange(stop - n, stop) - stop + lengths[0]",
        FORWARD,
    ),
    Bug(
        "engine: text goes on from an interrupted token",
        "python/ernie_kernels/runner/engine.py",
        "            sequence.replay_text()\n",
        "            pass\n",
        INTERRUPTS,
    ),
    Bug(
        "engine: an interrupted step is not mended",
        "python/ernie_kernels/runner/engine.py",
        "        self._is_torn = True\n        involved:",
        "        involved:",
        INTERRUPTS,
    ),
    Bug(
        "engine: an abort ends all answers",
        "python/ernie_kernels/runner/engine.py",
        "isdisjoint(((s.request_id, None), (s.request_id, s.index)))",
        "isdisjoint((s.request_id, i) for i in (None, *range(s.params.n)))",
        THREADS,
    ),
    Bug(
        "engine: an abort overtakes its request",
        "python/ernie_kernels/runner/engine.py",
        "        if num_aborted:\n",
        "        num_aborted = len(self._aborted)\n        if num_aborted:\n",
        THREADS,
    ),
    Bug(
        "engine: who comes and goes at once is remembered for ever",
        "python/ernie_kernels/runner/engine.py",
        "        if num_ended:\n",
        "        num_ended = len(self._ended)\n        if num_ended:\n",
        THREADS,
    ),
    Bug(
        "engine: code of ours at the end of a forgotten stream",
        "python/ernie_kernels/runner/engine.py",
        "            # that struck in code of ours here, and none strikes where nothing is called.\n",
        "            ticket.close()\n",
        THREADS,
    ),
    Bug(
        "engine: who asks for figures does not stand in line",
        "python/ernie_kernels/runner/engine.py",
        'FeatureStore`).\n        """\n        with self._waiting, self._lock:',
        'FeatureStore`).\n        """\n        with self._lock:',
        THREADS,
    ),
    Bug(
        "engine: a call's sequences refer to each other",
        "python/ernie_kernels/runner/engine.py",
        "            sequence.siblings = []\n",
        "",
        LEFTOVERS,
    ),
    Bug(
        "engine: a failed step ends everybody",
        "python/ernie_kernels/runner/engine.py",
        "if not sequences or not sequences.isdisjoint(call.sequences)",
        "if True",
        THREADS,
    ),
    Bug(
        "engine: a forgotten ticket lives on",
        "python/ernie_kernels/runner/ticket.py",
        "self.is_closed or self.ticket is None or self.ticket() is None",
        "self.is_closed",
        THREADS,
    ),
    Bug(
        "engine: rows of whole prompts among the others",
        "python/ernie_kernels/runner/engine.py",
        "scheduled = sorted(scheduled, key=lambda item: item[0].logits is not None)",
        "scheduled = list(scheduled)",
        INVARIANCE,
    ),
    Bug(
        "sampler: seed by what is in the cache",
        "python/ernie_kernels/runner/sampler.py",
        "[sequence.num_tokens for sequence in sequences]",
        "[sequence.num_computed for sequence in sequences]",
        GENERATE,
    ),
]
