from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest
from tests.support.training_service import VOCABULARY, TrainingService, training_service

from enginehouse.core.errors import StartError, TinkerError
from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.tinker.limits import Limits

MODEL = "ses-1:train:0"


async def train(
    service: TrainingService, *, steps: int, model_id: str = MODEL, user: str = "ada"
) -> None:
    """Send a whole training: create, two chunks and a step each time, and a checkpoint at the end."""
    await service.create(model_id, user=user, seed=7)
    seq_id = itertools.count(1)
    for _ in range(steps):
        await service.forward_backward(next(seq_id), model_id, user=user)
        await service.forward_backward(next(seq_id), model_id, user=user)
        await service.optim_step(next(seq_id), model_id, user=user)
    await service.answer(await service.save(next(seq_id), "final", model_id, user=user))


async def final_weights(service: TrainingService, model_id: str = MODEL) -> dict[str, bytes]:
    weights = await service.weights(f"tinker://{model_id}/weights/final")
    return {name: matrix.tobytes() for name, matrix in weights.items()}


async def undisturbed(home: Path, *, steps: int) -> dict[str, bytes]:
    async with training_service(home) as service:
        await train(service, steps=steps)
        return await final_weights(service)


async def test_jobs_are_done_in_the_order_of_their_seq_ids(tmp_path: Path):
    expected = await undisturbed(tmp_path / "in order", steps=3)
    async with training_service(tmp_path / "shuffled") as service:
        await service.create(seed=7)
        jobs = [
            *(service.forward_backward(seq_id) for seq_id in (1, 2, 4, 5, 7, 8)),
            *(service.optim_step(seq_id) for seq_id in (3, 6, 9)),
            service.save(10, "final"),
        ]
        random.Random(3).shuffle(jobs)
        futures = [await job for job in jobs]
        for future in futures:
            assert "error" not in await service.answer(future)
        assert await final_weights(service) == expected


async def test_chunks_are_computed_in_one_pass_and_answered_each(tmp_path: Path):
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.answer(await service.create())
        chunks = [await service.forward_backward(seq_id) for seq_id in (4, 3, 2)]
        first = await service.forward_backward(1)
        losses = [(await service.answer(future))["loss:sum"] for future in (first, *chunks)]
        assert len(set(losses)) == 4
        assert trainer.calls[-1] == ("compute", (MODEL,) * 4)


