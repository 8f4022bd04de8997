"""Runs the jobs of all models on one trainer: in order, fairly, and each exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from enginehouse.core.errors import EnginehouseError, ServerGoneError, TinkerError
from enginehouse.runtime.context import Notify
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.job_runner import JobRunner
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.model_jobs import ModelJobs, SamplerSaved
from enginehouse.tinker.model_states import Failure, ModelStates
from enginehouse.tinker.order import Job
from enginehouse.tinker.queue_status import QueueStatus, describe_models, describe_users
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.residency import Model, Residency
from enginehouse.tinker.trainer_life import TrainerLife, worded
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.turns import Turns, Work

KINDS: Final = frozenset(
    {
        "create_model",
        "load_weights",
        "forward_backward",
        "optim_step",
        "save_weights",
        "save_weights_for_sampler",
        "save_weights_external",
    }
)
"""The jobs of a model. Each has its model_id and seq_id in its future's details; what makes a new
model has the seq_id 0."""

_DEADLY: Final = 3  # deaths of the trainer after which a job is not tried again
_EXPLAIN: Final = 2.0  # seconds between updates of why jobs wait
_OTHERS: Final = "jobs of others are computed, and users take turns"

logger = logging.getLogger(__name__)


class TrainingQueue:
    """Answers the accepted jobs of all models. It is the only caller of the trainer.

    Jobs of one model are done in the order of their seq_ids. What the trainer or the service loses
    when it is killed is recovered from each model's last state in `folder` and from the jobs after
    it, which `futures` keeps. `on_sampler_saved` is awaited with each checkpoint for a sampler
    before its job is answered.
    """

    def __init__(  # noqa: PLR0913 (the parts of the service that it works with)
        self,
        folder: Path,
        *,
        trainer: Trainer,
        futures: Futures,
        records: Records,
        checkpoints: CheckpointStore,
        limits: Limits,
        notify: Notify,
        on_sampler_saved: SamplerSaved | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer = trainer
        self._futures = futures
        self._records = records
        self._limits = limits
        self._notify = notify
        self._clock = clock
        self._residency = Residency(
            trainer=trainer,
            states=ModelStates(folder),
            futures=futures,
            capacity=limits.resident,
            notify=notify,
            clock=clock,
        )
        self._turns = Turns(residency=self._residency, limits=limits)
        self._life = TrainerLife(trainer, limits=limits, clock=clock)
        self._jobs = ModelJobs(
            trainer=trainer,
            residency=self._residency,
            records=records,
            checkpoints=checkpoints,
            limits=limits,
            on_sampler_saved=on_sampler_saved,
        )
        self._runner = JobRunner(
            trainer=trainer,
            residency=self._residency,
            futures=futures,
            jobs=self._jobs,
            life=self._life,
            kl_threshold=limits.kl_threshold,
            clock=clock,
        )
        self._deaths: Counter[str] = Counter()
        self._explained = float("-inf")
        self._late: list[Future] = []
        self._current: Sequence[Work] = ()
        self._current_jobs: frozenset[Job] = frozenset()
        self._woken = asyncio.Event()
        self._deadline: float | None = None
        self._running = False
        self._stopped = asyncio.Event()

    def admit(self, *, user: str, model_id: str, seq_id: int) -> None:
        """Raise TinkerError (429) if the user has too many waiting jobs to accept another.

        The one that the others of its model wait for is always accepted.
        """
        model = self._residency.known(model_id)
        if model is not None and seq_id <= model.line.next:
            return
        waiting = sum(len(other.line) for other in self._residency if other.user == user)
        if waiting >= self._limits.waiting_jobs:
            raise TinkerError(
                f"{waiting} jobs of yours are waiting, as many as this service accepts",
                fix="wait for some of them; the SDK sends this one again by itself",
                status=429,
            )

    def submit(self, future: Future) -> None:
        """Have an accepted job done, in its turn. Only once for each future.

        One that was answered in an earlier life of the service is left alone.
        """
        if future.state != "waiting":
            return
        model = self._residency.known(future.details["model_id"])
        seq_id = int(future.details["seq_id"])
        if model is None:
            model = self._residency.model(future.details["model_id"], user=future.user)
            if not model.line.next and not len(model.line) and seq_id:
                model.lost = Failure(
                    message="nothing is left of this model: its session has ended, or its state "
                    "was deleted. Create a new one, from its last checkpoint if it has one",
                    category="user",
                )
                model.retired = True
        if seq_id < model.line.next and model.lost is None:
            self._late.append(future)
        else:
            job = Job(future=future, seq_id=seq_id, arrived=self._clock())
            model.line.add(job)
            self._hold(model, job)
        self._records.touch(model.model_id)
        self._woken.set()

    def retire(self, session_id: str) -> None:
        """Forget the models of a session that has ended, as soon as none of their jobs can be done.

        Their checkpoints stay, but for the nameless ones of their samplers. Idempotent.
        """
        for model in self._residency:
            if model.model_id.partition(":train:")[0] == session_id:
                model.retired = True
        self._woken.set()

    async def run(self) -> None:
        """Do jobs until `drain` or until it is cancelled, beginning with those accepted before.

        Raises StoreError if the folder of states cannot be read.
        """
        self._running = True
        try:
            self._residency.restore()
            for future in self._futures.waiting():
                if future.kind in KINDS and future.take():
                    self.submit(future)
            while not self._is_drained():
                if self._life.why_not is None:
                    await self._take_turn()
                else:
                    await self._revive()
            await self._save_all()
        finally:
            self._running = False
            self._explain(at_once=True)
            self._stopped.set()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (how long jobs may begin)
        """Do what can be done within `timeout` seconds, save every model's state, and end `run`.

        Jobs that are left stay accepted, and the next service does them. The job that runs at the
        end of the time is finished.
        """
        self._deadline = self._clock() + timeout
        self._woken.set()
        if self._running:
            await self._stopped.wait()

    def status(self) -> QueueStatus:
        """What happens now, and what has happened."""
        waiting = [(job.future.user, self._reason(model, job)) for model, job in self._waiting()]
        models = describe_models(
            self._residency, now=self._clock(), kl_threshold=self._limits.kl_threshold
        )
        return QueueStatus(
            trainer=self._life.why_not or "ready",
            restarts=self._life.restarts,
            users=describe_users(waiting, self._runner.last_minute()),
            models=models,
            warnings=tuple(model.warning for model in models if model.warning),
            jobs=dict(self._runner.outcomes),
            tokens=self._runner.tokens,
            draining=self._deadline is not None,
        )

    # The loop

    def _is_drained(self) -> bool:
        if self._deadline is None:
            return False
        if self._life.is_failing:
            return True
        return not self._turns.pending or self._clock() >= self._deadline

    async def _take_turn(self) -> None:
        try:
            await self._fail_late()
            await self._forget_retired()
            await self._give_up_missing()
            self._current = await self._turns.next(self._trainer.info, deaths=self._deaths)
            self._current_jobs = frozenset(job for _, job in self._current)
            self._explain()
            if self._current:
                await self._runner.run(self._current)
                for model, job in self._current:
                    if model.line.ready() is not job:  # it is done, and not only a part of it
                        self._deaths.pop(job.future.request_id, None)
                self._current = ()
                await self._evict_idle()
            else:
                await self._rest()
        except ServerGoneError as error:
            await self._bury(self._current, error)
        except Exception as error:
            logger.exception("a job failed unexpectedly")
            await self._abandon(self._current, error)
        finally:
            self._current = ()
            self._current_jobs = frozenset()

    async def _rest(self) -> None:
        """Save or evict a model that is idle, or wait until there is something to do."""
        self._woken.clear()
        until: list[float] = []
        for model in self._residency:
            idle = self._clock() - model.used
            if model.dirty and model.computed:
                if idle >= self._limits.settle:
                    await self._residency.save(model)
                    return
                until.append(self._limits.settle - idle)
            elif model.resident:
                if idle >= self._limits.idle:
                    await self._residency.evict(model)
                    return
                until.append(self._limits.idle - idle)
            if model.line.ready() is None and (first := model.line.first()) is not None:
                until.append(self._overdue_at(model, first) - self._clock())
        await self._pause(min(until, default=None))

    async def _evict_idle(self) -> None:
        """Move a model to disk that has long been idle, though others are not."""
        for model in self._residency:
            idle = self._clock() - model.used
            if model.resident and idle >= self._limits.idle and model.line.ready() is None:
                await self._residency.evict(model)
                return

    async def _pause(self, seconds: float | None) -> None:
        """Wait until something has been submitted, at most for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _save_all(self) -> None:
        try:
            for model in self._residency:
                await self._residency.save(model)
        except ServerGoneError as error:  # the next service computes again what is not saved
            self._notify(f"not every model's state was saved: {error.message}")

    # A trainer that ends

    async def _revive(self) -> None:
        """Start the trainer; if it is given up, fail what waits, and try again for later jobs."""
        self._woken.clear()
        self._explain(at_once=True)
        if self._life.given_up:
            await self._give_up()
            await self._pause(None)
        elif self._life.delay:
            await self._pause_whole(self._life.delay)
        if self._is_drained():
            return
        await self._life.start()
        if self._life.given_up:
            await self._give_up()

    async def _pause_whole(self, seconds: float) -> None:
        """Wait, whatever is submitted meanwhile, unless the queue is to be drained."""
        until = asyncio.get_running_loop().time() + seconds
        while self._deadline is None:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return
            self._woken.clear()
            await self._pause(left)

    async def _give_up(self) -> None:
        message = f"the trainer is not available: {self._life.why_not}"
        self._notify(f"{message}. The jobs that wait for it have failed")
        for _, job in list(self._waiting()):
            await self._runner.answer_failure(job, Failure(message=message, category="server"))

    async def _bury(self, work: Sequence[Work], error: ServerGoneError) -> None:
        """The trainer has ended during this work; a job that ends it again and again fails."""
        self._life.ended(error)
        self._notify(self._life.why_not or "")
        self._residency.lose_all()
        for model, job in work:
            request_id = job.future.request_id
            if job.future.state != "waiting" and not job.repeated:
                continue  # it has been answered
            self._deaths[request_id] += 1
            if self._deaths[request_id] >= _DEADLY and len(work) == 1:
                failure = Failure(
                    message=f"this job was in the trainer at {_DEADLY} deaths of it, at the last "
                    f"one alone: {worded(error)}",
                    category="server",
                )
                await self._runner.settle(model, job, failure)

    async def _abandon(self, work: Sequence[Work], error: Exception) -> None:
        """Fail the jobs that met a defect of the service, and go back to what is known for sure."""
        failure = Failure(
            message=f"an unexpected error in the service: {type(error).__name__}: {error}",
            category="server",
        )
        for model, job in work:
            if model.resident:
                with suppress(ServerGoneError):  # noticed by the next job
                    await self._residency.drop(model)
            if job.future.state == "waiting" or job.repeated:
                await self._runner.settle(model, job, failure)
            else:
                model.lost = failure

    async def _fail_late(self) -> None:
        """Fail jobs that a saved state contains, but whose answers were lost, or that were late."""
        while self._late:
            future = self._late.pop()
            await self._futures.fail(
                future,
                "the model is past this job: it was done before, and its answer is no longer "
                "kept, or it arrived when those behind it had been given up",
                category="server",
            )

    def _overdue_at(self, model: Model, first: Job) -> float:
        """When `first`, the model's first job in line, will have waited too long for one before."""
        return max(model.used, first.arrived) + self._limits.gap

    async def _give_up_missing(self) -> None:
        """Fail the jobs that wait for one which never arrived, as after a body that was too large.

        What it was is not known, so it is taken to have been a part of the next step's batch.
        """
        for model in self._residency:
            first = model.line.first()
            if first is None or model.line.ready() is not None or model.lost is not None:
                continue
            waiting = first.future.state == "waiting"
            if waiting and self._clock() < self._overdue_at(model, first):
                continue
            failure = Failure(
                message=f"the model's job with seq_id {model.line.next} did not arrive within "
                f"{self._limits.gap:g} seconds, and jobs are done in their order; perhaps it was "
                "refused, as a body is that is too large. Send the whole batch again",
                category="user",
            )
            for job in model.line if waiting else ():
                if job.future.state == "waiting":
                    await self._runner.answer_failure(job, failure)
            model.line.skip()
            model.broken = model.broken or failure

    async def _forget_retired(self) -> None:
        """Forget models that nobody will train any more, when none of their jobs can be done."""
        for model in self._residency:
            if not model.retired or model.line.ready() is not None:
                continue
            try:
                await self._jobs.end_snapshots(model)
            except EnginehouseError as error:
                self._notify(f"the snapshots of {model.model_id} do not expire: {error}")
            await self._residency.remove(model)
            ended = Failure(message="the model's session has ended", category="user")
            while left := [job for job in model.line if job.future.state == "waiting"]:
                for job in left:  # more may be submitted meanwhile
                    await self._runner.answer_failure(job, model.lost or ended)
            self._residency.forget(model)

    # Why jobs wait

    def _waiting(self) -> Iterator[Work]:
        for model in self._residency:
            for job in model.line:
                if job.future.state == "waiting" and not job.repeated:
                    yield Work(model, job)

    def _explain(self, *, at_once: bool = False) -> None:
        """Tell the clients why their jobs wait."""
        now = self._clock()
        if not at_once and now - self._explained < _EXPLAIN:
            return
        self._explained = now
        for model, job in self._waiting():
            self._hold(model, job)

    def _hold(self, model: Model, job: Job) -> None:
        reason = self._reason(model, job)
        paused = self._life.why_not is not None or not self._running or reason == _OTHERS
        self._futures.hold(job.future, reason, state="paused_capacity" if paused else "active")

    def _reason(self, model: Model, job: Job) -> str:
        if self._deadline is not None and not self._running:
            return "the service is being restarted; the job is kept and will be done"
        if self._life.why_not is not None:
            return self._life.why_not
        if job in self._current_jobs:
            return "it is being computed"
        head = model.line.ready()
        if head is None:
            return (
                f"the model's job with seq_id {model.line.next} has not arrived; "
                f"this one fails if it does not within {self._limits.gap:g} seconds"
            )
        if head.repeated:
            return "the model is being recovered"
        return _OTHERS if head is job else "earlier jobs of the model are done first"
