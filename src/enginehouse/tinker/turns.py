"""What is computed next: whose jobs, and which of them together in one pass."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.fairness import FairTurns
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.order import Job
from enginehouse.tinker.parts import split_request
from enginehouse.tinker.residency import Model, Residency
from enginehouse.tinker.trainers.base import TrainerInfo
from enginehouse.tinker.wire import decode_loss_request, require_valid_data

_STEP_COST: Final = 256.0  # tokens that a job without tokens is taken to cost
_LOAD_COST: Final = 1024.0  # tokens that it is taken to cost to bring a model back into memory
_LARGE: Final = 64_000  # bytes that take about a millisecond to read and decode

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """A job that is to be done, and the model that it is of."""

    model: Model
    job: Job

    @property
    def settled(self) -> bool:
        """Whether it has failed already, so that all that is left are the consequences."""
        state = self.job.future.state
        return state not in ("waiting", "finished") if self.job.repeated else state != "waiting"

    @property
    def is_pass(self) -> bool:
        """Whether it is a forward pass, which others can share."""
        if self.job.kind != "forward_backward" or self.settled or self.model.lost is not None:
            return False
        forward_only = self.job.future.details.get("forward_only", False)
        return not (self.job.repeated and forward_only)  # which had no effect


class Turns:
    """Chooses the next jobs.

    Users take turns as FairTurns says, and the models of a user one after another. A turn is one
    job; but as many forward_backwards as fit into `pass_tokens` together are computed in one pass,
    in the order in which their turns would come: chunks of one batch, and jobs of different models.
    A forward_backward that is larger has a turn for each part of it.

    A model that was lost with the trainer is recovered when it is asked for something, and in one
    go: were it interrupted by others that take its place in memory, it would never be done where
    the disk is too full to save it.
    """

    def __init__(self, *, residency: Residency, limits: Limits) -> None:
        self._residency = residency
        self._limits = limits
        self._fair = FairTurns()
        self._number = 0
        self._recovering: Model | None = None

    @property
    def pending(self) -> bool:
        """Whether any job could be done now."""
        return any(_next(model) for model in self._residency)

    async def next(self, info: TrainerInfo, *, deaths: Mapping[str, int]) -> list[Work]:
        """The jobs of the next turn; none if nothing can be done.

        A job in `deaths`, which counts by request_id how often the trainer ended while it computed
        the job, is done alone. Decodes what it chooses.
        """
        chosen: list[Work] = []
        tokens = 0
        while True:
            work = self._candidate(chosen)
            if work is None:
                return chosen
            suspect = deaths.get(work.job.future.request_id, 0) > 0
            if chosen and suspect:
                return chosen
            if not work.is_pass:
                self._take(work, _STEP_COST, beside=chosen)
                return [work]
            await self._decode(work.job, info)
            part = work.job.part
            size = part.tokens if part is not None else 0
            if chosen and tokens + size > self._limits.pass_tokens:
                return chosen
            self._take(work, size or _STEP_COST, beside=chosen)
            chosen.append(work)
            tokens += size
            unfinished = len(work.job.results) + 1 < len(work.job.parts)
            if suspect or unfinished or not info.batches:
                return chosen

    def _candidate(self, chosen: list[Work]) -> Work | None:
        """The next job beside those that are chosen already."""
        if not chosen and self._recovering is not None:
            job = _next(self._recovering)
            if job is not None:
                return Work(self._recovering, job)
        taken = Counter(work.model for work in chosen)
        full = len(taken) >= self._limits.resident
        candidates: dict[str, list[Work]] = defaultdict(list)
        working: set[str] = set()
        for model in self._residency:
            job = _next(model, taken[model])
            if job is None:
                continue
            work = Work(model, job)
            working.add(model.user)
            if not chosen or (work.is_pass and (model in taken or not full)):
                candidates[model.user].append(work)
        user = self._fair.choose(candidates, working=working)
        return min(candidates[user], key=lambda work: work.model.turn) if user else None

    def _take(self, work: Work, cost: float, *, beside: list[Work]) -> None:
        loaded = work.model.resident or work.model.saved < 0
        if not loaded and all(other.model is not work.model for other in beside):
            cost += _LOAD_COST
        self._fair.charge(work.model.user, cost)
        if work.job.repeated:
            self._recovering = work.model
        elif work.model is self._recovering:
            self._recovering = None
        self._number += 1
        work.model.turn = self._number

    async def _decode(self, job: Job, info: TrainerInfo) -> None:
        """Give the job its request, or the error that it fails with."""
        if job.request is not None or job.error is not None:
            return
        try:
            if job.future.body_size < _LARGE:
                self._read(job, info)
            else:
                await asyncio.to_thread(self._read, job, info)
        except TinkerError as error:
            job.error = error
        except Exception as error:
            logger.exception("a request could not be decoded")
            job.error = TinkerError(f"the request could not be read: {error}", category="server")

    def _read(self, job: Job, info: TrainerInfo) -> None:
        job.request = decode_loss_request(job.future.body)
        require_valid_data(
            job.request,
            vocabulary_size=info.vocabulary_size,
            max_length=min(info.max_length, self._limits.sequence_tokens or info.max_length),
            losses=info.losses,
        )
        if job.request.tokens > self._limits.request_tokens:
            raise TinkerError(
                f"the request has {job.request.tokens} tokens; this service accepts at most "
                f"{self._limits.request_tokens} per request",
                fix="send the batch in several forward_backward requests",
            )
        job.parts = split_request(job.request, tokens=self._limits.pass_tokens)


def _next(model: Model, after: int = 0) -> Job | None:
    """The job of a model that can be done when `after` others are; a lost model has no order."""
    if model.lost is not None:
        return None if after else model.line.first()
    job = model.line.ready(after)
    if job is not None and job.repeated and not model.line.is_awaited:
        return None
    return job
