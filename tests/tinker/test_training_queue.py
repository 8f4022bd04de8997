"""The training queue with the files of a real service and a fake trainer."""

from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path

import pytest
from tests.support.training_service import MODEL, VOCABULARY, training_service, undisturbed

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.limits import Limits


async def test_jobs_are_done_in_the_order_of_their_seq_ids(tmp_path: Path):
    """However they arrive, the weights are those of a client that sends them in order."""
    expected = await undisturbed(tmp_path / "in order", steps=3)
    async with training_service(tmp_path / "shuffled") as service:
        await service.create(seed=7)
        jobs = [
            *(service.forward_backward(seq_id) for seq_id in (1, 2, 4, 5, 7, 8)),
            *(service.optim_step(seq_id) for seq_id in (3, 6, 9)),
            service.save(10, "final"),
        ]
        random.Random(3).shuffle(jobs)
        for future in [await job for job in jobs]:
            assert "error" not in await service.answer(future)
        assert await service.final_weights() == expected


async def test_a_retried_request_is_done_once(tmp_path: Path):
    """The second of two equal requests gets the first one's future; nothing is applied twice."""
    async with training_service(tmp_path) as service:
        await service.create()
        once = await service.forward_backward(1)
        assert await service.forward_backward(1) is once
        step = await service.optim_step(2)
        assert (await service.answer(step))["metrics"]["grad_norm:mean"] > 0
        assert await service.optim_step(2) is step
        assert "no gradients" in (await service.answer(await service.optim_step(3)))["error"]


