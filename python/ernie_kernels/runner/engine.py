"""The one door to the cache: requests of all callers, run together step by step."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from typing import NoReturn

import numpy as np

from ernie_kernels._core import Tensor
from ernie_kernels.errors import ArgumentError, InternalError
from ernie_kernels.models.ernie import ErnieForCausalLM
from ernie_kernels.runner.batch import TokenSpan
from ernie_kernels.runner.block_manager import BlockManager
from ernie_kernels.runner.media import MediaPlan
from ernie_kernels.runner.model_runner import ModelRunner
from ernie_kernels.runner.progress import ProgressMaker
from ernie_kernels.runner.requests import Request, make_prompt_sequence, make_sequences
from ernie_kernels.runner.sampler import SampleFunction
from ernie_kernels.runner.scheduler import Scheduler
from ernie_kernels.runner.sequence import Progress, Sequence
from ernie_kernels.runner.speculation import LOOKAHEAD, DraftCounts, draft
from ernie_kernels.runner.throughput_log import Load, ThroughputLog
from ernie_kernels.runner.ticket import Call, Ticket
from ernie_kernels.runner.visual_features import FeatureStore, Reading
from ernie_kernels.runner.waiting import Waiting
from ernie_kernels.tokenizer import Tokenizer

# A lock that is taken again at once is never had by those who wait for it: seconds to leave it free.
HAND_OVER = 50e-6


class Engine:
    """Serves callers of several threads with one model and one cache.

    A caller adds requests, which gives a :class:`Ticket`, and then calls :meth:`step` until it has
    taken all outputs from it; :meth:`outputs` does both. Each step advances everybody's sequences,
    whoever calls it.

    What sequences have appended to their ``progress`` is the truth. When a step is interrupted or
    fails halfway, the next one first makes everything else anew from that: nobody's tokens are lost
    or doubled. Only the call whose step fails ends with the error.
    """

    def __init__(
        self,
        runner: ModelRunner,
        block_manager: BlockManager,
        sampler: SampleFunction,
        *,
        eos_token_ids: Iterable[int],
        tokenizer: Tokenizer | None,
        max_num_seqs: int,
    ) -> None:
        self.num_prompt_tokens = 0  # computed; those found in the cache are not
        self.num_generated_tokens = 0
        self._runner: ModelRunner | None = runner
        self._block_manager = block_manager
        self._sampler: SampleFunction = sampler
        self._drafts = DraftCounts()
        self._tokenizer = tokenizer
        self._maker = ProgressMaker(eos_token_ids, tokenizer)
        self._scheduler = Scheduler(
            block_manager,
            max_num_seqs=max_num_seqs,
            max_tokens_per_step=runner.max_tokens_per_step,
            lookahead=LOOKAHEAD if runner.num_drafts else 0,
        )
        self._features = FeatureStore()
        self._log = ThroughputLog()
        self._waiting = Waiting()
        # Holds off other steps. What follows it is touched by its holder alone.
        self._lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._is_torn = False  # whether something may have been left half done
        # Filled by any thread at any time, emptied by the next step.
        self._arrived: deque[Call] = deque()
        self._aborted: deque[tuple[int, int | None]] = deque()
        self._ended: deque[object] = deque()
        self._call_numbers = itertools.count()
        self._request_ids = itertools.count()

    # ------------------------------------------------------------------------------------- requests

    def add_request(self, request: Request) -> Ticket:
        """Let one request wait for its turn; see :meth:`add_requests`."""
        return self.add_requests([request])

    def add_requests(self, requests: Iterable[Request]) -> Ticket:
        """Let requests wait for their turns. May be called from any thread, also during a step.

        Raises:
            ArgumentError: the engine is closed.
            CapacityError: one could never run, not even alone.
        """
        sequences = []
        for request in requests:
            answers = make_sequences(request, self._tokenizer)
            request_id = next(self._request_ids)
            for sequence in answers:
                sequence.request_id = request_id
                sequence.siblings = answers
            sequences += answers
        return self._add(sequences)

    def _add(self, sequences: list[Sequence]) -> Ticket:
        self.check_open()
        call = Call(next(self._call_numbers), sequences, deque())
        for sequence in sequences:
            sequence.news = call.news
            self._scheduler.prepare(sequence)
        ticket = Ticket(call, self._ended.append)
        self._arrived.append(call)
        return ticket

    def abort(self, request_id: int, index: int | None = None) -> None:
        """End a request, or one of its answers, with finish_reason "abort".

        May be called at any time from any thread; takes effect with the next step, or at the end of
        the one that is running. What has ended already is not affected.
        """
        self._aborted.append((request_id, index))

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would have something to do."""
        return bool(self._arrived or self._scheduler.num_running or self._scheduler.num_waiting)

    # ----------------------------------------------------------------------------------------- steps

    def step(self, ticket: Ticket | None = None) -> None:
        """Advance all sequences that can run; none if ``ticket`` has news by then.

        Waits for the step of another thread. An error of the model ends the calls that took part in
        the step, and comes out of their tickets.

        Raises:
            ArgumentError: the engine is closed.
        """
        with self._waiting, self._lock:
            self._waiting.stepping = threading.get_ident()
            try:
                if ticket is None or not ticket.has_news:
                    self._step(self._open_runner())
            finally:
                self._waiting.stepping = None
        self._log.write()
        if self._waiting:
            time.sleep(HAND_OVER)

    def outputs(self, ticket: Ticket) -> Generator[list[tuple[Sequence, Progress]], None, None]:
        """Step until a ticket's requests are done; yields what it has to take, as it comes.

        An exception closes the ticket.
        """
        try:
            while not ticket.is_done:
                self.step(ticket)
                taken = ticket.take()
                if taken:
                    yield taken
            ticket.close()
        except GeneratorExit:
            # Given up: the ticket ends with the last reference to it. Python would lose an interrupt
            # that struck in code of ours here, and none strikes where nothing is called.
            raise
        except BaseException:
            ticket.close()  # the traceback may be kept, and refer to it
            raise

    def forward(
        self,
        prompts: list[np.ndarray],
        vocab_size: int,
        plans: list[MediaPlan | None] | None = None,
    ) -> list[np.ndarray]:
        """Logits of all tokens of all prompts: float32 ``[len(prompt), vocab_size]`` each."""
        logits = [np.empty((len(ids), vocab_size), np.float32) for ids in prompts]
        plans = plans or [None] * len(prompts)
        sequences = [
            make_prompt_sequence(index, *each)
            for index, each in enumerate(zip(prompts, logits, plans, strict=True))
        ]
        for _ in self.outputs(self._add(sequences)):
            pass
        for sequence in sequences:
            sequence.logits = None  # the call is remembered until the next step
        return logits

    def _step(self, runner: ModelRunner) -> None:
        self._tidy()
        self._log.step_begins(self._load)
        self._is_torn = True
        involved: set[Sequence] = set()
        try:
            readings: list[Reading] = []
            scheduled = self._scheduler.schedule(
                lambda *tokens: self._features.may_read(Reading(*tokens), readings)
            )
            encoded = self._encode(runner, readings, involved)
            if scheduled:
                involved = {sequence for sequence, _ in scheduled}
                self._run(runner, scheduled)
            elif not encoded and self._scheduler.num_running + self._scheduler.num_waiting:
                raise InternalError("engine: sequences wait and none can run")
        except Exception as error:  # noqa: BLE001  (it is raised where the outputs are taken)
            self._fail(error, involved)
        else:
            self._is_torn = False
        self._tidy()
        self._log.step_ends(self._load)

    def _encode(
        self, runner: ModelRunner, readings: list[Reading], involved: set[Sequence]
    ) -> bool:
        """Go on with images that prompts wait for; whether there were any.

        As long as a chunk of a prompt takes, or until somebody comes or goes. Who has too large a
        picture ends alone: meanwhile the sequences in ``involved`` are those of one call.
        """
        if not readings:
            return False
        products = runner.products_per_step
        num_slices = 0
        while products > 0 and not (num_slices and self._has_news):
            reading = self._features.next_reading(readings)
            if reading is None:
                break
            every = (s for call in self._calls.values() for s in call.sequences)
            involved.update(s for s in every if s.media is reading.media)
            products -= self._features.advance(reading, runner.model.visual_slices)
            involved.clear()
            num_slices += 1
        return num_slices > 0

    @property
    def _has_news(self) -> bool:
        return bool(self._arrived or self._aborted or self._ended)

    def _run(self, runner: ModelRunner, scheduled: list[tuple[Sequence, TokenSpan]]) -> None:
        # Those that sample first, so that their rows lie together.
        scheduled = sorted(scheduled, key=lambda item: item[0].logits is not None)
        spans = [span for _, span in scheduled]
        sampled = [(s, span) for s, span in scheduled if span.num_outputs and s.logits is None]
        row = sum(span.num_outputs for _, span in sampled)
        logits = runner.decode(spans) if len(sampled) == len(scheduled) else None
        if logits is None:
            hidden_states = runner.run(spans)
            if sampled:
                logits = runner.logits(hidden_states[:row])
        if logits is not None:
            self._sample(logits, sampled)
        self._end_flagged(runner, scheduled)
        for sequence, span in scheduled:
            if sequence.logits is not None:
                rows = hidden_states[row : row + span.num_outputs]
                row += span.num_outputs
                runner.write_logits(rows, sequence.logits[span.start : span.stop])
                if span.stop == sequence.num_prompt_tokens:
                    self._commit(sequence, Progress(None, None, finish_reason="length"))
        stops = [span.stop for span in spans]
        if runner.num_drafts:
            stops = draft(runner, self._sampler, scheduled)
        for (sequence, span), stop in zip(scheduled, stops, strict=True):
            read = min(span.stop, sequence.num_prompt_tokens) - span.start
            self.num_prompt_tokens += max(0, read)
            self._scheduler.advance(sequence, stop)
            if span.media is not None and span.start < sequence.num_prompt_tokens:
                span.media.release_before(stop)
            if sequence.is_finished:
                self._scheduler.remove(sequence)

    def _sample(self, logits: Tensor, sampled: list[tuple[Sequence, TokenSpan]]) -> None:
        """Commit each sequence's next token, and behind every draft that proves right one more."""
        rows = [(s, s.num_tokens + i) for s, span in sampled for i in range(span.num_outputs)]
        tokens, logprobs = self._sampler(logits, [s for s, _ in rows], [n for _, n in rows])
        row = 0
        for sequence, span in sampled:
            drafts = span.token_ids[1 - span.num_outputs :].tolist() if span.num_outputs > 1 else []
            sequence.num_drafted = 0
            self._drafts.drafted += len(drafts)
            token = self._commit_token(sequence, tokens[row], logprobs[row])
            for ahead, guess in enumerate(drafts, row + 1):
                if guess != token or sequence.is_finished:
                    break
                self._drafts.accepted += 1
                token = self._commit_token(sequence, tokens[ahead], logprobs[ahead])
            row += span.num_outputs

    def _commit_token(self, sequence: Sequence, token: int, logprobs: np.ndarray | None) -> int:
        """Returns the token that follows: the one that was chosen, unless it has to be another."""
        if sequence.reasoning_limit is not None:
            outputs = sequence.token_ids[sequence.num_prompt_tokens : sequence.num_tokens]
            token = sequence.reasoning_limit.next_token(outputs, token)
        progress = self._maker.of_token(sequence, token, logprobs)
        if progress.token_id is not None:
            # Beyond the tokens that count: it does with the next statement.
            sequence.token_ids[sequence.num_tokens] = token
            self.num_generated_tokens += 1
        self._commit(sequence, progress)
        return token

    def _end_flagged(
        self, runner: ModelRunner, scheduled: list[tuple[Sequence, TokenSpan]]
    ) -> None:
        """End the sequences with a token that a router could not choose experts for.

        Those that sample have ended by their logits, which are not finite then either; but for a
        draft that was wrong, which matters to nobody.
        """
        for index, position in runner.flagged([span for _, span in scheduled]):
            sequence = scheduled[index][0]
            is_draft = position >= sequence.num_tokens - 1
            if sequence.logits is None and not sequence.is_finished and not is_draft:
                self._commit(sequence, self._maker.of_no_experts(sequence, position))

    @staticmethod
    def _commit(sequence: Sequence, progress: Progress) -> None:
        sequence.progress.append(progress)
        sequence.news.append(sequence)

    # ------------------------------------------------------------------------------ between the steps

    def _fail(self, error: Exception, sequences: set[Sequence]) -> None:
        """End the calls of these sequences, or all if the step had not come to any."""
        for call in list(self._calls.values()):
            if not sequences or not sequences.isdisjoint(call.sequences):
                call.error = error
                self._forget(call)

    def _tidy(self) -> None:
        """Mend what was interrupted, let in who has come, and take out who has gone.

        May itself be interrupted and repeated anywhere.
        """
        if self._is_torn:
            self._mend()
        if not self._has_news:
            return
        self._is_torn = True
        # Counted before those who have come are let in: who goes after that may have come after it.
        num_aborted, num_ended = len(self._aborted), len(self._ended)
        while self._arrived:
            call = self._arrived[0]
            if call.number not in self._calls:
                for sequence in call.sequences:
                    self._scheduler.add(sequence)
                self._calls[call.number] = call
            self._arrived.popleft()
        if num_aborted:
            aborted = set(itertools.islice(self._aborted, num_aborted))
            for call in self._calls.values():
                self._abort(
                    s
                    for s in call.sequences
                    if not aborted.isdisjoint(((s.request_id, None), (s.request_id, s.index)))
                )
            for _ in range(num_aborted):
                self._aborted.popleft()
        if self._features.is_encoding:
            going = [call for call in self._calls.values() if not call.is_abandoned]
            every = (sequence for call in going for sequence in call.sequences)
            self._features.give_up_all_but(
                {s.media for s in every if s.media is not None and not s.is_finished}
            )
        if num_ended:
            for call in [call for call in self._calls.values() if call.is_abandoned]:
                self._abort(call.sequences)
                self._forget(call)
            for _ in range(num_ended):
                self._ended.popleft()
        self._is_torn = False

    def _abort(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            if not sequence.is_finished:
                self._commit(sequence, self._maker.of_abort(sequence))
                self._scheduler.remove(sequence)

    def _forget(self, call: Call) -> None:
        for sequence in call.sequences:
            # No circle remains: all is freed with the last reference to it.
            sequence.siblings = []
            sequence.news = deque()
            sequence.media = None  # a ticket may stay: not with features on the device
        del self._calls[call.number]

    def _mend(self) -> None:
        """Make everything anew from the progress of the sequences."""
        unfinished = []
        for call in self._calls.values():
            call.news.extend(call.sequences)  # who was not told yet is told again
            unfinished += [s for s in call.sequences if not s.is_finished]
        for sequence in unfinished:
            sequence.replay_text()
        self._scheduler.restore(unfinished)
        self._is_torn = False

    # ----------------------------------------------------------------------------------------- state

    def stats(self) -> dict[str, int | float | None]:
        """What is going on now, and what was done since the beginning.

        Returns:
            ``num_free_blocks`` (those that can be had), ``num_cached_blocks`` (those of them whose
            contents may still be of use), ``running``, ``waiting`` (sequences), ``prompt_tokens``
            (computed), ``prefix_hit_tokens`` (found in the cache instead), ``generated_tokens``,
            ``preemptions``, ``drafted_tokens``, ``accepted_tokens`` (those of them that proved
            right), ``acceptance_rate`` (None before the first draft), ``encoded_images``,
            ``image_hits``, ``feature_bytes`` (of :class:`.FeatureStore`).
        """
        with self._waiting, self._lock:
            self._tidy()
            return {
                "num_free_blocks": self._block_manager.num_free,
                "num_cached_blocks": self._block_manager.num_cached,
                "running": self._scheduler.num_running,
                "waiting": self._scheduler.num_waiting,
                "prompt_tokens": self.num_prompt_tokens,
                "prefix_hit_tokens": self._scheduler.num_prefix_hit_tokens,
                "generated_tokens": self.num_generated_tokens,
                "preemptions": self._scheduler.num_preemptions,
                "drafted_tokens": self._drafts.drafted,
                "accepted_tokens": self._drafts.accepted,
                "acceptance_rate": self._drafts.rate,
                "encoded_images": self._features.num_encoded,
                "image_hits": self._features.num_hits,
                "feature_bytes": self._features.total_nbytes,
            }

    def _load(self) -> Load:
        return Load(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            prompt_tokens=self.num_prompt_tokens,
            generated_tokens=self.num_generated_tokens,
            num_blocks=self._block_manager.num_blocks,
            num_free_blocks=self._block_manager.num_free,
            drafted_tokens=self._drafts.drafted,
            accepted_tokens=self._drafts.accepted,
        )

    def check(self) -> None:
        """Raises InternalError unless blocks, sequences and lists agree with each other."""
        with self._waiting, self._lock:
            self._tidy()
            self._scheduler.check()
            known = [s for call in self._calls.values() for s in call.sequences]
            scheduled = self._scheduler.num_running + self._scheduler.num_waiting
            if sum(not s.is_finished for s in known) != scheduled:
                raise InternalError("engine: a sequence is neither finished nor scheduled")

    def close(self) -> None:
        """Release model, cache and the sampler's memory; every later call raises ArgumentError."""
        with self._waiting, self._lock:
            self._runner = None
            self._features.clear()
            self._sampler = _sample_after_close

    @property
    def model(self) -> ErnieForCausalLM:
        """The loaded model. Raises ArgumentError when the engine is closed."""
        return self._open_runner().model

    def check_open(self) -> None:
        self._open_runner()

    def _open_runner(self) -> ModelRunner:
        if self._runner is None:
            raise ArgumentError(
                "LLM: expected an open model, got one that was closed; load it anew"
            )
        return self._runner


def _sample_after_close(
    logits: Tensor, sequences: list[Sequence], positions: list[int]
) -> NoReturn:
    raise InternalError("engine: a step of a model that is closed")
