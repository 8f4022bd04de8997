"""Random trainings of several users, while services and trainers are killed at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.training_service import VOCABULARY, End, TrainingService, training_service

from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.tinker.limits import Limits

pytestmark = pytest.mark.soak
LIMITS = Limits(resident=2, pass_tokens=30, restart_delay=0)


@dataclass(frozen=True)
class Plan:
    """A model's jobs: forward passes, failures, large batches, steps and saves."""

    model_id: str
    jobs: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())

    @classmethod
    def random(cls, model_id: str, numbers: random.Random) -> Plan:
        """From two to four steps, of one to three chunks each, and a checkpoint at the end."""
        jobs: list[tuple[str, Mapping[str, Any]]] = []
        chunks = [{"targets": [999] * 12}, {"forward_only": True}, {"datums": 4}, {}, {}, {}]
        for _ in range(numbers.randint(2, 4)):
            jobs += [("chunk", numbers.choice(chunks)) for _ in range(numbers.randint(1, 3))]
            jobs.append(("step", {}))
            if numbers.random() < 0.3:
                jobs.append(("save", {"path": f"at-{len(jobs)}"}))
        return cls(model_id, (*jobs, ("save", {"path": "final"})))

    async def send(self, service: TrainingService) -> list[bool]:
        """Send everything, and say of each job whether it failed."""
        user = self.model_id.partition(":")[0]
        futures = [await service.create(self.model_id, user=user, seed=5)]
        for seq_id, (kind, changes) in enumerate(self.jobs, start=1):
            if kind == "chunk":
                send = service.forward_backward(seq_id, self.model_id, user=user, **changes)
            elif kind == "step":
                send = service.optim_step(seq_id, self.model_id, user=user)
            else:
                send = service.save(seq_id, model_id=self.model_id, user=user, **changes)
            futures.append(await send)
        return ["error" in await service.answer(future) for future in futures]


@pytest.mark.parametrize("seed", range(20))
async def test_every_model_ends_as_if_it_had_been_alone_and_undisturbed(tmp_path: Path, seed: int):
    """Four models in two places, up to four lives of the service, and trainers that end."""
    numbers = random.Random(seed)
    plans = [Plan.random(f"ses-{n // 2}:train:{n % 2}", numbers) for n in range(4)]
    expected = {}
    for plan in plans:
        home = tmp_path / plan.model_id
        async with training_service(home, limits=LIMITS) as service:
            failed = await plan.send(service)
            expected[plan.model_id] = (failed, await service.final_weights(plan.model_id))
    home = tmp_path / "killed"
    for _ in range(numbers.randint(1, 4)):
        end = End(last=numbers.randint(1, 60), had_effect=numbers.random() < 0.5)
        async with training_service(home, trainer=_mortal(numbers), limits=LIMITS) as service:
            end.set_for(service.trainer, "create", "compute", "optim_step", "save", "load")
            end.set_for(service.futures, "accept", "finish", "fail")
            end.set_for(service.records, "add_model", "add_checkpoint")
            await end.of([plan.send(service) for plan in plans])
    async with training_service(home, trainer=_mortal(numbers), limits=LIMITS) as service:
        service.patience = 60
        answers = await asyncio.gather(*(plan.send(service) for plan in plans))
        for plan, failed in zip(plans, answers, strict=True):
            weights = await service.final_weights(plan.model_id)
            assert (failed, weights) == expected[plan.model_id]


def _mortal(numbers: random.Random) -> FakeTrainer:
    """Ends twice; a job that is in it at three deaths would fail."""
    deaths = [
        Death(
            call=numbers.choice(["compute", "optim_step", "save", "load"]),
            number=numbers.randint(1, 8),
            moment=numbers.choice(["before", "after"]),
        )
        for _ in range(2)
    ]
    return FakeTrainer(vocabulary=VOCABULARY, deaths=deaths)
