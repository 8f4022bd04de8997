"""A trainer that ends, or does not start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tests.support.training_service import VOCABULARY, training_service

from enginehouse.core.errors import ServerGoneError, StartError, TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.data import LossRequest, LossResult
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.trainer_life import TrainerLife


class FragileTrainer(FakeTrainer):
    """Ends whenever it is given a sequence of 13 tokens."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """See Trainer."""
        if any(request.tokens == 13 for request in requests):
            self.kill()
        return await super().compute(requests)


class BrokenTrainer(FakeTrainer):
    """Does not start while it is broken."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.broken = True
        self.attempts = 0
        self.tried_twice = asyncio.Event()

    async def start(self) -> None:
        """See Trainer."""
        self.attempts += 1
        if self.attempts > 1:
            self.tried_twice.set()
        if self.broken:
            raise StartError("there is no GPU")
        await super().start()


async def test_a_job_that_ends_the_trainer_three_times_fails_alone(tmp_path: Path):
    """Those that were computed with it are not blamed, and its batch is not applied."""
    trainer = FragileTrainer()
    first, second = "ses-1:train:0", "ses-2:train:0"
    async with training_service(tmp_path, trainer=trainer) as service:
        for model_id in (first, second):
            await service.answer(await service.create(model_id))
        deadly = await service.forward_backward(1, first, length=13)
        harmless = await service.forward_backward(1, second)
        failure = await service.answer(deadly)
        assert failure["category"] == "server"
        assert "3 times" in failure["error"]
        assert "loss:sum" in await service.answer(harmless)
        assert "seq_id 1" in (await service.answer(await service.optim_step(2, first)))["error"]
        assert "metrics" in await service.answer(await service.optim_step(2, second))
        assert service.queue.status().restarts == 3


async def test_jobs_fail_when_the_trainer_does_not_come_back(tmp_path: Path):
    """With the reason; and the queue works again as soon as the trainer does."""
    trainer = BrokenTrainer()
    limits = Limits(patience=0.0, restart_delay=0.0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        failure = await service.answer(await service.create())
        assert failure["category"] == "server"
        assert "no GPU" in failure["error"]
        trainer.broken = False
        assert "model_id" in await service.answer(await service.create("ses-1:train:1"))


async def test_those_who_wait_for_the_trainer_are_told_so(tmp_path: Path):
    """In their polls, and in the status."""
    trainer = BrokenTrainer()
    limits = Limits(patience=3600.0, restart_delay=3600.0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await trainer.tried_twice.wait()
        future = await service.create()
        assert future.queue_state == "paused_capacity"
        assert "no GPU" in (future.reason or "")
        assert "no GPU" in service.queue.status().trainer


async def test_the_queue_can_be_drained_while_the_trainer_is_away(tmp_path: Path):
    """What waits stays accepted."""
    trainer = BrokenTrainer()
    limits = Limits(patience=3600.0, restart_delay=3600.0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await trainer.tried_twice.wait()
        future = await service.create()
        async with asyncio.timeout(10):
            await service.queue.drain(3600)
        assert future.state == "waiting"


async def test_each_start_without_success_is_later_than_the_last():
    """At once, then with doubled delays up to half a minute, until something was computed."""
    now = 0.0
    life = TrainerLife(
        FakeTrainer(), limits=Limits(restart_delay=2.0, patience=100.0), clock=lambda: now
    )
    delays = []
    for _ in range(7):
        life.ended(ServerGoneError("killed"))
        delays.append(life.delay)
        await life.start()
    assert delays == [0, 2, 4, 8, 16, 30, 30]
    assert not life.given_up
    now = 100.0
    life.ended(ServerGoneError("killed"))
    assert life.given_up
    await life.start()
    life.progressed()
    life.ended(ServerGoneError("killed"))
    assert not life.given_up
    assert life.delay == 0
