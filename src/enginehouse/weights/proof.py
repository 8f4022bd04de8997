"""Proof that a loaded adapter has an effect: an engine may load one and change nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import chain

import msgspec

from enginehouse.core.errors import AdapterError, MalformedResponseError, NoEffectError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.weights.peft_folder import PeftFolder

TEXTS = (
    "The engine house stands at the edge of the mine. With each stroke of its beam a ton of water",
    "Question: 12 carts carry 8 tons each. How much in all?\nAnswer: 12 times 8 is 96, so 96 tons.",
)
BRIEF = "The engine house stands at the edge of"  # for proofs beside others
_ABOVE_NOISE = 2.0
_CANDIDATES = 20  # what engines give that state no limit, unless they were told otherwise
_ABOVE_BATCHES = 0.02  # nats; what the rest of a batch changes in bfloat16 is less

Candidates = Mapping[str, float]  # the log-probabilities of the most likely next tokens


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How far log-probabilities of `tokens` tokens differ from the base's, in nats.

    `noise` is the mean difference between two answers of the base: 0 if an engine's results do not
    depend on the rest of the batch.
    """

    largest_difference: float
    mean_difference: float
    tokens: int
    noise: float


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's own model would say after BRIEF, and how far two of its answers differ."""

    candidates: Candidates
    noise: float


async def prove_effect(
    sampler: Sampler, *, model: str, base_model: str, info: PeftFolder | None = None
) -> Effect:
    """Compare `model`'s log-probabilities of fixed texts with those of `base_model`.

    Six requests. `info`, the content of the adapter's folder, makes the error more precise. Raises
    NoEffectError, naming the likely cause, if there is no difference, or none above the noise, and
    AdapterError.
    """
    before, adapted, after = await asyncio.gather(
        *(_logprobs(sampler, name) for name in (base_model, model, base_model))
    )
    differences, noise = (
        [abs(one - other) for one, other in zip(values, before, strict=True)]
        for values in (adapted, after)
    )
    _require_finite(adapted, model)
    effect = _effect(differences, noise)
    if effect.mean_difference == 0 or effect.mean_difference <= _ABOVE_NOISE * effect.noise:
        raise _no_effect(model, base_model, info, effect)
    return effect


async def measure_baseline(sampler: Sampler, model: str) -> Baseline:
    """Ask the server's own model twice, once and for all of its adapters."""
    first, again = [await _candidates(sampler, model) for _ in range(2)]
    distances = _distances(first, again)
    return Baseline(candidates=first, noise=sum(distances) / len(distances))


async def prove_beside_others(
    sampler: Sampler, *, model: str, baseline: Baseline, info: PeftFolder | None = None
) -> Effect:
    """As `prove_effect`, on a server that many ask at the same time: one request of one token.

    It compares candidates of the answer instead of the prompt's log-probabilities, which some
    servers survive only alone: so it never waits for other requests, nor they for it. The rest of a
    batch changes results, too, so only an effect of some size is believed: raises NoEffectError
    also for a smaller one, as after the first steps of a training.
    """
    adapted = await _candidates(sampler, model)
    _require_finite(list(adapted.values()), model)
    differences = _distances(baseline.candidates, adapted)
    effect = _effect(differences, [baseline.noise])
    if effect.mean_difference <= max(_ABOVE_BATCHES, _ABOVE_NOISE * effect.noise):
        raise _no_effect(model, "the base model", info, effect)
    return effect


def _require_finite(logprobs: Sequence[float], model: str) -> None:
    if not all(map(math.isfinite, logprobs)):
        raise AdapterError(
            f"{model} gives log-probabilities that are not finite",
            why="its values are too large for the type that the engine computes in",
            fix="take an earlier checkpoint",
        )


def _effect(differences: Sequence[float], noise: Sequence[float]) -> Effect:
    return Effect(
        largest_difference=max(differences),
        mean_difference=sum(differences) / len(differences),
        tokens=len(differences),
        noise=sum(noise) / len(noise),
    )


def _distances(base: Candidates, other: Candidates) -> list[float]:
    """How far each of the base's candidates is from the other's, at least."""
    least = min(other.values())
    return [abs(other.get(token, least) - value) for token, value in base.items()]


async def _candidates(sampler: Sampler, model: str) -> Candidates:
    """The most likely next tokens after BRIEF."""
    most = sampler.capabilities.most_logprobs
    parameters = SamplingParameters(
        max_tokens=1, logprobs=_CANDIDATES if most is None else min(most, _CANDIDATES)
    )
    response = await sampler.sample(
        SampleRequest(prompt=TextPrompt(BRIEF), parameters=parameters, model=model)
    )
    for token in response.completions[0].logprobs or ():
        return {candidate.text: candidate.logprob for candidate in token.top or (token,)}
    raise MalformedResponseError(
        f"the server gave no log-probabilities for {model}",
        fix="leave the proof out for this engine",
    )


async def _logprobs(sampler: Sampler, model: str) -> Sequence[float]:
    """The natural-log probabilities of all texts' tokens but the first of each."""
    parameters = SamplingParameters(max_tokens=1, prompt_logprobs=0)
    responses = await asyncio.gather(
        *(
            sampler.sample(
                SampleRequest(prompt=TextPrompt(text), parameters=parameters, model=model)
            )
            for text in TEXTS
        )
    )
    logprobs = [
        token.logprob
        for token in chain.from_iterable(response.prompt_logprobs or () for response in responses)
        if token is not None
    ]
    if not logprobs:
        raise MalformedResponseError(
            f"the server gave no log-probabilities of the prompt for {model}",
            fix="leave the proof out for this engine",
        )
    return logprobs


def _no_effect(
    model: str, base_model: str, info: PeftFolder | None, effect: Effect
) -> NoEffectError:
    mean, noise = effect.mean_difference, effect.noise
    how_far = "exactly as" if mean == 0 else f"within {mean:.2g} nats, which is noise, as"
    if info is not None and info.is_zero:
        why = "its A, its B or its alpha is zero everywhere, as before the first step of training"
        fix = "take a later checkpoint"
    elif mean > 0:
        why = f"two answers of {base_model} itself differ by {noise:.2g}"
        fix = "train it for longer, or check that its module names are the engine's"
    else:
        why = "most likely the engine found none of its modules, whose names have another prefix"
        example = f", such as {info.modules[0]}," if info else ""
        fix = f"compare its module names{example} with those of the checkpoint"
    return NoEffectError(
        f"{model} has no effect: it answers {how_far} {base_model}", why=why, fix=fix
    )
