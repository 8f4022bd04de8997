"""Whose jobs are computed together, and in which order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.support.training_service import MODEL, HeldTrainer, training_service

from enginehouse.tinker.limits import Limits
from enginehouse.tinker.wire.schema import messages


async def test_chunks_are_computed_in_one_pass_and_answered_each(tmp_path: Path):
    """The first chunk comes last, as the SDK sends them; each gets its own loss."""
    trainer = HeldTrainer()
    trainer.go.set()
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.answer(await service.create())
        chunks = [await service.forward_backward(seq_id) for seq_id in (4, 3, 2, 1)]
        losses = [(await service.answer(future))["loss:sum"] for future in chunks]
    assert len(set(losses)) == 4
    assert trainer.passes == [(MODEL,) * 4]


async def test_a_pass_holds_no_more_tokens_than_its_budget(tmp_path: Path):
    """Of five chunks with 12 tokens each, two fit into 30."""
    trainer = HeldTrainer()
    trainer.go.set()
    limits = Limits(pass_tokens=30, restart_delay=0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await service.answer(await service.create())
        for future in [await service.forward_backward(seq_id) for seq_id in (5, 4, 3, 2, 1)]:
            await service.answer(future)
    assert [len(models) for models in trainer.passes] == [2, 2, 1]


async def test_a_large_request_is_computed_in_parts_between_others(tmp_path: Path):
    """A small user does not wait until all of it is done; its answer is that of the whole."""
    trainer = HeldTrainer()
    limits = Limits(pass_tokens=100, restart_delay=0)
    large, small = "ses-1:train:0", "ses-2:train:0"
    async with training_service(tmp_path / "parts", trainer=trainer, limits=limits) as service:
        await service.answer(await service.create(large, user="ada", seed=7))
        await service.answer(await service.create(small, user="bob"))
        whole = await service.forward_backward(1, large, datums=10, length=50)
        quick = await service.forward_backward(1, small, user="bob", length=50)
        trainer.go.set()
        await service.answer(quick)
        assert whole.state == "waiting"
        answer = await service.answer(whole)
        output = messages().ForwardBackwardOutput.FromString(whole.payload)
        assert sum(record.num_datums for record in output.loss_fn_outputs) == 10
        await service.optim_step(2, large)
        await service.finish(3, large)
        weights = await service.final_weights(large)
    assert trainer.passes.index((small,)) == 1
    assert trainer.passes.count((large,)) == 5
    async with training_service(tmp_path / "whole") as service:
        await service.create(large, seed=7)
        expected = await service.forward_backward(1, large, datums=10, length=50)
        assert await service.answer(expected) == pytest.approx(answer, rel=1e-6)
        await service.optim_step(2, large)
        await service.finish(3, large)
        matrices = await service.final_weights(large)
    for name, matrix in matrices.items():
        np.testing.assert_allclose(
            np.frombuffer(weights[name], np.float32), np.frombuffer(matrix, np.float32), atol=1e-5
        )


async def test_a_request_above_the_budget_is_computed_alone(tmp_path: Path):
    """The budget is for what is computed together; a single sequence may be longer."""
    trainer = HeldTrainer()
    trainer.go.set()
    limits = Limits(pass_tokens=30, request_tokens=40, restart_delay=0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await service.answer(await service.create())
        small = await service.forward_backward(3)
        larger = await service.forward_backward(2, length=36)
        too_large = await service.forward_backward(1, length=41)
        assert "at most 40" in (await service.answer(too_large))["error"]
        assert "loss:sum" in await service.answer(larger)
        assert "loss:sum" in await service.answer(small)
    assert trainer.passes == [(MODEL,), (MODEL,)]


async def test_a_sequence_above_the_limit_fails_alone(tmp_path: Path):
    """The operator's, where it is lower than the model's."""
    limits = Limits(sequence_tokens=30, restart_delay=0)
    async with training_service(tmp_path, limits=limits) as service:
        await service.answer(await service.create())
        longest = await service.forward_backward(1, length=30)
        too_long = await service.forward_backward(2, length=31)
        assert "loss:sum" in await service.answer(longest)
        assert "the longest sequence here is 30" in (await service.answer(too_long))["error"]


async def test_users_are_computed_together(tmp_path: Path):
    """What is ready at the same time shares a pass."""
    trainer = HeldTrainer()
    models = [f"ses-{n}:train:0" for n in range(4)]
    async with training_service(tmp_path, trainer=trainer) as service:
        for model_id in models:
            await service.answer(await service.create(model_id, user=model_id[:5]))
        futures = [await service.forward_backward(1, m, user=m[:5]) for m in models]
        trainer.go.set()
        for future in futures:
            await service.answer(future)
    assert trainer.passes == [(models[0],), tuple(models[1:])]


async def test_a_users_models_take_turns(tmp_path: Path):
    """A second model of the same user does not wait until the first one's jobs are all done."""
    trainer = HeldTrainer()
    limits = Limits(pass_tokens=10, restart_delay=0)
    first, second = "ses-1:train:0", "ses-1:train:1"
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        for model_id in (first, second):
            await service.answer(await service.create(model_id))
        futures = [await service.forward_backward(n, m) for m in (first, second) for n in (1, 2, 3)]
        trainer.go.set()
        for future in futures:
            await service.answer(future)
    assert trainer.passes == [(first,), (second,)] * 3


