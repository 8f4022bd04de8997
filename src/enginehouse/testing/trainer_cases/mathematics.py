"""Seeds, losses, gradients and steps, as far as they show from outside."""

from __future__ import annotations

import numpy as np

from enginehouse.testing.trainer_cases.base import (
    SPEC,
    STEP,
    Subject,
    apart,
    blames_user,
    case,
    flat,
    near,
    total,
)
from enginehouse.tinker.data import AdamStep, Datum, LoraSpec, LossResult


@case
async def info_says_what_is_possible(subject: Subject) -> None:
    """The facts of a running trainer are there and make sense."""
    info = subject.trainer.info
    assert info.vocabulary_size > 1
    assert info.max_length > 1
    assert info.base_model
    assert info.architecture
    assert "cross_entropy" in info.losses
    await subject.trainer.start()  # idempotent
    assert subject.trainer.info == info


@case
async def new_adapter_is_the_base_model(subject: Subject) -> None:
    """Before its first step an adapter changes nothing, whatever its seed and rank."""
    first = await subject.model("a", LoraSpec(rank=4, seed=1))
    second = await subject.model("b", LoraSpec(rank=8, seed=2))
    near(await subject.logprobs(first), await subject.logprobs(second))


@case
async def same_seed_gives_the_same_adapter(subject: Subject) -> None:
    """Trained alike, adapters of one seed stay equal, and those of another do not."""
    trained = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        model = await subject.model(name, LoraSpec(rank=4, seed=seed))
        await subject.train(model, steps=3)
        trained.append(await subject.logprobs(model))
    near(trained[0], trained[1])
    apart(trained[0], trained[2])


@case
async def loss_is_the_weighted_sum(subject: Subject) -> None:
    """Cross-entropy is -Σ w·logprob in float32, also for K targets and negative weights."""
    model = await subject.model()
    numbers = np.random.default_rng(0)
    for shape in ((12,), (12, 3)):
        weights = numbers.normal(size=shape).astype(np.float32)
        datum = subject.datum(target_tokens=numbers.integers(0, 50, shape), weights=weights)
        result = await subject.compute(model, datum, backward=False)
        logprobs = result.outputs[0]["logprobs"]
        assert logprobs.shape == shape
        assert logprobs.dtype == np.float32
        expected = np.array(-(weights * logprobs).sum())
        near(np.array(result.metrics["loss:sum"]), expected, within=1e-3)


@case
async def losses_agree_on_policy(subject: Subject) -> None:
    """Where old and new log-probabilities are equal, each loss has the value that it must have."""
    model = await subject.model()
    plain = subject.datum()
    old = await subject.logprobs(model, plain)
    advantages = np.linspace(-1, 2, len(old)).astype(np.float32)
    mask = np.ones(len(old), np.float32)
    inputs = {"target_tokens": plain.inputs["target_tokens"], "logprobs": old}
    inputs |= {"advantages": advantages, "sequence_ratio_mask": mask}
    expected = {
        "importance_sampling": -advantages.sum(),
        "ppo": -advantages.sum(),
        "gspo": -advantages.sum(),
        "cispo": -(old * advantages).sum(),
        "dro": -(old * advantages).sum(),
        "stable_reinforce": -(old * advantages).sum(),
    }
    for loss in expected.keys() & set(subject.trainer.info.losses):
        given = dict(inputs)
        if loss != "gspo":
            del given["sequence_ratio_mask"]
        sampled = np.ones(len(old), bool)
        datum = Datum(tokens=plain.tokens, inputs=given, sampled=sampled)
        result = await subject.compute(model, datum, loss=loss)
        near(np.array(result.metrics["loss:sum"]), np.array(expected[loss]), within=5e-3)
        near(result.outputs[0]["logprobs"], old)
        await subject.trainer.optim_step(model, AdamStep(learning_rate=0.0))


@case
async def training_lowers_the_loss(subject: Subject) -> None:
    """Steps on the same data make them likelier; without gradients nothing changes."""
    model = await subject.model()
    losses = []
    for _ in range(6):
        losses += total([await subject.compute(model)])
        await subject.trainer.optim_step(model, AdamStep(learning_rate=1e-2))
    losses += total([await subject.compute(model, backward=False)])
    assert losses[-1] < 0.9 * losses[0], f"the losses were {losses}"
    assert losses[-1:] == total([await subject.compute(model, backward=False)])


@case
async def flags_choose_what_is_trained(subject: Subject) -> None:
    """Each of the three parts can be trained alone, and gives a result of its own."""
    trained = [await subject.logprobs(await subject.model("base"))]
    for name in ("train_mlp", "train_attn", "train_unembed"):
        flags = dict.fromkeys(("train_mlp", "train_attn", "train_unembed"), False) | {name: True}
        model = await subject.model(name, LoraSpec(rank=4, seed=1, **flags))
        await subject.train(model, steps=3)
        trained.append(await subject.logprobs(model))
    for place, first in enumerate(trained):
        for second in trained[:place]:
            apart(first, second)


