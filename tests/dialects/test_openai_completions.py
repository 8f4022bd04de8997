"""Replies of /v1/completions, as vLLM 0.32.0 really sent them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import MalformedResponseError
from enginehouse.core.messages import Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import (
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
    Usage,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects import openai_completions

ONCE = TextPrompt("Once upon")
TIMING = Timing(started=1.0, elapsed=0.5)


def reply(**changes: Any) -> dict[str, Any]:
    """A reply to "Once upon a" with logprobs 1; `changes` are to its one choice."""
    choice = {
        "index": 0,
        "text": " time, the",
        "logprobs": {
            "text_offset": [0, 5, 6],
            "token_logprobs": [-1.9, -0.06, -1.8],
            "tokens": [" time", ",", " the"],
            "top_logprobs": [
                {" time": -1.9, " Sunday": -1.2},
                {",": -0.06},
                {" the": -1.8, " a": -2.0},
            ],
        },
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": [655, 28, 260],
        "prompt_logprobs": [
            None,
            {"1980": {"logprob": -10.2, "rank": 1057, "decoded_token": " upon"}},
        ],
        "prompt_token_ids": [6403, 1980],
        **changes,
    }
    return {
        "id": "cmpl-8fba",
        "object": "text_completion",
        "model": "smollm2",
        "choices": [choice],
        "usage": {"prompt_tokens": 2, "total_tokens": 5, "completion_tokens": 3},
    }


def decode(body: dict[str, Any], prompt: Prompt = ONCE, **parameters: Any) -> SampleResponse:
    """What becomes of a reply to a request with these parameters."""
    request = SampleRequest(prompt=prompt, parameters=SamplingParameters(**parameters))
    return openai_completions.decode(json.dumps(body).encode(), request=request, timing=TIMING)


def test_a_whole_reply():
    """Prompt fields, which lie inside the choice here, arrive beside the completions."""
    response = decode(reply(), prompt_logprobs=0)
    assert response.completions[0].text == " time, the"
    assert response.completions[0].token_ids == (655, 28, 260)
    assert response.prompt_token_ids == (6403, 1980)
    assert response.prompt_logprobs == (
        None,
        TokenLogprob(logprob=-10.2, text=" upon", token_id=1980, rank=1057),
    )


def test_candidates_are_the_most_likely_and_as_many_as_asked():
    """The server adds the chosen token to the candidates, one too many at times."""
    logprobs = decode(reply(), logprobs=1).completions[0].logprobs
    assert logprobs is not None
    assert [token.text for token in logprobs] == [" time", ",", " the"]
    assert [token.token_id for token in logprobs] == [655, 28, 260]
    assert [[c.text for c in token.top] for token in logprobs] == [[" Sunday"], [","], [" the"]]
    none = decode(reply(), logprobs=0).completions[0].logprobs
    assert none is not None
    assert [token.top for token in none] == [(), (), ()]


def test_prompt_logprobs_of_a_token_prompt_need_no_echoed_ids():
    """The ids are known from the request."""
    body = reply(prompt_token_ids=None)
    response = decode(body, TokenPrompt((6403, 1980)), prompt_logprobs=0)
    assert response.prompt_logprobs is not None
    assert response.prompt_logprobs[1] is not None
    with pytest.raises(MalformedResponseError):
        decode(body, prompt_logprobs=0)


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a", "b"], "token_logprobs": [-1.0]},
        {"tokens": ["a"], "token_logprobs": [None]},
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": []},
        {"tokens": "a", "token_logprobs": [-1.0]},
        None,
    ],
)
def test_crooked_logprobs_are_malformed(logprobs: Any):
    """Lists that do not match are never zipped into something plausible."""
    if logprobs and logprobs.get("top_logprobs") == []:
        logprobs["top_logprobs"] = [{}, {}]
    with pytest.raises(MalformedResponseError):
        decode(reply(logprobs=logprobs), logprobs=1)


def test_chunks_of_a_stream():
    """A piece is text, its choice, its ids, and at the end why it ended."""
    data = (
        b'{"choices":[{"index":1,"text":" Our","finish_reason":"length","token_ids":[3698]}],'
        b'"system_fingerprint":"vllm"}'
    )
    assert openai_completions.decode_chunk(data) == (
        Delta(text=" Our", index=1, token_ids=(3698,), finish_reason="length"),
    )
    usage = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    assert openai_completions.decode_chunk(usage) == (Delta(text="", usage=Usage(1, 2)),)