async def test_three_small_users_hardly_wait_for_a_greedy_one(tmp_path: Path):
    """Between two turns of a small user each other one has one, whatever the greedy one asks."""
    trainer = HeldTrainer()
    limits = Limits(pass_tokens=100, restart_delay=0)  # one job of 90 tokens at a time
    greedy = [f"ses-0:train:{n}" for n in range(4)]
    small = [f"ses-{n}:train:0" for n in (1, 2, 3)]
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        for model_id in (*greedy, *small):
            await service.answer(await service.create(model_id, user=model_id[:5]))
        for model_id in greedy:
            for seq_id in range(1, 21):
                await service.forward_backward(seq_id, model_id, user="ses-0", length=90)
        for model_id in small:
            for seq_id in range(1, 6):
                await service.forward_backward(seq_id, model_id, user=model_id[:5], length=90)
        steps = [await service.optim_step(6, model_id, user=model_id[:5]) for model_id in small]
        trainer.go.set()
        for future in steps:
            assert "metrics" in await service.answer(future)
        turns = [model_id[:5] for (model_id,) in trainer.passes]
    small_turns = [turns.index(user) for user in ("ses-1", "ses-2", "ses-3")]
    assert sorted(small_turns) == [1, 2, 3]  # the first turn had begun
    for user in ("ses-1", "ses-2", "ses-3"):
        places = [place for place, turn in enumerate(turns) if turn == user]
        assert len(places) == 5
        assert max(b - a for a, b in pairwise(places)) == 4


async def test_a_user_who_returns_is_next_after_at_most_one_turn_of_each_other(tmp_path: Path):
    """Idle time is not saved up, and is not held against anyone."""
    trainer = HeldTrainer()
    limits = Limits(pass_tokens=10, restart_delay=0)
    models = [f"ses-{n}:train:0" for n in range(3)]
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        for model_id in models:
            await service.answer(await service.create(model_id, user=model_id[:5]))
        trainer.go.set()
        for seq_id in range(1, 11):
            await service.answer(await service.forward_backward(seq_id, models[0], user="ses-0"))
        trainer.go.clear()
        busy = [
            await service.forward_backward(seq_id, model_id, user=model_id[:5])
            for seq_id in range(1, 11)
            for model_id in models[1:]
        ]
        back = await service.forward_backward(11, models[0], user="ses-0")
        began = len(trainer.passes)
        trainer.go.set()
        for future in (*busy, back):
            await service.answer(future)
    assert (models[0],) in trainer.passes[began : began + 3]


async def test_a_model_that_has_to_be_loaded_costs_more_than_its_tokens(tmp_path: Path):
    """Tiny jobs that make room for one another do not take most of the time."""
    trainer = HeldTrainer()
    limits = Limits(resident=1, pass_tokens=300, restart_delay=0)
    models = [f"ses-1:train:{number}" for number in range(4)]
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        for model in models:
            await service.answer(await service.create(model))
        await service.answer(await service.create("ses-2:train:0", user="bob"))
        wanted = [
            await service.forward_backward(seq_id, "ses-2:train:0", user="bob", length=256)
            for seq_id in range(1, 11)
        ]
        for model in models:
            await service.forward_backward(1, model, length=1)
        trainer.go.set()
        for future in wanted:
            await service.answer(future)
    first = [model for passed in trainer.passes[:7] for model in passed]
    assert sum(model in models for model in first) <= 3
