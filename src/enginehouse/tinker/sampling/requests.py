"""A TokenPrompt as requests to an engine that speaks vLLM's completions, and what came back.

The fields besides OpenAI's are vLLM 0.32's, which our hf server has as well: stop_token_ids,
ignore_eos, prompt_logprobs, logprob_token_ids and return_tokens_as_token_ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from enginehouse.core import messages
from enginehouse.core.errors import MalformedResponseError
from enginehouse.core.sampler import Completion, SampleRequest, SampleResponse, TokenLogprob
from enginehouse.core.sampling import SamplingParameters
from enginehouse.tinker.sampling import base
from enginehouse.tinker.sampling.base import TokenPrompt, TopK

MOST_CANDIDATES = 128  # what servers of our own are started with
_BY_ID = {"return_tokens_as_token_ids": True}
_EMPTY = -99999.0


def answering(
    prompt: TokenPrompt, *, model: str, count: int, scored: bool = False
) -> SampleRequest:
    """Asks for `count` tokens; a greedy answer once only, however many samples are wanted.

    With `scored`, also for what `scoring` asks for.
    """
    stop = prompt.stop or ()
    texts = tuple(one for one in stop if isinstance(one, str))
    extra: dict[str, Any] = {}
    if ids := [one for one in stop if isinstance(one, int)]:
        extra["stop_token_ids"] = ids
    if prompt.sample_top_k:
        extra |= _BY_ID
    parameters = SamplingParameters(
        temperature=prompt.temperature,
        top_p=prompt.top_p,
        top_k=prompt.top_k,
        max_tokens=count,
        n=prompt.samples if prompt.temperature > 0 else 1,
        seed=prompt.seed,
        stop=texts,
        ignore_eos=prompt.stop == (),
        logprobs=prompt.sample_top_k,
        prompt_logprobs=prompt.prompt_top_k if scored else None,
        extra=extra,
    )
    return _request(prompt.tokens.tolist(), parameters, model)


def scoring(prompt: TokenPrompt, *, model: str) -> SampleRequest:
    """Asks for the log-probabilities of a prompt's tokens, and the most likely ones beside them.

    By itself: with n samples, vLLM would score the prompt n times, and servers that survive such a
    request only alone would be kept from others for the length of the answer.
    """
    parameters = SamplingParameters(max_tokens=1, prompt_logprobs=prompt.prompt_top_k)
    return _request(prompt.tokens.tolist(), parameters, model)


def scoring_ids(tokens: Sequence[int], ids: Sequence[int], *, model: str | None) -> SampleRequest:
    """Asks for the log-probabilities of `ids`, at most MOST_CANDIDATES, after `tokens`."""
    parameters = SamplingParameters(
        max_tokens=1,
        logprobs=len(ids) + 1,  # the token that is sampled comes besides
        extra={"logprob_token_ids": list(ids), **_BY_ID},
    )
    return _request(tokens, parameters, model)


def drawing(
    tokens: Sequence[int], prompt: TokenPrompt, *, model: str, seed: int | None
) -> SampleRequest:
    """Asks for the alternatives after `tokens`, a beginning of the prompt."""
    parameters = SamplingParameters(
        temperature=prompt.temperature,
        top_p=prompt.top_p,
        top_k=prompt.top_k,
        max_tokens=1,
        n=prompt.alternatives if prompt.temperature > 0 else 1,
        seed=seed,
        logprobs=0,
    )
    return _request(tokens, parameters, model)


def _request(
    tokens: Sequence[int], parameters: SamplingParameters, model: str | None
) -> SampleRequest:
    return SampleRequest(
        prompt=messages.TokenPrompt(tuple(tokens)), parameters=parameters, model=model
    )


def sequence_of(completion: Completion, *, candidates: int) -> base.Sequence:
    """What a completion is to the service. Raises MalformedResponseError."""
    ids, logprobs = completion.token_ids, completion.logprobs
    if ids is None or logprobs is None or len(ids) != len(logprobs):
        raise MalformedResponseError(
            "the engine did not give one log-probability for each token",
            fix="check that the server is vLLM 0.10 or newer, which takes return_token_ids",
        )
    return base.Sequence(
        tokens=np.array(ids, np.int32),
        logprobs=np.array([token.logprob for token in logprobs], np.float32),
        stopped=completion.finish_reason != "length",
        top=top_of(logprobs, candidates) if candidates else None,
    )


def scores_of(response: SampleResponse, prompt: TokenPrompt) -> dict[str, Any]:
    """The fields of Sampled about the prompt's own tokens, from `prompt_logprobs_from` on.

    Elsewhere, as for the first token of all, they are NaN and empty.
    """
    first = prompt.prompt_logprobs_from or 0
    scores = [
        score if place >= first else None
        for place, score in enumerate(response.prompt_logprobs or ())
    ]
    values = [np.nan if score is None else score.logprob for score in scores]
    top = top_of(scores, prompt.prompt_top_k) if prompt.prompt_top_k else None
    return {"prompt_logprobs": np.array(values, np.float32), "prompt_top": top}


def top_of(scores: Sequence[TokenLogprob | None], k: int) -> TopK:
    """The candidates of each token; None has none."""
    ids = np.zeros((len(scores), k), np.int32)
    logprobs = np.full((len(scores), k), _EMPTY, np.float32)
    for place, score in enumerate(scores):
        for column, candidate in enumerate(score.top[:k] if score else ()):
            ids[place, column] = id_of(candidate)
            logprobs[place, column] = candidate.logprob
    return TopK(token_ids=ids, logprobs=logprobs)


def id_of(candidate: TokenLogprob) -> int:
    """The id of a candidate, which is its text where the dialect has no other place for it."""
    if candidate.token_id is not None:
        return candidate.token_id
    text = candidate.text.removeprefix("token_id:")
    if not text.isdecimal():
        raise MalformedResponseError(
            f"the engine named a candidate {candidate.text!r}, not by its id",
            why="it does not support return_tokens_as_token_ids",
        )
    return int(text)
