"""The generating thread: batches jobs as they arrive and hands out their tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hf_server.batches import Batch
from hf_server.errors import ApiError
from hf_server.rows import Job, Piece, Row, Sequence
from hf_server.sampling import choose, drawn_from
from hf_server.scoring import score, score_ids

LOG = logging.getLogger("hf_server")
T = TypeVar("T")
_WINDOW = 64  # waiting prompts that are searched for ones of similar length
_HEADROOM = 64  # tokens that a row must have room to grow by to be admitted
_SCORED = 1 << 27  # logits of one pass over prompts that are scored at every place


class Generator:
    """Generates in a thread of its own. Its methods are for the event loop's thread.

    `budget`: prompt tokens, padding included, that one pass computes. `processed`: answers'
    log-probabilities are those of the distribution that was sampled from.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        most_rows: int,
        budget: int,
        vocabulary_size: int,
        processed: bool = False,
    ) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self._batch = batch
        self._processed = processed
        self._most_rows = most_rows
        self._budget = budget
        self._scored_budget = max(256, min(budget, _SCORED // vocabulary_size))
        self._waiting: deque[Sequence] = deque()
        self._arrivals: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: list[tuple[Job, Piece | None]] = []
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still generates."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers being generated."""
        return len(self._batch.rows)

    @property
    def waiting(self) -> int:
        """Answers that are waiting for room."""
        return sum(len(sequence.rows) for sequence in tuple(self._waiting))

    def submit(self, job: Job) -> None:
        """Start a job; `job.done` resolves when all its rows are finished."""
        self._arrivals.put(lambda: self._waiting.extend(job.prompts))

    def cancel(self, job: Job) -> None:
        """Take a job's rows out of the batch; it is never reported as done."""
        job.cancelled = True
        self._arrivals.put(lambda: self._drop(job))

    async def call(self, function: Callable[[], T]) -> T:
        """Run something between two steps, in the generating thread."""
        result: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                outcome = function()
            except Exception as error:  # noqa: BLE001 - raised where it was called
                self._post(lambda failure=error: _settle(result, failure))
            else:
                self._post(lambda: _settle(result, outcome))

        self._arrivals.put(run)
        return await result

    async def stop(self) -> None:
        """End; unfinished answers fail with an error. Idempotent."""

        def stop() -> None:
            self._stopping = True

        self._arrivals.put(stop)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take(block=not (self._batch.rows or self._waiting))
                self._guard(self._admit)
                if self._batch.rows:
                    self._guard(self._decode)
                self._deliver()
        except BaseException:
            LOG.exception("generation failed")
            raise
        finally:
            self._fail_all("the server is shutting down", status=503)
            self._deliver()

    def _take(self, *, block: bool) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._stopping:
                self._arrivals.get(block=block)()
                block = False

    @torch.inference_mode()
    def _guard(self, step: Callable[[], None]) -> None:
        """Run a step; a failure fails the requests in flight, not the server."""
        try:
            step()
        except torch.cuda.OutOfMemoryError as error:
            LOG.exception("out of memory")
            self._fail_running(f"the server ran out of memory: {error}")
            torch.cuda.empty_cache()
        except torch.AcceleratorError:
            raise  # nothing works on that device any more
        except Exception as error:
            LOG.exception("a step failed")
            self._fail_running(f"generation failed: {type(error).__name__}: {error}")

    def _admit(self) -> None:
        """Compute the prompts of one group, led by the one that has waited longest."""
        group = self._group()
        if not group:
            return
        self._admitting = group
        for sequence in group:
            self._waiting.remove(sequence)
        logits = self._batch.prefill(group)
        self.prompt_tokens += sum(len(sequence.ids) for sequence in group)
        lines = [at for at, sequence in enumerate(group) for _ in sequence.rows]
        rows = [row for sequence in group for row in sequence.rows]
        self._advance(rows, logits if len(lines) == len(group) else logits[lines])

    def _group(self) -> list[Sequence]:
        batch = self._batch
        if not self._waiting or (batch.rows and not batch.joins_any_time):
            return []
        oldest = self._waiting[0]
        window = [self._waiting[at] for at in range(min(_WINDOW, len(self._waiting)))]
        window.sort(key=lambda s: abs(len(s.ids) - len(oldest.ids)))  # stable: the oldest leads
        group: list[Sequence] = []
        rows = widest = 0
        budget = self._budget
        for sequence in window:
            rows += len(sequence.rows)
            widest = max(widest, len(sequence.ids))
            if sequence.score is not None:
                budget = self._scored_budget
            alone = not group and not batch.rows
            if not alone and (
                len(batch.rows) + rows > self._most_rows or not batch.fits(rows, widest + _HEADROOM)
            ):
                break
            if group and widest * (len(group) + 1) > budget:
                break
            group.append(sequence)
        return group

    def _decode(self) -> None:
        batch = self._batch
        while len(batch.rows) > 1 and not batch.fits(0, batch.longest + 1):
            self._put_back(batch.rows[-1])
        self._advance(list(batch.rows), batch.decode())

    def _put_back(self, row: Row) -> None:
        """Make a row wait for memory; its tokens are computed again later."""
        self._batch.leave(row)
        self._waiting.appendleft(Sequence(row.job, [*row.prompt, *row.ids], [row], row.adapter))

    def _advance(self, rows: list[Row], logits: torch.Tensor) -> None:
        scored = [at for at, row in enumerate(rows) if row.sampling.logprobs is not None]
        told = logits[scored] if scored else None
        values = logits.float()
        tokens = choose(values, rows)
        self.generation_tokens += len(tokens)
        if told is not None:
            if self._processed:
                told = drawn_from(values[scored], [rows[at] for at in scored])
            top = max(rows[at].sampling.logprobs or 0 for at in scored)
            found = score(told, [tokens[at] for at in scored], top=top)
            for line, (at, its) in enumerate(zip(scored, found, strict=True)):
                how = rows[at].sampling
                wanted = how.logprob_token_ids
                its.top = score_ids(told[line], wanted) if wanted else its.top[: how.logprobs]
                rows[at].scores.append(its)
        for row, token in zip(rows, tokens, strict=True):
            try:
                row.advance(token)
            except ApiError as error:
                self._fail(row.job, error)
                continue
            except Exception as error:
                LOG.exception("a row failed")
                self._fail(row.job, ApiError(500, f"generation failed: {error}"))
                continue
            if row.job.stream:
                self._outbox.append((row.job, row.piece()))
        # from the end, so that few slots move
        for row in reversed([row for row in self._batch.rows if row.finish_reason]):
            self._batch.leave(row)
            if row.job.finished:
                self._outbox.append((row.job, None))

    def _drop(self, job: Job) -> None:
        for row in [row for row in self._batch.rows if row.job is job]:
            self._batch.leave(row)
        self._waiting = deque(s for s in self._waiting if s.job is not job)

    def _fail(self, job: Job, error: ApiError) -> None:
        job.error = error
        self._drop(job)
        self._outbox.append((job, None))

    def _fail_running(self, message: str) -> None:
        group, self._admitting = self._admitting, []
        jobs = {row.job for row in self._batch.rows} | {sequence.job for sequence in group}
        self._batch.clear()
        for job in jobs:
            self._fail(job, ApiError(500, message))

    def _fail_all(self, message: str, *, status: int) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._arrivals.get(block=False)()
        jobs = {row.job for row in self._batch.rows} | {s.job for s in self._waiting}
        self._batch.clear()
        for job in jobs:
            self._fail(job, ApiError(status, message))

    _admitting: list[Sequence] = []  # noqa: RUF012 - replaced, never changed

    def _deliver(self) -> None:
        self._admitting = []
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._post(lambda: _hand_out(outbox))

    def _post(self, function: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)


def _settle(result: asyncio.Future[Any], outcome: Any) -> None:
    if result.done():
        return
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)


def _hand_out(outbox: list[tuple[Job, Piece | None]]) -> None:
    for job, piece in outbox:
        if job.cancelled:
            continue
        if job.stream:
            job.pieces.put_nowait(job.error or piece)
        if piece is None and not job.done.done():
            job.done.set_result(None)
