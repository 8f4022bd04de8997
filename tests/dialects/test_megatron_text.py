"""The texts of a Megatron server: what is asked, and how prompt and answer are told apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ContextOverflowError,
    MalformedResponseError,
    UnsupportedError,
)
from enginehouse.core.messages import TextPrompt, TokenPrompt
from enginehouse.core.sampler import SampleRequest, SampleResponse, Timing
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects import megatron_text
from enginehouse.engines.megatron.engine import MegatronEngine

PROMPT = TextPrompt("ab c")
REPLY: dict[str, Any] = {
    "text": ["ab c de.\nf"],
    "segments": [["ab", " c", " de", ".", "\n", "f"]],
    "tokens": [[1, 2, 3, 4, 5, 6]],
    "logprobs": [[-0.1, -0.2, -0.3, -0.4, -0.5]],
}


def body(**parameters: Any) -> Any:
    """What is sent."""
    request = SampleRequest(prompt=PROMPT, parameters=SamplingParameters(**parameters))
    capabilities = MegatronEngine().capabilities(None)
    encode = megatron_text.encode
    return json.loads(encode(request, model="m", capabilities=capabilities, stream=False))


def read(changes: dict[str, Any] | None = None, **parameters: Any) -> SampleResponse:
    """What is read in a reply."""
    return megatron_text.decode(
        json.dumps(REPLY | (changes or {})).encode(),
        request=SampleRequest(prompt=PROMPT, parameters=SamplingParameters(**parameters)),
        timing=Timing(started=0, elapsed=0),
    )


def test_greedy_is_the_likeliest_token():
    """The server refuses a temperature of 0, and a top_p that is no float."""
    assert body(max_tokens=3) == {
        "prompts": ["ab c"],
        "tokens_to_generate": 3,
        "logprobs": False,
        "temperature": 1.0,
        "top_k": 1,
    }
    warm = body(temperature=0.7)
    assert (warm["temperature"], warm["top_p"]) == (0.7, 1.0)
    assert body(temperature=0.7, top_k=9)["top_k"] == 9


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.5, "top_k": 3, "top_p": 0.5},
        {"seed": 1},
        {"n": 2},
        {"logprobs": 1},
        {"prompt_logprobs": 2},
        {"presence_penalty": 1.0},
    ],
)
def test_what_the_server_would_ignore_or_refuse_is_refused(parameters: dict[str, Any]):
    """Before anything is sent: it takes a random_seed and drops it."""
    with pytest.raises(UnsupportedError):
        body(**parameters)


def test_prompts_that_it_cannot_take():
    """Token ids, and nothing at all."""
    capabilities = MegatronEngine().capabilities(None)
    for prompt, error in (
        (TokenPrompt((1,)), UnsupportedError),
        (TextPrompt(""), ConfigurationError),
    ):
        with pytest.raises(error):
            megatron_text.encode(
                SampleRequest(prompt=prompt), model="m", capabilities=capabilities, stream=False
            )


def test_the_prompt_is_taken_off_the_text():
    """The tokens are counted by their texts."""
    response = read(max_tokens=4)
    (completion,) = response.completions
    assert (completion.text, completion.finish_reason) == (" de.\nf", "length")
    assert (response.prompt_tokens, response.completion_tokens) == (2, 4)
    assert read(max_tokens=9).completions[0].finish_reason == "stop"


def test_a_stop_string_cuts_the_answer_here():
    """The server knows none."""
    (completion,) = read(max_tokens=4, stop=("\n", "f")).completions
    assert (completion.text, completion.finish_reason) == (" de.", "stop")


def test_log_probabilities_of_the_answer_and_of_the_prompt():
    """One list has both; the prompt's first token has none."""
    response = read(max_tokens=4, logprobs=0, prompt_logprobs=0)
    made = response.completions[0].logprobs
    assert made is not None
    assert [(t.text, t.logprob, t.token_id) for t in made] == [
        (" de", -0.2, 3),
        (".", -0.3, 4),
        ("\n", -0.4, 5),
        ("f", -0.5, 6),
    ]
    assert response.prompt_logprobs is not None
    first, second = response.prompt_logprobs
    assert first is None
    assert second is not None
    assert (second.text, second.logprob, second.token_id) == (" c", -0.1, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"text": ["something else"]},
        {"text": []},
        {"logprobs": None},
        {"logprobs": [[-0.1]]},
        {"segments": None},
    ],
)
def test_replies_that_do_not_fit(changes: dict[str, Any]):
    """Are malformed, not misread."""
    with pytest.raises(MalformedResponseError):
        read(changes, logprobs=0)


def test_refusals_are_texts():
    """Whatever the status."""
    said = b'"top_p must be less than or equal to 1.0"\n'
    assert isinstance(megatron_text.reply_error(said), BadRequestError)
    long = megatron_text.error_reply(400, b'"sequence length 9000 exceeds 4096"')
    assert isinstance(long, ContextOverflowError)
    assert megatron_text.reply_error(json.dumps(REPLY).encode()) is None