@case
async def gradients_add_up(subject: Subject) -> None:
    """Two requests before one step are worth one request with the data of both."""
    first, second = subject.datum(seed=1), subject.datum(seed=2, length=7)
    whole, halves = await subject.model("a"), await subject.model("b")
    await subject.compute(whole, first, second)
    await subject.compute(halves, first)
    await subject.compute(halves, second)
    for model in (whole, halves):
        await subject.trainer.optim_step(model, STEP)
    near(await subject.logprobs(whole), await subject.logprobs(halves), within=1e-3)


@case
async def forward_leaves_no_gradients(subject: Subject) -> None:
    """A request without `backward` does not change what the next step does."""
    first, second = await subject.model("a"), await subject.model("b")
    await subject.compute(first)
    await subject.compute(second, subject.datum(seed=9), backward=False)
    await subject.compute(second)
    for model in (first, second):
        await subject.trainer.optim_step(model, STEP)
    near(await subject.logprobs(first), await subject.logprobs(second))


@case
async def chunks_of_one_adapter_add_up(subject: Subject) -> None:
    """Requests of one adapter in one batch have a result each, and add up, but for a bad one."""
    first, second = subject.datum(seed=1), subject.datum(seed=2, length=7)
    whole, chunks = await subject.model("a"), await subject.model("b")
    expected = flat(await subject.compute(whole, first, second))
    bad = subject.datum(weights=np.full(12, np.nan, np.float32))
    requests = [subject.request(chunks, datum) for datum in (first, bad, second)]
    good, refusal, other = await subject.trainer.compute(requests)
    blames_user(refusal)
    assert isinstance(good, LossResult)
    assert isinstance(other, LossResult)
    near(expected, np.concatenate([flat(good), flat(other)]), within=1e-3)
    for model in (whole, chunks):
        await subject.trainer.optim_step(model, STEP)
    near(await subject.logprobs(whole), await subject.logprobs(chunks), within=1e-3)


@case
async def gradients_can_be_dropped(subject: Subject) -> None:
    """What was dropped has no part in the next step; to drop nothing is no error."""
    first, second = await subject.model("a"), await subject.model("b")
    await subject.compute(second, subject.datum(seed=9))
    await subject.trainer.drop_gradients(second)
    await subject.trainer.drop_gradients(second)
    for model in (first, second):
        await subject.compute(model)
        await subject.trainer.optim_step(model, STEP)
    near(await subject.logprobs(first), await subject.logprobs(second))


@case
async def adapters_do_not_touch_one_another(subject: Subject) -> None:
    """Training one adapter leaves another one, trained before, exactly as it was."""
    first, second = await subject.model("a"), await subject.model("b", LoraSpec(rank=8, seed=3))
    await subject.train(first)
    before = await subject.logprobs(first)
    await subject.train(second, seed=50)
    near(before, await subject.logprobs(first))
    apart(before, await subject.logprobs(second))


@case
async def together_is_as_alone(subject: Subject) -> None:
    """Requests of adapters of several ranks give together what each gives alone."""
    ranks = {"a": 4, "b": 8, "c": 2}
    alone, together = [], []
    for name, rank in ranks.items():
        model = await subject.model(f"{name}-alone", LoraSpec(rank=rank, seed=rank))
        await subject.train(model, seed=rank)
        await subject.compute(model, subject.datum(seed=rank, length=5 + rank))
        await subject.trainer.optim_step(model, STEP)
        alone.append(await subject.logprobs(model))
    models = [
        await subject.model(name, LoraSpec(rank=rank, seed=rank)) for name, rank in ranks.items()
    ]
    for model, rank in zip(models, ranks.values(), strict=True):
        await subject.train(model, seed=rank)
    requests = [
        subject.request(model, subject.datum(seed=rank, length=5 + rank))
        for model, rank in zip(models, ranks.values(), strict=True)
    ]
    total(await subject.trainer.compute(requests))
    for model in models:
        await subject.trainer.optim_step(model, STEP)
    results = await subject.trainer.compute(
        [subject.request(model, backward=False) for model in models]
    )
    total(results)
    together = [flat(result) for result in results if not isinstance(result, Exception)]
    for first, second in zip(alone, together, strict=True):
        near(first, second, within=1e-3)


@case
async def clipping_bounds_the_gradient(subject: Subject) -> None:
    """A high limit of the norm changes nothing; the metrics hold the norm before clipping."""
    first, second = await subject.model("a"), await subject.model("b")
    for model, norm in ((first, 0.0), (second, 1e9)):
        await subject.compute(model)
        step = AdamStep(learning_rate=2e-3, grad_clip_norm=norm)
        metrics = await subject.trainer.optim_step(model, step)
        assert all(np.isfinite(list(metrics.values())))
    near(await subject.logprobs(first), await subject.logprobs(second))


@case
async def decay_shrinks_the_weights(subject: Subject) -> None:
    """Weight decay works without a gradient's help: rate · decay = 1 removes the adapter."""
    model = await subject.model("a", SPEC)
    base = await subject.logprobs(model)
    await subject.train(model, steps=3)
    apart(base, await subject.logprobs(model))
    await subject.compute(model)
    await subject.trainer.optim_step(model, AdamStep(learning_rate=1e-8, weight_decay=1e8))
    near(base, await subject.logprobs(model), within=1e-3)