async def test_a_pass_holds_no_more_tokens_than_its_budget(tmp_path: Path):
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    limits = Limits(pass_tokens=30, restart_delay=0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        await service.answer(await service.create())
        futures = [await service.forward_backward(seq_id) for seq_id in (5, 4, 3, 2, 1)]
        for future in futures:
            await service.answer(future)
        passes = [len(models) for call, models in trainer.calls if call == "compute"]
        assert passes == [2, 2, 1]  # of 12 tokens each


async def test_a_retried_request_is_done_once(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await service.create()
        once = await service.forward_backward(1)
        again = await service.forward_backward(1)
        assert again is once
        step = await service.optim_step(2)
        first = await service.answer(step)
        assert await service.optim_step(2) is step
        assert first["metrics"]["grad_norm:mean"] > 0
        assert "no gradients" in (await service.answer(await service.optim_step(3)))["error"]


async def test_a_failed_forward_backward_takes_its_whole_batch_with_it(tmp_path: Path):
    expected = await undisturbed(tmp_path / "undisturbed", steps=1)
    async with training_service(tmp_path / "failed") as service:
        await service.create(seed=7)
        good = await service.forward_backward(1)
        bad = await service.forward_backward(2, targets=[VOCABULARY + 5] * 12)
        step = await service.optim_step(3)
        assert "loss:sum" in await service.answer(good)
        failure = await service.answer(bad)
        assert failure["category"] == "user"
        assert str(VOCABULARY + 5) in failure["error"]
        refused = await service.answer(step)
        assert refused["category"] == "user"
        assert "seq_id 2" in refused["error"]
        # From here on it is as if nothing had happened.
        await service.send("forward_backward", MODEL, 4, _batch(1, seq_id=4))
        await service.send("forward_backward", MODEL, 5, _batch(2, seq_id=5))
        await service.answer(await service.optim_step(6))
        await service.answer(await service.save(7, "final"))
        assert await final_weights(service) == expected


def _batch(seed: int, *, seq_id: int) -> bytes:
    from tests.support.training_service import a_batch

    return a_batch(seed, seq_id=seq_id)


async def test_a_failed_forward_pass_spoils_no_batch(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await service.create()
        await service.forward_backward(1)
        bad = await service.forward_backward(2, targets=[-1] * 12, forward_only=True)
        assert (await service.answer(bad))["category"] == "user"
        assert "metrics" in await service.answer(await service.optim_step(3))


async def test_one_model_that_fails_does_not_disturb_the_others_of_its_pass(tmp_path: Path):
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path, trainer=trainer) as service:
        models = [f"ses-{n}:train:0" for n in range(3)]
        for model_id in models:
            await service.answer(await service.create(model_id, user=model_id))
        futures = [
            await service.forward_backward(
                1, model_id, user=model_id, targets=[999] * 12 if model_id == models[1] else None
            )
            for model_id in models
        ]
        answers = [await service.answer(future) for future in futures]
        assert ["error" in answer for answer in answers] == [False, True, False]
        steps = [await service.optim_step(2, model_id, user=model_id) for model_id in models]
        answers = [await service.answer(future) for future in steps]
        assert ["error" in answer for answer in answers] == [False, True, False]


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_or_applied_twice_when_everything_is_killed(
    tmp_path: Path, seed: int
):
    expected = await undisturbed(tmp_path / "undisturbed", steps=4)
    numbers = random.Random(seed)
    home = tmp_path / "killed"
    deaths = sorted(numbers.sample(range(1, 30), 3))
    for death in deaths:  # service and trainer end together, at some call of the trainer
        async with training_service(home, trainer=_Doomed(death, numbers)) as service:
            await _until_death(service, train(service, steps=4))
    async with training_service(home) as service:
        await train(service, steps=4)
        assert await final_weights(service) == expected


class _Doomed(FakeTrainer):
    """Stops answering for ever at its nth call, before or after the call has had its effect."""

    def __init__(self, number: int, numbers: random.Random) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.dead = asyncio.Event()
        self._left = number
        self._after = numbers.random() < 0.5
        for name in ("create", "compute", "optim_step", "save", "load", "unload"):
            setattr(self, name, self._doomed(getattr(self, name)))

    def _doomed(self, call):
        async def until_death(*args, **kwargs):
            self._left -= 1
            if self._left or self._after:
                result = await call(*args, **kwargs)
            if not self._left:
                self.dead.set()
                await asyncio.Event().wait()
            return result

        return until_death


async def _until_death(service: TrainingService, work) -> None:
    """Have a client work until the trainer stops."""
    client = asyncio.create_task(work)
    dying = asyncio.create_task(service.trainer.dead.wait())
    await asyncio.wait({client, dying}, return_when=asyncio.FIRST_COMPLETED)
    for task in (client, dying):
        task.cancel()
    await asyncio.gather(client, dying, return_exceptions=True)


@pytest.mark.parametrize("seed", range(20))
async def test_the_trainer_alone_may_die_at_any_moment(tmp_path: Path, seed: int):
    expected = await undisturbed(tmp_path / "undisturbed", steps=4)
    numbers = random.Random(seed)
    calls = ["compute", "optim_step"]  # at least four each
    deaths = [
        Death(
            call=numbers.choice(calls),
            number=numbers.randint(1, 4),
            moment=numbers.choice(["before", "after"]),
        )
        for _ in range(3)
    ]
    trainer = FakeTrainer(vocabulary=VOCABULARY, deaths=deaths)
    async with training_service(tmp_path / "killed", trainer=trainer) as service:
        await train(service, steps=4)
        assert await final_weights(service) == expected
    assert trainer.starts > 1


async def test_a_job_that_ends_the_trainer_three_times_fails_alone(tmp_path: Path):
    trainer = _Fragile()
    async with training_service(tmp_path, trainer=trainer) as service:
        for model_id in ("ses-1:train:0", "ses-2:train:0"):
            await service.answer(await service.create(model_id))
        deadly = await service.forward_backward(1, "ses-1:train:0", length=13)
        harmless = await service.forward_backward(1, "ses-2:train:0")
        failure = await service.answer(deadly)
        assert failure["category"] == "server"
        assert "3 deaths" in failure["error"]
        assert "loss:sum" in await service.answer(harmless)
        refused = await service.answer(await service.optim_step(2, "ses-1:train:0"))
        assert "seq_id 1" in refused["error"]
        assert "metrics" in await service.answer(await service.optim_step(2, "ses-2:train:0"))
        assert service.queue.status().restarts == 3


class _Fragile(FakeTrainer):
    """Ends whenever it is given a sequence of 13 tokens."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)

    async def compute(self, requests):
        if any(request.tokens == 13 for request in requests):
            self.kill()
        return await super().compute(requests)


async def test_jobs_fail_when_the_trainer_does_not_come_back(tmp_path: Path):
    trainer = _Stillborn()
    limits = Limits(patience=0.0, restart_delay=0.0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        create = await service.create()
        failure = await service.answer(create)
        assert failure["category"] == "server"
        assert "no GPU" in failure["error"]
        trainer.broken = False
        assert "model_id" in await service.answer(await service.create("ses-1:train:1"))


async def test_those_who_wait_for_the_trainer_are_told_so(tmp_path: Path):
    trainer = _Stillborn()
    limits = Limits(patience=3600.0, restart_delay=3600.0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        create = await service.create()
        await trainer.tried_twice.wait()
        future = await service.futures.wait(create.request_id, user="ada", timeout=0)
        assert future.queue_state == "paused_capacity"
        assert "no GPU" in (future.reason or "")
        (user,) = service.queue.status().users
        assert user.waiting == 1
        assert "no GPU" in service.queue.status().trainer


class _Stillborn(FakeTrainer):
    """Does not start while it is broken."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.broken = True
        self.attempts = 0
        self.tried_twice = asyncio.Event()

    async def start(self) -> None:
        self.attempts += 1
        if self.attempts > 1:
            self.tried_twice.set()
        if self.broken:
            raise StartError("there is no GPU")
        await super().start()


async def test_three_small_users_hardly_wait_for_a_greedy_one(tmp_path: Path):
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    limits = Limits(pass_tokens=100, restart_delay=0)
    async with training_service(tmp_path, trainer=trainer, limits=limits) as service:
        greedy = [f"ses-0:train:{n}" for n in range(4)]
        small = [f"ses-{n}:train:0" for n in (1, 2, 3)]
        for model_id in (*greedy, *small):
            await service.answer(await service.create(model_id, user=model_id[:5]))
        for seq_id in range(20, 0, -1):
            for model_id in greedy:
                await service.forward_backward(seq_id, model_id, user="ses-0", length=90)
        before = len(trainer.calls)
        for seq_id in range(1, 6):
            for model_id in small:
                await service.forward_backward(seq_id, model_id, user=model_id[:5], length=10)
        for model_id in small:
            await service.answer(await service.optim_step(6, model_id, user=model_id[:5]))
        after = len(trainer.calls)
        passes = [models for call, models in trainer.calls[before:after] if call == "compute"]
        # What three small users ask for is 50 tokens each: a greedy job of 90 tokens may come
        # before, and one more for each turn in which all of them have had their share.
        assert sum(model in greedy for models in passes for model in models) <= 6
        assert sum(len(models) for models in passes) >= 15


async def test_more_models_than_fit_into_memory_take_turns(tmp_path: Path):
    expected = await undisturbed(tmp_path / "undisturbed", steps=2)
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    limits = Limits(resident=2, restart_delay=0)
    async with training_service(tmp_path / "many", trainer=trainer, limits=limits) as service:
        models = [f"ses-1:train:{n}" for n in range(5)]
        async with asyncio.TaskGroup() as group:
            for model_id in models:
                group.create_task(train(service, steps=2, model_id=model_id))
        for model_id in models:
            assert await final_weights(service, model_id) == expected
    memory: set[str] = set()
    for call, named in trainer.calls:
        if call in {"create", "load"}:
            memory.update(named)
        elif call == "unload":
            memory.difference_update(named)
        assert len(memory) <= 2
    assert any(call == "load" for call, _ in trainer.calls)


async def test_gradients_that_were_not_applied_survive_eviction(tmp_path: Path):
    expected = await undisturbed(tmp_path / "undisturbed", steps=1)
    async with training_service(tmp_path / "evicted", limits=Limits(resident=1)) as service:
        await service.create(seed=7)
        await service.answer(await service.forward_backward(1))
        await service.answer(await service.create("ses-2:train:0"))  # takes the only place
        await service.answer(await service.forward_backward(2))
        await service.answer(await service.optim_step(3))
        await service.answer(await service.save(4, "final"))
        assert await final_weights(service) == expected


async def test_a_drained_service_goes_on_where_it_ended(tmp_path: Path):
    expected = await undisturbed(tmp_path / "undisturbed", steps=2)
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path / "drained", trainer=trainer) as service:
        await service.create(seed=7)
        await service.forward_backward(1)
        await service.answer(await service.forward_backward(2))
        await service.forward_backward(4)  # 3 has not arrived
        await service.queue.drain(60)
        assert service.queue.status().draining
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path / "drained", trainer=trainer) as service:
        await service.optim_step(3)
        await service.forward_backward(5)
        await service.optim_step(6)
        await service.answer(await service.save(7, "final"))
        assert await final_weights(service) == expected
    assert trainer.calls[0] == ("load", (MODEL,))  # and nothing was computed twice
    computed = [models for call, models in trainer.calls if call == "compute"]
    assert sum(len(models) for models in computed) == 2


