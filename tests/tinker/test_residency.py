"""Models leave the trainer's memory, or are lost with it, and come back exactly as they were."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.training_service import (
    MODEL,
    VOCABULARY,
    End,
    TrainingService,
    training_service,
    undisturbed,
)

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.tinker.data import LossRequest, LossResult
from enginehouse.tinker.limits import Limits


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_applied_twice_when_all_is_killed(tmp_path: Path, seed: int):
    """Service and trainer end together three times, at some moment; the client sends again."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=4)
    numbers = random.Random(seed)
    home = tmp_path / "killed"
    for _ in range(3):
        end = End(last=numbers.randint(1, 30), had_effect=numbers.random() < 0.5)
        async with training_service(home) as service:
            end.set_for(service.trainer, "create", "compute", "optim_step", "save", "load")
            end.set_for(service.futures, "accept", "finish")
            end.set_for(service.records, "add_model", "add_checkpoint")
            await end.of([service.train(steps=4)])
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


async def test_a_forward_pass_is_not_computed_again(tmp_path: Path):
    """It changed nothing."""
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.create()
        await service.answer(await service.forward_backward(1, forward_only=True))
        await service.answer(await service.forward_backward(2))
        trainer.kill()
        assert "metrics" in await service.answer(await service.optim_step(3))
    assert sum(call == "compute" for call, _ in trainer.calls) == 3


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


@pytest.mark.slow
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


PARTS = Limits(pass_tokens=24, resident=1, restart_delay=0)


async def in_parts(service: TrainingService) -> None:
    """A training whose batches are computed in three parts each."""
    await service.create(seed=7)
    for step in range(3):
        await service.forward_backward(2 * step + 1, datums=6)
        await service.optim_step(2 * step + 2)
    await service.finish(7)


@pytest.mark.parametrize("number", range(1, 10))
async def test_a_trainer_may_end_between_the_parts_of_a_batch(tmp_path: Path, number: int):
    """The parts that were computed are computed again, and count once."""
    async with training_service(tmp_path / "undisturbed", limits=PARTS) as service:
        await in_parts(service)
        expected = await service.final_weights()
    deaths = [Death(call="compute", number=number, moment="after")]
    trainer = FakeTrainer(vocabulary=VOCABULARY, deaths=deaths)
    async with training_service(tmp_path / "killed", trainer=trainer, limits=PARTS) as service:
        await in_parts(service)
        assert await service.final_weights() == expected
        assert service.queue.status().restarts == 1


async def test_a_model_may_be_evicted_between_the_parts_of_a_batch(tmp_path: Path):
    """Two models in one place, each with batches of three parts: neither state holds half a job."""
    async with training_service(tmp_path / "undisturbed", limits=PARTS) as service:
        await in_parts(service)
        expected = await service.final_weights()
    async with training_service(tmp_path / "two", limits=PARTS) as service:
        async with asyncio.TaskGroup() as group:
            group.create_task(in_parts(service))
            group.create_task(service.train("ses-2:train:0", steps=3, user="bob"))
        assert await service.final_weights() == expected


async def test_a_batch_of_which_a_part_fails_is_dropped_whole(tmp_path: Path):
    """Also the gradients of the parts that went well."""
    trainer = _Choosy()
    async with training_service(tmp_path / "failed", trainer=trainer, limits=PARTS) as service:
        await service.create(seed=7)
        trainer.refuses = 2
        failure = await service.answer(await service.forward_backward(1, datums=6))
        assert "not this one" in failure["error"]
        assert "error" in await service.answer(await service.optim_step(2))
        await service.forward_backward(3, seed=1)
        await service.forward_backward(4, seed=2)
        await service.optim_step(5)
        await service.finish(6)
        assert await service.final_weights() == await undisturbed(tmp_path / "fine", steps=1)


class _Choosy(FakeTrainer):
    """Refuses one of the passes to come."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.refuses = 0

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        self.refuses -= 1
        if self.refuses == 0:
            return [TinkerError("not this one") for _ in requests]
        return await super().compute(requests)


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
