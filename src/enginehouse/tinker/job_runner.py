"""Does the jobs of one turn, answers them, and bears what a failure means for their models."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from enginehouse.core.errors import EnginehouseError, ServerGoneError, TinkerError
from enginehouse.tinker.data import LossResult
from enginehouse.tinker.future import JSON, Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.kl_figures import join_kl, measure_kl
from enginehouse.tinker.model_jobs import ModelJobs
from enginehouse.tinker.model_states import Failure
from enginehouse.tinker.order import Job
from enginehouse.tinker.parts import join_results
from enginehouse.tinker.residency import Model, Residency
from enginehouse.tinker.trainer_life import TrainerLife
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.turns import Work
from enginehouse.tinker.wire import encode_loss_result
from enginehouse.tinker.wire.schema import PROTOBUF

_MINUTE: Final = 60.0
logger = logging.getLogger(__name__)


class JobRunner:
    """Does jobs on the trainer, each once, and counts what was done.

    `outcomes` counts answers by "KIND:finished" and "KIND:failed", and `tokens` what was computed.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        residency: Residency,
        futures: Futures,
        jobs: ModelJobs,
        life: TrainerLife,
        kl_threshold: float,
        clock: Callable[[], float],
    ) -> None:
        self._trainer = trainer
        self._residency = residency
        self._futures = futures
        self._jobs = jobs
        self._life = life
        self._kl_threshold = kl_threshold
        self._clock = clock
        self._computed: deque[tuple[float, str, int]] = deque()
        self.outcomes: Counter[str] = Counter()
        self.tokens = 0

    def last_minute(self) -> Mapping[str, int]:
        """How many tokens were computed for each user in the last minute."""
        while self._computed and self._computed[0][0] < self._clock() - _MINUTE:
            self._computed.popleft()
        recent: Counter[str] = Counter()
        for _, user, tokens in self._computed:
            recent[user] += tokens
        return recent

    async def run(self, work: Sequence[Work]) -> None:
        """Do and answer the jobs of one turn.

        Raises ServerGoneError when the trainer ends; jobs without an answer are then still in line.
        """
        if work[0].is_pass:
            await self._compute(work)
        elif work[0].settled or work[0].model.lost is not None:
            await self._pass_over(*work[0])
        else:
            await self._do_alone(*work[0])

    async def _compute(self, work: Sequence[Work]) -> None:
        """One pass of forward_backwards."""
        models = list(dict.fromkeys(model for model, _ in work))
        for model in models:
            await self._bring_in(model, keep=models)
        requests = {
            job: job.part for model, job in work if model.lost is None and job.part is not None
        }
        began = self._clock()
        computed = await self._trainer.compute(list(requests.values())) if requests else []
        for model in models:
            model.computed += self._clock() - began
        results = dict(zip(requests, computed, strict=True))
        for model, job in work:
            result = results.get(job, job.error)
            if model.lost is not None:
                await self._pass_over(model, job)
            elif isinstance(result, LossResult):
                await self._computed_part(model, job, result)
            else:
                await self._fail(model, job, _failure(result))
        for model in models:  # now that the state is that after a whole number of jobs
            if model.keeps_many and model.worth_saving:
                await self._residency.save(model)

    async def _computed_part(self, model: Model, job: Job, result: LossResult) -> None:
        """A part of a forward_backward has been computed; the last one completes its answer."""
        request, part = job.request, job.part
        if request is None or part is None:
            return
        job.results.append(result)
        model.used = self._clock()
        self.tokens += part.tokens
        self._computed.append((model.used, model.user, part.tokens))
        if job.part is not None:
            return
        if request.backward:
            model.pending += 1
        if job.repeated:
            self._finish(model, job)
            return
        result = join_results(job.results)
        metrics = dict(result.metrics)
        kl = measure_kl(request, result)
        if kl is not None:
            if request.backward:
                model.step_kl.append(kl)
                model.kl = join_kl(model.step_kl)
            metrics |= kl.metrics(threshold=self._kl_threshold)
        answer = LossResult(outputs=result.outputs, metrics=metrics)
        payload = await asyncio.to_thread(encode_loss_result, answer)
        await self._answer(model, job, payload, content_type=PROTOBUF)

    async def _do_alone(self, model: Model, job: Job) -> None:
        """A job of any other kind."""
        await self._bring_in(model)
        if model.lost is not None:
            await self._pass_over(model, job)
            return
        began = self._clock()
        try:
            if job.repeated:
                await self._jobs.repeat(model, job)
                payload = b""
            else:
                payload = await self._jobs.run(model, job)
        except ServerGoneError:
            raise
        except (EnginehouseError, OSError) as error:
            if job.kind == "load_weights" and model.resident:  # perhaps half of it was done
                await self._residency.drop(model)
            await self._fail(model, job, _failure(error))
            return
        if job.kind == "optim_step":
            model.computed += self._clock() - began
        if job.repeated:
            self._finish(model, job)
        else:
            await self._answer(model, job, payload, content_type=JSON)
            if job.kind == "optim_step":
                self._log_step(model, job)
        if job.kind == "optim_step" and model.worth_saving:
            await self._residency.save(model)

    def _log_step(self, model: Model, job: Job) -> None:
        """Log how far sampling and training were apart in the step that has just been applied."""
        if not model.step_kl:
            return
        kl = join_kl(model.step_kl)
        model.step_kl.clear()
        exceeds = kl.exceeds(self._kl_threshold)
        logger.log(
            logging.WARNING if exceeds else logging.INFO,
            "a step with samples",
            extra={
                "model_id": model.model_id,
                "seq_id": job.seq_id,
                "kl_sample_train_v1": kl.v1,
                "kl_sample_train_v2": kl.v2,
                "positions": kl.positions,
                "kl_warning": exceeds,
            },
        )

    async def _bring_in(self, model: Model, *, keep: Sequence[Model] = ()) -> None:
        """Have the model in memory; if that is not possible, it is lost."""
        try:
            await self._residency.bring_in(model, keep=keep or [model])
        except ServerGoneError:
            raise
        except (EnginehouseError, OSError) as error:
            model.lost = Failure(
                message=f"the model could not be recovered: {error}", category="server"
            )

    async def _pass_over(self, model: Model, job: Job) -> None:
        """A job that has failed already, or whose model is lost."""
        if model.lost is None:
            await self._bear(model, job, _past_failure(job.future))
        elif not job.repeated:
            await self.answer_failure(job, model.lost)
        self._finish(model, job)

    async def _answer(self, model: Model, job: Job, payload: bytes, *, content_type: str) -> None:
        await self._futures.finish(job.future, payload, content_type=content_type)
        self._life.progressed()
        self.outcomes[f"{job.kind}:finished"] += 1
        self._finish(model, job)

    async def answer_failure(self, job: Job, failure: Failure) -> None:
        """Answer a job with a failure, and nothing else."""
        await self._futures.fail(job.future, failure.message, category=failure.category)
        self.outcomes[f"{job.kind}:failed"] += 1

    async def _fail(self, model: Model, job: Job, failure: Failure) -> None:
        """Answer with a failure, and bear the consequences if it is still the job's turn."""
        await self.settle(model, job, failure)
        if model.lost is None and model.line.ready() is job:
            await self._bear(model, job, failure)
            self._finish(model, job)

    async def settle(self, model: Model, job: Job, failure: Failure) -> None:
        """Answer with a failure; its consequences come in its turn."""
        self._life.progressed()
        if not job.repeated:
            await self.answer_failure(job, failure)
            return
        model.lost = Failure(
            message="the model could not be recovered, as a job failed when it was done again: "
            f"{failure.message}",
            category="server",
        )

    async def _bear(self, model: Model, job: Job, failure: Failure) -> None:
        """What a failed job means for its model: half a batch is never applied."""
        if job.kind == "forward_backward":
            forward_only = job.future.details.get("forward_only", False)
            backward = job.request.backward if job.request else not forward_only
            if backward and job.results:  # the gradients of its first parts are there
                model.pending += 1
            if backward and model.broken is None:
                message = f"the forward_backward with seq_id {job.seq_id}: {failure.message}"
                model.broken = Failure(message=message, category=failure.category)
        elif job.kind == "optim_step":
            if model.pending:
                await self._bring_in(model)
                if model.lost is not None:
                    return
                await self._trainer.drop_gradients(model.model_id)
            model.pending = 0
            model.broken = None
            model.step_kl.clear()
        elif job.seq_id == 0:
            model.lost = Failure(
                message=f"the model was not created: {failure.message}", category=failure.category
            )
            model.retired = True

    def _finish(self, model: Model, job: Job) -> None:
        """Go on to the model's next job."""
        model.line.finish(job)
        model.used = self._clock()


def _failure(error: BaseException | None) -> Failure:
    if isinstance(error, TinkerError):
        return Failure(message=str(error), category=error.category)
    return Failure(message=str(error), category="server")


def _past_failure(future: Future) -> Failure:
    """What a future was failed with."""
    with suppress(EnginehouseError, OSError, ValueError, KeyError):
        answer = json.loads(future.payload)
        return msgspec.convert(
            {"message": answer["error"], "category": answer["category"]}, Failure
        )
    return Failure(message="it failed", category="server")
