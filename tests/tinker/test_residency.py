"""Models leave the trainer's memory, or are lost with it, and come back exactly as they were."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.training_service import (
    MODEL,
    VOCABULARY,
    TrainingService,
    training_service,
    undisturbed,
)

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.tinker.limits import Limits


class DoomedTrainer(FakeTrainer):
    """Never answers its nth call, and none after it; the call may have had its effect."""

    def __init__(self, *, last: int, had_effect: bool) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.ended = asyncio.Event()
        self._left = last
        self._had_effect = had_effect
        for name in ("create", "compute", "optim_step", "save", "load", "unload"):
            setattr(self, name, self._mortal(getattr(self, name)))

    def _mortal(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def mortal(*values: Any, **options: Any) -> Any:
            self._left -= 1
            result = await call(*values, **options) if self._left or self._had_effect else None
            if not self._left:
                self.ended.set()
                await asyncio.Event().wait()
            return result

        return mortal


async def work_until_its_end(service: TrainingService, trainer: DoomedTrainer) -> None:
    """Have a client work until the trainer stops."""
    client = asyncio.create_task(service.train(steps=4))
    end = asyncio.create_task(trainer.ended.wait())
    await asyncio.wait({client, end}, return_when=asyncio.FIRST_COMPLETED)
    for task in (client, end):
        task.cancel()
    await asyncio.gather(client, end, return_exceptions=True)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_applied_twice_when_all_is_killed(tmp_path: Path, seed: int):
    """Service and trainer end together three times, at some call, and the client sends again."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=4)
    numbers = random.Random(seed)
    home = tmp_path / "killed"
    for _ in range(3):
        trainer = DoomedTrainer(last=numbers.randint(1, 14), had_effect=numbers.random() < 0.5)
        async with training_service(home, trainer=trainer) as service:
            await work_until_its_end(service, trainer)
    async with training_service(home) as service:
        await service.train(steps=4)
        assert await service.final_weights() == expected


@pytest.mark.parametrize("seed", range(20))
async def test_the_trainer_alone_may_end_at_any_moment(tmp_path: Path, seed: int):
    """It is started again, and the client notices nothing."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=4)
    numbers = random.Random(seed)
    deaths = [
        Death(
            call=numbers.choice(["compute", "optim_step"]),
            number=numbers.randint(1, 4),
            moment=numbers.choice(["before", "after"]),
        )
        for _ in range(3)
    ]
    trainer = FakeTrainer(vocabulary=VOCABULARY, deaths=deaths)
    async with training_service(tmp_path / "killed", trainer=trainer) as service:
        await service.train(steps=4)
        assert await service.final_weights() == expected
        assert service.queue.status().restarts >= 1


async def test_a_failed_batch_stays_failed_when_it_is_recovered(tmp_path: Path):
    """The trainer ends between the failed forward_backward and the step that must fail with it."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=1)
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path / "killed", trainer=trainer) as service:
        await service.create(seed=7)
        await service.forward_backward(1)
        bad = await service.forward_backward(2, targets=[VOCABULARY] * 12)
        assert "error" in await service.answer(bad)
        trainer.kill()
        refused = await service.answer(await service.optim_step(3))
        assert "seq_id 2" in refused["error"]
        trainer.kill()
        await service.forward_backward(4, seed=1)
        await service.forward_backward(5, seed=2)
        await service.optim_step(6)
        await service.finish(7)
        assert await service.final_weights() == expected


async def test_a_model_without_a_seed_is_recovered_as_it_was(tmp_path: Path):
    """Its random matrices are the same again."""
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.create()
        await service.answer(await service.save(1, "before"))
        trainer.kill()
        await service.answer(await service.save(2, "after"))
        before, after = [
            await service.weights(f"tinker://{MODEL}/weights/{name}")
            for name in ("before", "after")
        ]
    assert {name: matrix.tobytes() for name, matrix in before.items()} == {
        name: matrix.tobytes() for name, matrix in after.items()
    }


