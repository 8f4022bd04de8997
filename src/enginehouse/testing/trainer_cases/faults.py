"""What is refused, and what an end of the trainer costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from enginehouse.core.errors import ServerGoneError
from enginehouse.testing.trainer_cases.base import (
    STEP,
    Subject,
    blames_user,
    case,
    near,
    refused,
    total,
)
from enginehouse.tinker.data import AdamStep, Datum, LossRequest


def _bad_requests(subject: Subject, model_id: str) -> Iterator[LossRequest]:
    size, longest = subject.trainer.info.vocabulary_size, subject.trainer.info.max_length
    ones = np.ones(12, np.float32)
    nan, outside = ones.copy(), np.zeros(12, np.int64)
    nan[3], outside[3] = np.nan, size
    plain = subject.datum()
    yield subject.request(model_id, subject.datum(weights=nan))
    yield subject.request(model_id, subject.datum(weights=nan * np.inf))
    yield subject.request(model_id, subject.datum(target_tokens=outside))
    yield subject.request(model_id, subject.datum(target_tokens=outside - 1))
    yield subject.request(model_id, subject.datum(weights=ones[:5]))
    yield subject.request(model_id, subject.datum(target_tokens=outside[:5]))
    yield subject.request(model_id, Datum(tokens=plain.tokens, inputs={"weights": ones}))
    yield subject.request(model_id, Datum(tokens=np.full(12, size, np.int32), inputs=plain.inputs))
    yield subject.request(model_id, subject.datum(length=longest + 1))
    yield subject.request(model_id, loss="no_such_loss")
    yield subject.request(model_id, loss="importance_sampling")  # without its log-probabilities


@case
async def bad_requests_are_refused(subject: Subject) -> None:
    """NaN, foreign ids, other lengths and unknown losses: the user is told, nothing changes."""
    first, second = await subject.model("a"), await subject.model("b")
    await subject.train(first)
    await subject.train(second)
    for model in (first, second):
        await subject.compute(model)
    for bad in _bad_requests(subject, first):
        (result,) = await subject.trainer.compute([bad])
        blames_user(result)
    for model in (first, second):  # the gradients are as they were
        await subject.trainer.optim_step(model, STEP)
    near(await subject.logprobs(first), await subject.logprobs(second))


@case
async def failure_of_one_spares_the_others(subject: Subject) -> None:
    """In a batch, a bad request, also for a model that is not there, fails alone."""
    models = [await subject.model(name) for name in ("a", "b")]
    alone = await subject.model("alone")
    expected = total([await subject.compute(alone)])
    outside = np.full(12, subject.trainer.info.vocabulary_size, np.int64)
    requests = [
        subject.request(models[0]),
        subject.request(models[1], subject.datum(), subject.datum(target_tokens=outside)),
        subject.request(subject.id("missing")),
    ]
    good, bad, missing = await subject.trainer.compute(requests)
    near(np.array(total([good])), np.array(expected), within=1e-3)
    blames_user(bad)
    blames_user(missing)
    await subject.compute(models[1])
    for model in (*models, alone):
        await subject.trainer.optim_step(model, STEP)
    logprobs = await subject.logprobs(alone)
    for model in models:
        near(logprobs, await subject.logprobs(model), within=1e-3)


@case
async def bad_steps_are_refused(subject: Subject) -> None:
    """A parameter that is not finite, or a model that is not there: nothing changes."""
    model = await subject.model()
    before = await subject.logprobs(model)
    await subject.compute(model)
    for step in (AdamStep(learning_rate=np.nan), AdamStep(weight_decay=np.inf)):
        await refused(subject.trainer.optim_step(model, step))
    await refused(subject.trainer.optim_step(subject.id("missing"), STEP))
    near(before, await subject.logprobs(model))
    await subject.trainer.optim_step(model, STEP)


@case
async def death_is_reported_and_survived(subject: Subject) -> None:
    """After a kill every call says so; started again, it has no adapters, and loads saved ones."""
    model = await subject.model()
    await subject.train(model)
    await subject.compute(model)
    await subject.trainer.save(model, subject.folder / "saved", state=True)
    expected = await subject.logprobs(model)
    info = subject.trainer.info
    await subject.die()
    for _ in range(2):
        try:
            await subject.logprobs(model)
        except ServerGoneError:
            continue
        raise AssertionError("the end of the trainer went unnoticed")
    await subject.trainer.start()
    assert subject.trainer.info == info
    await refused(subject.logprobs(model))
    await subject.trainer.load(model, subject.folder / "saved", optimizer=True, gradients=True)
    near(expected, await subject.logprobs(model))
    await subject.trainer.optim_step(model, STEP)


@case
async def closed_trainers_start_again(subject: Subject) -> None:
    """Closing twice is no error, and a closed trainer can be started."""
    await subject.trainer.close()
    await subject.trainer.close()
    await subject.trainer.start()
    model = await subject.model()
    assert len(await subject.logprobs(model)) == 12
