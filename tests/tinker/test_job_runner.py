"""What a job that fails means for its batch, and for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.support.training_service import VOCABULARY, HeldTrainer, training_service, undisturbed

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.data import LossRequest, LossResult


async def test_a_failed_forward_backward_takes_its_whole_batch_with_it(tmp_path: Path):
    """The step fails as well and names the job; then it is as if nothing had happened."""
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
        await service.forward_backward(4, seed=1)
        await service.forward_backward(5, seed=2)
        await service.optim_step(6)
        await service.finish(7)
        assert await service.final_weights() == expected


async def test_a_failed_forward_pass_spoils_no_batch(tmp_path: Path):
    """It has no gradients that would be missing."""
    async with training_service(tmp_path) as service:
        await service.create()
        await service.forward_backward(1)
        bad = await service.forward_backward(2, targets=[-1] * 12, forward_only=True)
        assert (await service.answer(bad))["category"] == "user"
        assert "metrics" in await service.answer(await service.optim_step(3))


async def test_a_forward_pass_leaves_no_gradients(tmp_path: Path):
    """So a step after it has nothing to apply."""
    async with training_service(tmp_path) as service:
        await service.create()
        forward = await service.forward_backward(1, forward_only=True)
        assert "loss:sum" in await service.answer(forward)
        assert "no gradients" in (await service.answer(await service.optim_step(2)))["error"]


async def test_a_model_that_fails_does_not_disturb_the_others_of_its_pass(tmp_path: Path):
    """Whether the data is refused before the pass, or by the trainer in it."""
    trainer = _Refusing()
    models = [f"ses-{n}:train:0" for n in range(4)]
    changes = [{}, {"targets": [999] * 12}, {"length": 13}, {}]
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.answer(await service.create("ses-9:train:0"))
        for model_id in models:
            await service.answer(await service.create(model_id))
        await service.forward_backward(1, "ses-9:train:0")  # holds the trainer
        futures = [
            await service.forward_backward(1, model_id, **change)
            for model_id, change in zip(models, changes, strict=True)
        ]
        trainer.go.set()
        answers = [await service.answer(future) for future in futures]
        assert ["error" in answer for answer in answers] == [False, True, True, False]
        assert trainer.passes[-1] == (models[0], models[2], models[3])
        steps = [await service.optim_step(2, model_id) for model_id in models]
        answers = [await service.answer(future) for future in steps]
        assert ["error" in answer for answer in answers] == [False, True, True, False]


class _Refusing(HeldTrainer):
    """Refuses sequences of 13 tokens."""

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        results = await super().compute(requests)
        return [
            TinkerError("13 brings bad luck") if request.tokens == 13 else result
            for request, result in zip(requests, results, strict=True)
        ]


async def test_wrong_parameters_of_a_step_drop_its_batch(tmp_path: Path):
    """Or the next step would apply two batches at once."""
    async with training_service(tmp_path) as service:
        await service.create()
        await service.forward_backward(1)
        refused = await service.answer(await service.optim_step(2, beta1=1.5))
        assert refused["category"] == "user"
        assert "beta1" in refused["error"]
        assert "no gradients" in (await service.answer(await service.optim_step(3)))["error"]


async def test_a_defect_fails_the_job_that_met_it_and_no_other(tmp_path: Path):
    """The model goes back to what is known for sure, and goes on."""
    expected = await undisturbed(tmp_path / "undisturbed", steps=1)
    async with training_service(tmp_path / "defective", trainer=_Defective()) as service:
        await service.create(seed=7)
        await service.answer(await service.create("ses-2:train:0"))
        failure = await service.answer(await service.forward_backward(1, length=13))
        assert failure["category"] == "server"
        assert "ZeroDivisionError" in failure["error"]
        assert "seq_id 1" in (await service.answer(await service.optim_step(2)))["error"]
        await service.forward_backward(3, seed=1)
        await service.forward_backward(4, seed=2)
        await service.optim_step(5)
        await service.finish(6)
        assert await service.final_weights() == expected
        other = await service.forward_backward(1, "ses-2:train:0")
        assert "loss:sum" in await service.answer(other)


class _Defective(FakeTrainer):
    """Raises what no trainer should, for a sequence of 13 tokens."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        if any(request.tokens == 13 for request in requests):
            raise ZeroDivisionError
        return await super().compute(requests)