async def test_more_models_than_fit_into_memory_take_turns(tmp_path: Path):
    """Five models in two places are trained as if each were alone."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=2)
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    limits = Limits(resident=2, restart_delay=0)
    models = [f"ses-1:train:{n}" for n in range(5)]
    async with training_service(tmp_path / "many", trainer=trainer, limits=limits) as service:
        async with asyncio.TaskGroup() as group:
            for model_id in models:
                group.create_task(service.train(model_id, steps=2))
        for model_id in models:
            assert await service.final_weights(model_id) == expected
    memory: set[str] = set()
    for call, named in trainer.calls:
        if call in {"create", "load"}:
            memory.update(named)
        elif call == "unload":
            memory.difference_update(named)
        assert len(memory) <= 2
    assert any(call == "load" for call, _ in trainer.calls)


async def test_gradients_that_were_not_applied_survive_eviction(tmp_path: Path):
    """Half a batch is in the state on disk, and is applied with the other half."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=1)
    async with training_service(tmp_path / "evicted", limits=Limits(resident=1)) as service:
        await service.create(seed=7)
        await service.answer(await service.forward_backward(1))
        await service.answer(await service.create("ses-2:train:0"))  # takes the only place
        await service.answer(await service.forward_backward(2))
        await service.answer(await service.optim_step(3))
        await service.finish(4)
        assert await service.final_weights() == expected


async def test_a_model_that_cannot_be_saved_is_computed_again(tmp_path: Path):
    """A full disk costs time, and nothing else."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=2)
    trainer = _OnFullDisk()
    limits = Limits(resident=1, restart_delay=0)
    async with training_service(tmp_path / "full", trainer=trainer, limits=limits) as service:
        await service.create(seed=7)
        await service.forward_backward(1)
        await service.forward_backward(2)
        await service.answer(await service.optim_step(3))
        await service.answer(await service.create("ses-2:train:0"))  # takes the only place
        await service.forward_backward(4)
        await service.forward_backward(5)
        await service.answer(await service.optim_step(6))
        assert any("the disk is full" in note for note in service.notes)
        trainer.full = False
        await service.finish(7)
        assert await service.final_weights() == expected
    assert trainer.calls.count(("create", (MODEL,))) == 2


class _OnFullDisk(FakeTrainer):
    """Cannot save anything while its disk is full."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.full = True

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        if self.full:
            raise TinkerError("the disk is full", category="server")
        await super().save(model_id, folder, state=state)


async def test_an_idle_model_is_saved_and_then_leaves_the_memory(tmp_path: Path):
    """Nobody asks for it, so it makes room; it comes back when it is asked for."""
    trainer = _Unloaded()
    limits = Limits(settle=0.0, idle=0.0, restart_delay=0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await service.create()
        await service.answer(await service.forward_backward(1))
        await trainer.unloaded.wait()
        assert trainer.calls[-2:] == [("save", (MODEL,)), ("unload", (MODEL,))]
        assert "metrics" in await service.answer(await service.optim_step(2))
        assert ("load", (MODEL,)) in trainer.calls


class _Unloaded(FakeTrainer):
    """Says when it has unloaded a model."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.unloaded = asyncio.Event()

    async def unload(self, model_id: str) -> None:
        await super().unload(model_id)
        self.unloaded.set()


async def test_a_model_whose_state_is_gone_says_so(tmp_path: Path):
    """Its jobs fail instead of waiting for ever."""
    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        await service.answer(await service.forward_backward(1))
        await service.queue.drain(10)
    for file in (tmp_path / "models" / MODEL).glob("state-*/adapter/*"):
        file.unlink()
    async with training_service(tmp_path) as service:
        failure = await service.answer(await service.forward_backward(2))
        assert failure["category"] == "server"
        assert "could not be recovered" in failure["error"]
        assert "model_id" in await service.answer(await service.create("ses-2:train:0"))
