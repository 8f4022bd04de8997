"""Anthropic's messages: turns, tools, reasons, and the events of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginehouse.core.errors import RateLimitedError, UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Delta, SampleRequest, SampleResponse, Timing, Usage
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.core.tool_calls import ToolCall, ToolDefinition
from enginehouse.dialects import anthropic_messages
from enginehouse.engines.anthropic.engine import AnthropicEngine

HELLO = ChatPrompt((Message("user", "Hello!"),))


def body(request: SampleRequest, *, stream: bool = False) -> Any:
    """What is sent."""
    capabilities = AnthropicEngine().capabilities(None)
    encode = anthropic_messages.encode
    return json.loads(encode(request, model="m", capabilities=capabilities, stream=stream))


def asked(**parameters: Any) -> Any:
    """What is sent for these parameters."""
    return body(SampleRequest(prompt=HELLO, parameters=SamplingParameters(**parameters)))


def test_the_least_that_is_sent():
    """At temperature 1, which is the API's own."""
    assert asked(temperature=1.0, max_tokens=7) == {
        "model": "m",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
    }


def test_sampling_parameters_by_their_names_here():
    """Stop strings are stop_sequences."""
    sent = asked(temperature=0.5, top_p=0.9, top_k=4, stop=("x",))
    chosen = ("temperature", "top_p", "top_k", "stop_sequences")
    assert [sent[name] for name in chosen] == [0.5, 0.9, 4, ["x"]]


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.5},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"seed": 3},
        {"n": 2},
        {"min_p": 0.1},
        {"logprobs": 0},
        {"structured": StructuredOutput(choice=("a", "b"))},
    ],
)
def test_what_the_api_does_not_have_is_refused(parameters: dict[str, Any]):
    """Before anything is sent."""
    with pytest.raises(UnsupportedError):
        asked(**parameters)


def test_system_messages_stand_apart_and_turns_of_one_role_are_one():
    """As the API wants them; an empty text is left out, which it refuses."""
    turns = (
        Message("system", "A"),
        Message("user", "b"),
        Message("user", "c"),
        Message("system", "D"),
        Message("assistant", ""),
        Message("assistant", "e"),
    )
    sent = body(SampleRequest(prompt=ChatPrompt(turns)))
    assert sent["system"] == "A\n\nD"
    texts = [(m["role"], [b["text"] for b in m["content"]]) for m in sent["messages"]]
    assert texts == [("user", ["b", "c"]), ("assistant", ["e"])]


def test_results_of_one_turn_s_calls_are_one_turn():
    """With what the user says next behind them; a call that was no JSON is sent as an object."""
    calls = (
        ToolCall(id="1", name="f", arguments='{"x": 1}'),
        ToolCall(id="2", name="f", arguments="{x"),
    )
    turns = (
        Message("user", "go"),
        Message("assistant", "Well.", tool_calls=calls),
        Message("tool", "one", tool_call_id="1"),
        Message("tool", "two", tool_call_id="2"),
        Message("user", "and?"),
    )
    _, assistant, user = body(SampleRequest(prompt=ChatPrompt(turns)))["messages"]
    assert [block["type"] for block in assistant["content"]] == ["text", "tool_use", "tool_use"]
    assert [b["input"] for b in assistant["content"][1:]] == [{"x": 1}, {"arguments": "{x"}]
    kinds = [block["type"] for block in user["content"]]
    assert kinds == ["tool_result", "tool_result", "text"]
    assert [b["tool_use_id"] for b in user["content"][:2]] == ["1", "2"]


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ("none", {"type": "none"}),
        ("f", {"type": "tool", "name": "f"}),
    ],
)
def test_choices_of_tools(choice: str, sent: dict[str, str]):
    """In the vendor's words; a schema without a type is an object's."""
    tool = ToolDefinition(name="f", description="F.", parameters={"properties": {}})
    made = body(SampleRequest(prompt=HELLO, tools=(tool,), tool_choice=choice))
    assert made["tool_choice"] == sent
    schema = {"type": "object", "properties": {}}
    assert made["tools"] == [{"name": "f", "description": "F.", "input_schema": schema}]


def reply(**fields: Any) -> SampleResponse:
    """What is read in a reply."""
    whole = {
        "id": "msg_1",
        "model": "m",
        "content": [{"type": "text", "text": "Hi."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    return anthropic_messages.decode(
        json.dumps(whole | fields).encode(),
        request=SampleRequest(prompt=HELLO),
        timing=Timing(started=0, elapsed=0),
    )


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "refusal"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_reasons_in_our_words(given: str, ours: str):
    """Those that we have no word for stay."""
    assert reply(stop_reason=given).completions[0].finish_reason == ours


def test_tokens_that_a_cache_held_are_prompt_tokens():
    """input_tokens counts the others only."""
    usage = {
        "input_tokens": 3,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": None,
        "output_tokens": 2,
    }
    response = reply(usage=usage)
    assert (response.prompt_tokens, response.completion_tokens) == (103, 2)


def test_thinking_is_apart_from_the_answer():
    """And blocks that we do not know are passed over."""
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "redacted_thinking", "data": "y"},
        {"type": "text", "text": "Hi"},
        {"type": "text", "text": " there."},
    ]
    (completion,) = reply(content=content).completions
    assert (completion.text, completion.reasoning) == ("Hi there.", "Hm.")


@pytest.mark.parametrize(
    ("event", "deltas"),
    [
        ({"type": "ping"}, ()),
        ({"type": "something_new", "delta": {"type": "x"}}, ()),
        (
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": "a"},
            },
            (Delta(text="a"),),
        ),
        (
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "thinking_delta", "thinking": "a"},
            },
            (),
        ),
        (
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": '{"type": "message_stop"}'},
            },
            (),
        ),
        (
            {
                "type": "message_delta",
                "delta": {"stop_reason": "max_tokens"},
                "usage": {"output_tokens": 9},
            },
            (Delta(text="", finish_reason="length"),),
        ),
        (
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {"output_tokens": 9, "input_tokens": 4},
            },
            (Delta(text="", finish_reason="stop"), Delta(text="", usage=Usage(4, 9))),
        ),
    ],
)
def test_events_of_a_stream(event: dict[str, Any], deltas: tuple[Delta, ...]):
    """None of these is its end."""
    data = json.dumps(event).encode()
    assert anthropic_messages.decode_chunk(data) == deltas
    assert not anthropic_messages.is_end(data)


def test_the_end_and_an_error():
    """message_stop is the one, an error event the other."""
    assert anthropic_messages.is_end(b'{"type": "message_stop"}')
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(RateLimitedError, match="529"):
        anthropic_messages.decode_chunk(json.dumps(error).encode())
