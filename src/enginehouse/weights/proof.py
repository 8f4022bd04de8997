"""Proof that a loaded adapter has an effect: an engine may load one and change nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import chain

import msgspec

from enginehouse.core.errors import AdapterError, MalformedResponseError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import Sampler, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.weights.peft_folder import PeftFolder

TEXTS = (
    "The engine house stands at the edge of the mine. With each stroke of its beam a ton of water",
    "Question: 12 carts carry 8 tons each. How much in all?\nAnswer: 12 times 8 is 96, so 96 tons.",
)
_ABOVE_NOISE = 2.0


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """How far log-probabilities over `tokens` tokens differ from the base's, in nats.

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
    """Compare `model`'s log-probabilities of fixed texts with those of `base_model`.

    Six requests. `info`, the content of the adapter's folder, makes the error more precise. Raises
    AdapterError, naming the likely cause, if there is no difference, or none above the noise.
    """
    before, adapted, after = await asyncio.gather(
        *(_logprobs(sampler, name) for name in (base_model, model, base_model))
    )
    if not all(map(math.isfinite, adapted)):
        raise AdapterError(
            f"{model} gives log-probabilities that are not finite",
            why="its values are too large for the type that the engine computes in",
            fix="take an earlier checkpoint",
        )
    differences = [abs(one - other) for one, other in zip(adapted, before, strict=True)]
    mean = sum(differences) / len(differences)
    noise = sum(abs(one - other) for one, other in zip(after, before, strict=True)) / len(before)
    if mean == 0 or mean <= _ABOVE_NOISE * noise:
        raise _no_effect(model, base_model, info, mean=mean, noise=noise)
    return Effect(
        largest_difference=max(differences),
        mean_difference=mean,
        tokens=len(differences),
        noise=noise,
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
    model: str, base_model: str, info: PeftFolder | None, *, mean: float, noise: float
) -> AdapterError:
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
    return AdapterError(
        f"{model} has no effect: it answers {how_far} {base_model}", why=why, fix=fix
    )
