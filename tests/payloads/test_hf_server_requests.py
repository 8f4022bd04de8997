"""What the hf server reads in requests: nothing is ignored, and wrong values name their field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.messages import ChatPrompt, Message, TextPrompt, TokenPrompt
from enginehouse.core.sampler import Capabilities, Capability, SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.core.tool_calls import ToolCall
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.engines.hf.engine import HfEngine

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}


@pytest.fixture
def requests(hf_server):
    """The module that reads bodies."""
    return hf_server("requests")


@pytest.fixture
def refused(hf_server, requests):
    """The error for a chat request with these fields besides the messages."""

    def read(**fields: Any):
        with pytest.raises(hf_server("errors").ApiError) as caught:
            requests.read_chat({**CHAT, **fields})
        assert caught.value.status == 400
        return caught.value

    return read


def test_what_our_client_sends_is_read(requests):
    """Every sampling parameter arrives with the value that it had."""
    parameters = SamplingParameters(
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        max_tokens=33,
        n=3,
        seed=11,
        stop=("END", "\n\n"),
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logprobs=4,
        prompt_logprobs=0,
        ignore_eos=True,
    )
    capabilities = HfEngine().capabilities(None)
    request = SampleRequest(prompt=ChatPrompt((Message("user", "hi"),)), parameters=parameters)
    body = openai_chat.encode(request, model="m", capabilities=capabilities, stream=False)
    asked = requests.read_chat(json.loads(body))
    assert (asked.model, asked.n, asked.stream, asked.return_token_ids) == ("m", 3, False, True)
    for name in requests.Sampling.__dataclass_fields__:
        if hasattr(parameters, name):
            assert getattr(asked.sampling, name) == getattr(parameters, name), name


@pytest.mark.parametrize(
    ("prompt", "read"),
    [(TextPrompt("hi"), "hi"), (TokenPrompt((5, 6)), (5, 6))],
)
def test_prompts_of_completions(requests, prompt: Any, read: object):
    """Text stays text, token ids stay what they are; streams ask for their usage."""
    capabilities = Capabilities(supports=frozenset(Capability))
    request = SampleRequest(prompt=prompt)
    body = openai_completions.encode(request, model="m", capabilities=capabilities, stream=True)
    asked = requests.read_completion(json.loads(body))
    assert asked.prompts == (read,)
    assert asked.stream
    assert requests.read_completion({"prompt": ["a", "b"]}).prompts == ("a", "b")
    assert requests.read_completion({"prompt": [[1], [2, 3]]}).prompts == ((1,), (2, 3))


def test_defaults_are_openais(requests):
    """Temperature 1; completions 16 tokens, chats what fits; nothing of generation_config.json."""
    chat, text = requests.read_chat(CHAT), requests.read_completion(TEXT)
    assert chat.sampling == requests.Sampling()
    assert (chat.sampling.temperature, chat.sampling.max_tokens) == (1.0, None)
    assert text.sampling.max_tokens == 16
    assert requests.read_chat({**CHAT, "max_completion_tokens": 9}).sampling.max_tokens == 9
    assert requests.read_chat({**CHAT, "top_k": -1}).sampling.top_k == 0
    assert requests.read_chat({**CHAT, "temperature": 1e-7}).sampling.temperature == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": {}}, "guided_json"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e39}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_k": 10**20}, "top_k"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stop": [1]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream": True, "logprobs": True}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs"),
    ],
)
def test_wrong_fields_are_refused_by_name(refused, fields: dict[str, Any], param: str):
    """400, with the field at fault; an unknown field is wrong, too."""
    assert refused(**fields).param == param


def test_fields_without_effect_are_taken(requests):
    """They change nothing in the text, so that they may be there; null is as good as absent."""
    without = {"user": "me", "tools": [], "tool_choice": "none", "seed": None}
    assert requests.read_chat(CHAT | without) == requests.read_chat(CHAT)


@pytest.mark.parametrize(
    ("structured", "kind", "text"),
    [
        (StructuredOutput(json_schema={"type": "object"}), "json", '{"type": "object"}'),
        (StructuredOutput(choice=("a", 'b"')), "choice", '["a", "b\\""]'),
        (StructuredOutput(regex="a+"), "regex", "a+"),
        (StructuredOutput(grammar='root ::= "a"'), "grammar", 'root ::= "a"'),
    ],
)
def test_constraints(requests, structured: StructuredOutput, kind: str, text: str):
    """Each of our client's four kinds is read as itself."""
    request = SampleRequest(
        prompt=TextPrompt("hi"), parameters=SamplingParameters(structured=structured)
    )
    capabilities = HfEngine().capabilities(None)
    body = openai_completions.encode(request, model="m", capabilities=capabilities, stream=False)
    found = requests.read_completion(json.loads(body)).constraint
    assert (found.kind, found.text) == (kind, text)


def test_tool_calls_of_the_past_have_arguments_as_objects(requests):
    """Chat templates print them so; a broken call is refused."""
    call = ToolCall(id="1", name="f", arguments='{"a": 1}')
    messages = (Message("assistant", "", tool_calls=(call,)), Message("tool", "2", (), "1"))
    request = SampleRequest(prompt=ChatPrompt(messages))
    capabilities = HfEngine().capabilities(None)
    body = openai_chat.encode(request, model="m", capabilities=capabilities, stream=False)
    first, second = requests.read_chat(json.loads(body)).messages
    assert first["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert first["content"] == ""
    assert second["tool_call_id"] == "1"
