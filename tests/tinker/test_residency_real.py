"""Recovery with the real trainer, which is killed with kill -9."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.training_service import MODEL, TrainingService, training_service

from enginehouse.runtime.context import Context
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.trainers.hf import HfTrainer, prepare_trainer

pytestmark = pytest.mark.engine
STEPS = 6


async def a_trainer(model: Path) -> HfTrainer:
    """The real one, not started."""
    context = Context(notify=print)
    program = await prepare_trainer(str(model), context=context, dtype="float32", threads=1)
    return HfTrainer(program, context=context)


def kill_at(trainer: HfTrainer, moments: Sequence[tuple[int, bool]]) -> None:
    """Kill it when it gets its nth call, or when it has done what the nth call asks for."""
    calls = 0

    def mortal(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*values: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            number = calls
            if (number, False) in moments:
                os.kill(trainer.pid, signal.SIGKILL)
            result = await call(*values, **options)
            if (number, True) in moments:
                os.kill(trainer.pid, signal.SIGKILL)
            return result

        return counted

    for name in ("compute", "optim_step", "save", "load"):
        setattr(trainer, name, mortal(getattr(trainer, name)))


async def one_at_a_time(service: TrainingService) -> None:
    """Train, with an answer before each next request, so that all passes are alike."""
    await service.answer(await service.create(seed=7))
    for step in range(STEPS):
        for seq_id in (3 * step + 1, 3 * step + 2):
            assert "loss:sum" in await service.answer(await service.forward_backward(seq_id))
        assert "metrics" in await service.answer(await service.optim_step(3 * step + 3))
    await service.finish(3 * STEPS + 1)


async def test_a_killed_trainer_gives_the_weights_of_an_undisturbed_one(tiny: Path, tmp_path: Path):
    """At five moments of a training, before a call or after its effect; the client sees nothing."""
    weights = []
    numbers = random.Random(20_261_130)
    moments = [(number, numbers.random() < 0.5) for number in numbers.sample(range(2, 30), 5)]
    for folder, kills in (("undisturbed", []), ("killed", moments)):
        trainer = await a_trainer(tiny)
        kill_at(trainer, kills)
        limits = Limits(restart_delay=0.0)
        try:
            async with training_service(
                tmp_path / folder, trainer=trainer, limits=limits
            ) as service:
                service.patience = 300
                await one_at_a_time(service)
                weights.append(await service.weights(f"tinker://{MODEL}/weights/final"))
                if kills:
                    assert service.queue.status().restarts == len(kills)
        finally:
            await trainer.close()
    undisturbed, killed = weights
    assert undisturbed.keys() == killed.keys()
    assert any(np.abs(matrix).max() > 0 for name, matrix in killed.items() if "lora_B" in name)
    for name, matrix in undisturbed.items():
        np.testing.assert_allclose(killed[name], matrix, rtol=0, atol=1e-6, err_msg=name)