async def test_a_drain_without_time_leaves_the_jobs_to_the_next_service(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        await service.queue.drain(0)
        left = await service.forward_backward(1)
        assert left.state == "waiting"
    async with training_service(tmp_path) as service:
        (again,) = [f for f in service.futures.waiting() if f.request_id == left.request_id] or [
            service.futures.accepted(left.key)
        ]
        assert "loss:sum" in await service.answer(again)


async def test_a_user_with_too_many_jobs_is_told_to_wait(tmp_path: Path):
    limits = Limits(waiting_jobs=3, restart_delay=0)
    async with training_service(tmp_path, limits=limits) as service:
        await service.answer(await service.create())
        later = [await service.forward_backward(seq_id) for seq_id in (2, 3, 4)]
        with pytest.raises(TinkerError) as refusal:
            await service.forward_backward(5)
        assert refusal.value.status == 429
        await service.forward_backward(1)  # what the others wait for
        for future in later:
            await service.answer(future)
        assert "loss:sum" in await service.answer(await service.forward_backward(5))


async def test_a_model_waits_for_the_job_that_has_not_arrived_and_says_so(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        await service.forward_backward(2)
        (user,) = service.queue.status().users
        assert user.reasons == {"the model's job with seq_id 1 has not arrived": 1}


async def test_what_was_sampled_and_what_is_trained_is_compared(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await service.create()
        likely = await service.forward_backward(1, loss="importance_sampling", length=4)
        metrics = await service.answer(likely)
        trained = metrics["kl_sample_train_v1:mean"]
        assert metrics["kl_sample_train_positions:sum"] == 4
        assert metrics["kl_warning:max"] == float(abs(trained) > 0.05)
        far = await service.forward_backward(
            2,
            loss="importance_sampling",
            length=4,
            logprobs=[-50.0, -50.0, 0.0, 0.0],
            advantages=[1, 1, 0, 0],
        )
        metrics = await service.answer(far)
        assert metrics["kl_sample_train_positions:sum"] == 2
        assert metrics["kl_sample_train_v1:mean"] < -30
        assert metrics["kl_sample_train_v2:mean"] == pytest.approx(
            metrics["kl_sample_train_v1:mean"] ** 2 / 2, rel=0.1
        )
        assert metrics["kl_warning:max"] == 1
        (warning,) = service.queue.status().warnings
        assert MODEL in warning


async def test_the_models_of_a_session_that_ended_are_forgotten(tmp_path: Path):
    async with training_service(tmp_path) as service:
        await train(service, steps=1)
        service.queue.retire("ses-1")
        await service.answer(await service.create("ses-2:train:0"))
        assert [model.model_id for model in service.queue.status().models] == ["ses-2:train:0"]
        assert await final_weights(service)
        late = await service.answer(await service.forward_backward(5))
        assert "session has ended" in late["error"]


async def test_a_defect_fails_the_job_that_met_it_and_no_other(tmp_path: Path):
    trainer = _Defective()
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.answer(await service.create())
        await service.answer(await service.create("ses-2:train:0"))
        failure = await service.answer(await service.forward_backward(1, length=13))
        assert failure["category"] == "server"
        assert "ZeroDivisionError" in failure["error"]
        assert "seq_id 1" in (await service.answer(await service.optim_step(2)))["error"]
        assert "loss:sum" in await service.answer(await service.forward_backward(3))
        assert "loss:sum" in await service.answer(
            await service.forward_backward(1, "ses-2:train:0")
        )


class _Defective(FakeTrainer):
    """Raises what no trainer should, for a sequence of 13 tokens."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)

    async def compute(self, requests):
        if any(request.tokens == 13 for request in requests):
            raise ZeroDivisionError
        return await super().compute(requests)
