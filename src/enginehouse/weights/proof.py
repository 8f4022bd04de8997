"""Proof that a loaded adapter has an effect: an engine may load one and change nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

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
_ABOVE_NOISE = 2.0
_CANDIDATES = 20  # the most that vLLM gives unless it was told otherwise

Candidates = Mapping[str, float]  # the log-probabilities of the most likely next tokens


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How far the log-probabilities of `tokens` candidates differ from the base's, in nats.

    `noise` is the mean difference between two answers of the base: 0 if an engine's results do not
    depend on the rest of the batch.
    """

    largest_difference: float
    mean_difference: float
    tokens: int
    noise: float


async def prove_effect(
    sampler: Sampler, *, model: str, base_model: str, info: PeftFolder | None = None
) -> Effect:
    """Compare what `model` would say after fixed texts with what `base_model` would say.

    Six requests of one token each. They ask for candidates of the answer, not for the prompt's
    log-probabilities, which some servers survive only alone: a proof never waits for other
    requests, nor they for it. `info`, the content of the adapter's folder, makes the error more
    precise. Raises NoEffectError, naming the likely cause, if there is no difference, or none
    above the noise, and AdapterError.
    """
    before, adapted, after = await asyncio.gather(
        *(_candidates(sampler, name) for name in (base_model, model, base_model))
    )
    if not all(math.isfinite(value) for one in adapted for value in one.values()):
        raise AdapterError(
            f"{model} gives log-probabilities that are not finite",
            why="its values are too large for the type that the engine computes in",
            fix="take an earlier checkpoint",
        )
    differences = _differences(before, adapted)
    mean = sum(differences) / len(differences)
    noise = sum(_differences(before, after)) / len(differences)
    if mean == 0 or mean <= _ABOVE_NOISE * noise:
        raise _no_effect(model, base_model, info, mean=mean, noise=noise)
    return Effect(
        largest_difference=max(differences),
        mean_difference=mean,
        tokens=len(differences),
        noise=noise,
    )


def _differences(base: Sequence[Candidates], other: Sequence[Candidates]) -> list[float]:
    """How far each of the base's candidates is from the other's, at least."""
    return [
        abs(theirs.get(token, min(theirs.values())) - value)
        for ours, theirs in zip(base, other, strict=True)
        for token, value in ours.items()
    ]


async def _candidates(sampler: Sampler, model: str) -> Sequence[Candidates]:
    """The most likely next tokens after each text."""
    most = sampler.capabilities.most_logprobs
    parameters = SamplingParameters(
        max_tokens=1, logprobs=_CANDIDATES if most is None else min(most, _CANDIDATES)
    )
    responses = await asyncio.gather(
        *(
            sampler.sample(
                SampleRequest(prompt=TextPrompt(text), parameters=parameters, model=model)
            )
            for text in TEXTS
        )
    )
    candidates = [
        {candidate.text: candidate.logprob for candidate in token.top or (token,)}
        for response in responses
        for token in response.completions[0].logprobs or ()
    ]
    if len(candidates) != len(TEXTS):
        raise MalformedResponseError(
            f"the server gave no log-probabilities for {model}",
            fix="leave the proof out for this engine",
        )
    return candidates


def _no_effect(
    model: str, base_model: str, info: PeftFolder | None, *, mean: float, noise: float
) -> NoEffectError:
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
