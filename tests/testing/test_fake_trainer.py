from __future__ import annotations

import numpy as np
import pytest

from enginehouse.core.errors import ServerGoneError, TinkerError
from enginehouse.testing.check_trainer import CASES, check_trainer
from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.testing.fake_trainer.losses import LOSSES, loss_of
from enginehouse.testing.trainer_cases.base import SPEC, Subject
from enginehouse.tinker.data import AdamStep, Datum, LossRequest


async def test_fake_passes_the_suite():
    """Every case, with a kill that forgets everything."""
    trainer = FakeTrainer()
    await trainer.start()
    assert await check_trainer(trainer, kill=trainer.kill) == []
    assert len(CASES) > 20


class _Forgetful(FakeTrainer):
    async def load(self, model_id, folder, *, optimizer, gradients):
        return await super().load(model_id, folder, optimizer=False, gradients=gradients)


class _Careless(FakeTrainer):
    async def compute(self, requests):
        results = await super().compute(requests)
        if any(isinstance(result, TinkerError) for result in results):
            self._adapters[requests[0].model_id].gradients = {}
        return results


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [
        (_Forgetful, "resume_is_exact"),
        (_Careless, "bad_requests_are_refused"),
    ],
)
async def test_suite_finds_broken_promises(wrong, broken):
    """Trainers that are wrong in one respect do not pass."""
    trainer = wrong()
    await trainer.start()
    failures = await check_trainer(trainer, kill=trainer.kill, only=[broken])
    assert [failure.name for failure in failures] == [broken]


@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_are_derivatives(loss):
    """Each loss's slope is what differences of its value give, away from the clipping's corners."""
    numbers = np.random.default_rng(3)
    logprobs = numbers.normal(size=9) / 4 - 1
    inputs = {
        "weights": numbers.normal(size=9),
        "logprobs": logprobs + numbers.normal(size=9) / 3,
        "advantages": numbers.normal(size=9),
        "sequence_ratio_mask": np.ones(9),
    }
    datum = Datum(tokens=np.zeros(9, np.int32), inputs=inputs, sampled=np.arange(9) > 2)
    config = {"kl_coeff": 0.3}
    _, slope = loss_of(loss, datum, logprobs, config)
    expected = np.empty(9)
    frozen = {"cispo", "gspo", "stable_reinforce"}  # whose ratio is not differentiated
    if loss in frozen:
        gap, advantages = logprobs - inputs["logprobs"], inputs["advantages"]
        expected = {
            "cispo": -np.clip(np.exp(gap), 0, 4) * advantages,
            "gspo": -np.exp(gap.mean()) * advantages,
            "stable_reinforce": (np.arange(9) > 2)
            * (0.3 * gap - np.minimum(np.exp(gap), 2) * advantages),
        }[loss]
    else:
        for place in range(9):
            step = np.zeros(9)
            step[place] = 1e-6
            after, _ = loss_of(loss, datum, logprobs + step, config)
            before, _ = loss_of(loss, datum, logprobs - step, config)
            expected[place] = (after - before) / 2e-6
    np.testing.assert_allclose(slope, expected, atol=1e-6)


async def test_gradients_are_derivatives():
    """A step of SGD's size along the gradient lowers the loss by what calculus says."""
    trainer = FakeTrainer()
    await trainer.start()
    await trainer.create("a", SPEC)
    numbers = np.random.default_rng(0)
    adapter = trainer._adapters["a"]
    for name, matrix in adapter.matrices.items():
        adapter.matrices[name] = numbers.normal(size=matrix.shape).astype(np.float64) / 10
    datum = Datum(
        tokens=numbers.integers(0, 300, 7).astype(np.int32),
        inputs={"target_tokens": numbers.integers(0, 300, 7), "weights": np.ones(7)},
    )
    request = LossRequest(model_id="a", loss="cross_entropy", data=(datum,))
    await trainer.compute([request])
    gradients = dict(adapter.gradients)
    assert len(gradients) == 6
    for name, gradient in gradients.items():
        original = adapter.matrices[name]
        direction = gradient / np.linalg.norm(gradient)
        losses = []
        for sign in (1e-5, -1e-5):
            adapter.matrices[name] = original + sign * direction
            (result,) = await trainer.compute([request])
            losses.append(result.metrics["loss:sum"])
        adapter.matrices[name] = original
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx(np.linalg.norm(gradient), rel=1e-3)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_it_dies_when_told(tmp_path, moment):
    """Before or after a call has had its effect, which a save shows; then everything is lost."""
    trainer = FakeTrainer(deaths=[Death(call="save", number=2, moment=moment)])
    await trainer.start()
    await trainer.create("a", SPEC)
    await trainer.save("a", tmp_path / "one", state=True)
    with pytest.raises(ServerGoneError, match="SIGKILL"):
        await trainer.save("a", tmp_path / "two", state=True)
    assert (tmp_path / "two").exists() == (moment == "after")
    with pytest.raises(ServerGoneError):
        await trainer.create("b", SPEC)
    await trainer.start()
    assert trainer.starts == 2
    await trainer.load("a", tmp_path / "one", optimizer=True, gradients=True)


async def test_it_says_what_it_was_asked():
    """Calls are recorded in order with their models."""
    trainer = FakeTrainer()
    await trainer.start()
    subject = Subject(trainer=trainer, kill=trainer.kill, folder=None, prefix="x")
    first, second = await subject.model("a"), await subject.model("b")
    await trainer.compute([subject.request(first), subject.request(second)])
    await trainer.optim_step(first, AdamStep())
    assert trainer.calls == [
        ("create", (first,)),
        ("create", (second,)),
        ("compute", (first, second)),
        ("optim_step", (first,)),
    ]
