"""Log-likelihoods of continuations, encoded as lm-evaluation-harness encodes them.

Source: lm-evaluation-harness 0.4.13, `TemplateLM._encode_pair` and
`HFLM._loglikelihood_tokens` for causal models: white space at the context's end belongs to the
continuation; context + continuation is tokenized as one text (with the tokenizer's own special
tokens), and the continuation's tokens are those after the first len(tokens(context)).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from enginehouse.core.errors import MalformedResponseError, TaskError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Sampler, SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.records import Continuation
from enginehouse.tasks.base import Choose

_PARAMETERS = SamplingParameters(temperature=0.0, max_tokens=1, prompt_logprobs=0)

Result = TypeVar("Result")


class Choice(msgspec.Struct, frozen=True):
    """A request whose prompt's tokens from `start` on are the continuation."""

    request: SampleRequest
    start: int


async def encode_choices(sampler: Sampler, question: Choose) -> tuple[Choice, ...]:
    """One request per continuation; the context is tokenized once. Raises WireError, TaskError."""
    context = question.context.rstrip()
    moved = question.context[len(context) :]
    if not context:
        raise TaskError(
            "a log-likelihood question has an empty context",
            why="the first token of a prompt has no log-probability",
            fix="add a context to every item",
        )
    texts = (context, *(context + moved + c for c in question.continuations))
    head, *wholes = await _together(sampler.tokenize(text) for text in texts)
    start = max(1, len(head))
    for whole, continuation in zip(wholes, question.continuations, strict=True):
        if len(whole) <= start:
            raise TaskError(
                f"the continuation {continuation!r} has no tokens of its own",
                why=f"after the context {context[-40:]!r} it adds nothing",
                fix="check the item's choices",
            )
    return tuple(
        Choice(SampleRequest(prompt=TokenPrompt(token_ids=w), parameters=_PARAMETERS), start)
        for w in wholes
    )


async def ask_choices(sampler: Sampler, choices: Sequence[Choice]) -> tuple[SampleResponse, ...]:
    """The responses to all requests, asked at the same time. Raises WireError."""
    return tuple(await _together(sampler.sample(choice.request) for choice in choices))


def continuation_of(choice: Choice, response: SampleResponse) -> Continuation:
    """Sum up the continuation's log-probabilities. Raises MalformedResponseError."""
    prompt = choice.request.prompt
    assert isinstance(prompt, TokenPrompt)
    given = response.prompt_logprobs
    if given is None or len(given) != len(prompt.token_ids):
        count = "no" if given is None else str(len(given))
        raise MalformedResponseError(
            f"asked for {len(prompt.token_ids)} prompt log-probabilities, got {count}"
        )
    logprobs = []
    for token, entry in zip(prompt.token_ids[choice.start :], given[choice.start :], strict=True):
        if entry is None or not math.isfinite(entry.logprob):
            raise MalformedResponseError(f"token {token} of the prompt has no log-probability")
        if entry.token_id not in (None, token):
            raise MalformedResponseError(
                f"the log-probability of token {token} came back for token {entry.token_id}"
            )
        logprobs.append(entry.logprob)
    return Continuation(loglikelihood=math.fsum(logprobs), logprobs=tuple(logprobs))


async def _together(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results in order; the first error ends the other calls before it is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
