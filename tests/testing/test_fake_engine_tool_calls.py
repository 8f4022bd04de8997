"""The fake engine's tool calls: refused, parsed and left over as vLLM's are."""

from __future__ import annotations

import json

import aiohttp
import pytest

from enginehouse.testing.fake_engine import running_fake_engine

FUNCTION = {
    "name": "move",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "wait"}},
]
NAMED = {"type": "function", "function": {"name": "move"}}


async def _asked(*flags: str, answers=None, **fields: object):
    body = {"messages": [{"role": "user", "content": "Go."}], "temperature": 0, "tools": TOOLS}
    async with (
        running_fake_engine(*flags, answers=answers) as engine,
        aiohttp.ClientSession() as session,
        session.post(f"{engine.url}/v1/chat/completions", json=body | fields) as reply,
    ):
        return reply.status, await reply.json()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("auto", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser'),
        ("required", 'tool_choice="required" requires --tool-call-parser to be set'),
        (NAMED, 'tool_choice=function "move" requires --tool-call-parser to be set'),
    ],
)
async def test_without_a_parser_tools_are_refused(choice, words):
    """In vLLM's words, which the client knows; «none» asks for no parser."""
    status, body = await _asked(tool_choice=choice)
    assert status == 400
    assert words in body["error"]["message"]
    status, body = await _asked(tool_choice="none")
    assert status == 200
    assert body["choices"][0]["message"]["content"]


@pytest.mark.slow
async def test_the_right_parser_takes_calls_out_of_the_text():
    """An instance of the schema, an id, the finish reason, and no content."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    status, body = await _asked(*flags, tool_choice=NAMED)
    assert status == 200
    (choice,) = body["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    (call,) = choice["message"]["tool_calls"]
    assert call["id"]
    assert call["function"]["name"] == "move"
    assert json.loads(call["function"]["arguments"]) == {"x": 0}
    _, words = await _asked(*flags, answers={"Go": "I would."})
    assert words["choices"][0]["message"]["content"] == "I would."


async def test_a_wrong_parser_leaves_the_markup_in_the_text():
    """As vLLM's do (#17161)."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "mistral")
    _, body = await _asked(*flags, tool_choice="required")
    message = body["choices"][0]["message"]
    assert "<tool_call>" in message["content"]
    assert not message.get("tool_calls")
