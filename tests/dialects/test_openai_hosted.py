"""Chat completions of the hosted APIs: nothing is sent that need not be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import ConfigurationError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import SampleRequest, Timing
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.openai_hosted import OPENAI_CHAT, OPENROUTER_CHAT, HostedChat
from enginehouse.engines.openai.engine import OpenAIEngine
from enginehouse.engines.openrouter.engine import OpenRouterEngine

HELLO = ChatPrompt((Message("user", "Hello!"),))
CAPABILITIES = {
    id(OPENAI_CHAT): OpenAIEngine().capabilities(None),
    id(OPENROUTER_CHAT): OpenRouterEngine().capabilities(None),
}


def body(dialect: HostedChat, **parameters: Any) -> Any:
    """What is sent."""
    request = SampleRequest(prompt=HELLO, parameters=SamplingParameters(**parameters))
    capabilities = CAPABILITIES[id(dialect)]
    return json.loads(dialect.encode(request, model="m", capabilities=capabilities, stream=False))


def test_the_api_s_own_defaults_are_not_sent():
    """So that a model which takes no sampling parameters can be asked at temperature 1."""
    assert body(OPENAI_CHAT, temperature=1.0) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_completion_tokens": 512,
    }
    assert body(OPENAI_CHAT)["temperature"] == 0


def test_openrouter_is_told_not_to_drop_a_field():
    """Unless the user gives another preference; its own fields are sent as they are."""
    sent = body(OPENROUTER_CHAT, top_k=5, min_p=0.1, repetition_penalty=1.1)
    assert sent["provider"] == {"require_parameters": True}
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"]) == (5, 0.1, 1.1)
    assert sent["max_tokens"] == 512
    own = body(OPENROUTER_CHAT, extra={"provider": {"order": ["acme"]}})
    assert own["provider"] == {"order": ["acme"]}


def test_more_candidates_than_the_api_gives_are_refused():
    """Before anything is sent."""
    assert body(OPENAI_CHAT, logprobs=20)["top_logprobs"] == 20
    with pytest.raises(UnsupportedError, match="21 candidates"):
        body(OPENAI_CHAT, logprobs=21)


def test_a_field_with_a_place_of_its_own_is_no_extra():
    """As with every dialect."""
    with pytest.raises(ConfigurationError, match="max_completion_tokens"):
        body(OPENAI_CHAT, extra={"max_completion_tokens": 3})


def test_a_refusal_is_read_as_one():
    """Its words are the answer, and its reason says what it is."""
    reply = {
        "id": "x",
        "model": "m",
        "choices": [
            {"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    response = OPENAI_CHAT.decode(
        json.dumps(reply).encode(),
        request=SampleRequest(prompt=HELLO),
        timing=Timing(started=0, elapsed=0),
    )
    (completion,) = response.completions
    assert (completion.text, completion.finish_reason) == ("I cannot.", "refusal")