async def test_a_drained_service_goes_on_where_it_ended(tmp_path: Path):
    """The next one loads the state, with half a batch in it, and computes nothing twice."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=2)
    async with training_service(tmp_path / "drained") as service:
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
        await service.finish(7)
        assert await service.final_weights() == expected
    assert trainer.calls[0] == ("load", (MODEL,))
    assert sum(len(models) for call, models in trainer.calls if call == "compute") == 2


async def test_a_drain_without_time_leaves_the_jobs_to_the_next_service(tmp_path: Path):
    """They stay accepted, and are answered when the service runs again."""
    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        await service.queue.drain(0)
        left = await service.forward_backward(1)
        assert left.state == "waiting"
        assert left.queue_state == "paused_capacity"
        assert "restarted" in (left.reason or "")
    async with training_service(tmp_path) as service:
        again = service.futures.accepted(left.key)
        assert again is not None
        assert "loss:sum" in await service.answer(again)


async def test_a_user_with_too_many_jobs_is_told_to_wait(tmp_path: Path):
    """But the job that all the others wait for is accepted, or they would wait for ever."""
    limits = Limits(waiting_jobs=3, restart_delay=0)
    async with training_service(tmp_path, limits=limits) as service:
        await service.answer(await service.create())
        later = [await service.forward_backward(seq_id) for seq_id in (2, 3, 4)]
        with pytest.raises(TinkerError) as refusal:
            await service.forward_backward(5)
        assert refusal.value.status == 429
        await service.forward_backward(1)
        for future in later:
            await service.answer(future)
        assert "loss:sum" in await service.answer(await service.forward_backward(5))


async def test_a_client_is_told_which_job_the_others_wait_for(tmp_path: Path):
    """In its poll and in the status."""
    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        future = await service.forward_backward(2)
        assert "job with seq_id 1 has not arrived; this one fails if" in (future.reason or "")
        (user,) = service.queue.status().users
        assert user.user == "ada"
        assert user.reasons == {future.reason: 1}


async def test_the_status_shows_what_was_computed(tmp_path: Path):
    """Tokens per second of the last minute, answers by kind, and where models are."""
    async with training_service(tmp_path) as service:
        await service.train(steps=1)
        await service.queue.drain(10)
        status = service.queue.status()
        (user,) = status.users
        assert user.tokens_per_second == 24 / 60
        assert status.tokens == 24
        assert status.jobs["forward_backward:finished"] == 2
        (model,) = status.models
        assert (model.model_id, model.resident, model.done) == (MODEL, True, 4)


async def test_the_models_of_a_session_that_ended_are_forgotten(tmp_path: Path):
    """Their checkpoints stay, and a late job is told why it fails."""
    async with training_service(tmp_path) as service:
        await service.train(steps=1)
        service.queue.retire("ses-1")
        await service.answer(await service.create("ses-2:train:0"))
        assert [model.model_id for model in service.queue.status().models] == ["ses-2:train:0"]
        assert not (tmp_path / "models" / MODEL).exists()
        assert await service.final_weights()
        late = await service.answer(await service.forward_backward(5))
        assert "session has ended" in late["error"]


async def test_what_was_sampled_and_what_is_trained_is_compared(tmp_path: Path):
    """A difference above the threshold is a metric and a warning in the status."""
    async with training_service(tmp_path) as service:
        await service.create()
        advantages = [1.0, 1.0, 0.0, 0.0]
        future = await service.forward_backward(
            1,
            loss="importance_sampling",
            length=4,
            logprobs=[-50.0, -50.0, 0.0, 0.0],
            advantages=advantages,
        )
        metrics = await service.answer(future)
        assert metrics["kl_sample_train_positions:sum"] == 2
        assert -50 < metrics["kl_sample_train_v1:mean"] < -40
        assert metrics["kl_sample_train_v2:mean"] == pytest.approx(
            metrics["kl_sample_train_v1:mean"] ** 2 / 2, rel=0.1
        )
        assert metrics["kl_warning:max"] == 1
        status = service.queue.status()
        assert status.warnings == (status.models[0].warning,)
        assert MODEL in status.warnings[0]


async def test_each_step_logs_what_was_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """All requests of a step together, weighted by their tokens; nothing of the step before."""
    caplog.set_level(logging.INFO, logger="enginehouse.tinker")
    async with training_service(tmp_path) as service:
        await service.create()
        figures = []
        for seq_id, count in ((1, 3), (2, 1), (4, 2)):
            future = await service.forward_backward(
                seq_id,
                loss="importance_sampling",
                length=4,
                logprobs=[-float(10 * seq_id)] * 4,
                advantages=[1.0] * count + [0.0] * (4 - count),
            )
            metrics = await service.answer(future)
            names = ("v1:mean", "v2:mean", "positions:sum")
            figures.append([metrics[f"kl_sample_train_{name}"] for name in names])
            if seq_id == 2:
                await service.answer(await service.optim_step(3))
        await service.answer(await service.optim_step(5))
        await service.forward_backward(6)
        await service.answer(await service.optim_step(7))
        (model,) = service.queue.status().models
    steps = [record for record in caplog.records if hasattr(record, "kl_sample_train_v1")]
    logged = [
        [step.kl_sample_train_v1, step.kl_sample_train_v2, step.positions]  # type: ignore[attr-defined]
        for step in steps
    ]
    first, second, last = figures
    both = [(3 * one + other) / 4 for one, other in zip(first[:2], second[:2], strict=True)]
    assert logged[0] == pytest.approx([*both, 4], rel=1e-5)
    assert logged[1] == pytest.approx(last, rel=1e-5)
    assert [step.levelname for step in steps] == ["WARNING"] * 2
    assert model.kl is not None
    assert model.kl.positions == 2


async def test_cross_entropy_has_no_such_figures(tmp_path: Path):
    """Nothing was sampled, so nothing is compared."""
    async with training_service(tmp_path) as service:
        await service.create()
        assert list(await service.answer(await service.forward_backward(1))) == ["loss:sum"]


async def test_a_job_that_never_arrives_is_not_waited_for_without_end(tmp_path: Path):
    """Those behind it fail and name it, no half batch is applied, and the model goes on."""
    limits = Limits(gap=0.2, restart_delay=0)
    async with training_service(tmp_path, limits=limits) as service:
        await service.create(seed=7)
        await service.answer(await service.forward_backward(1))
        behind = [await service.forward_backward(3), await service.optim_step(5)]  # nor has 4
        for future in behind:
            answer = await service.answer(future)
            assert "job with seq_id 2 did not arrive within 0.2 seconds" in answer["error"]
            assert answer["category"] == "user"
        late = await service.answer(await service.forward_backward(2))
        assert "it arrived when those behind it had been given up" in late["error"]
        await service.train_once(6)
        behind = [await service.forward_backward(9), await service.save(11, "no")]
        for future in behind:
            assert "seq_id 8" in (await service.answer(future))["error"]
        assert "seq_id 8" in (await service.answer(await service.optim_step(12)))["error"]
    async with training_service(tmp_path, limits=limits) as service:  # killed: done again
        await service.train_once(13)
        await service.finish(15)
        weights = await service.final_weights()
    async with training_service(tmp_path / "undisturbed") as service:
        await service.create(seed=7)
        for seq_id in (1, 3):
            await service.train_once(seq_id, seed=6 if seq_id == 1 else 13)
        await service.finish(5)
        assert await service.final_weights() == weights


@pytest.mark.parametrize("how", [{"forward_only": True}, {}], ids=["forward", "backward"])
async def test_jobs_without_a_step_are_not_kept_for_ever(tmp_path: Path, how: dict[str, bool]):
    """After 64 the state is saved, though the queue is never idle, and their bodies are gone."""
    async with training_service(tmp_path) as service:
        await service.create()
        for seq_id in range(1, 70):
            future = await service.forward_backward(seq_id, **how)
            await service.answer(future)
        assert len(service.futures.answered(model_id=MODEL, after=-1)) < 10
        assert ("error" in await service.answer(await service.optim_step(70))) is bool(how)


async def test_an_idle_model_leaves_the_memory_though_others_are_busy(tmp_path: Path):
    """It comes back with its next job."""
    limits = Limits(idle=0.05, restart_delay=0)
    idle, busy = "ses-1:train:0", "ses-2:train:0"
    async with training_service(tmp_path, limits=limits) as service:
        await service.answer(await service.create(idle))
        await service.answer(await service.create(busy, user="bob"))
        for seq_id in itertools.count(1):
            await service.answer(await service.forward_backward(seq_id, busy, user="bob"))
            resident = {m.model_id: m.resident for m in service.queue.status().models}
            assert resident[busy]
            if not resident[idle]:
                break
        assert "loss:sum" in await service.answer(await service.forward_backward(1, idle))


async def test_the_body_of_a_forward_pass_is_not_kept(tmp_path: Path):
    """It has its place among the jobs that are done again, and nothing to do there."""
    async with training_service(tmp_path) as service:
        await service.create(seed=7)
        jobs = [
            await service.forward_backward(seq_id, datums=200, forward_only=seq_id != 2)
            for seq_id in (1, 2, 3)
        ]
        for future in jobs:
            assert "loss:sum" in await service.answer(future)
        kept = [path.name for path in (tmp_path / "futures" / "bodies").iterdir()]
        assert kept == [jobs[1].request_id]
    async with training_service(tmp_path) as service:
        assert "metrics" in await service.answer(await service.optim_step(4))
        assert len(service.futures.answered(model_id=MODEL, after=-1)) == 5
