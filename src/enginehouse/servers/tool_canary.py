"""One tool call when a server is ready, to see whether its parser extracts calls from text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.core.errors import WireError
from enginehouse.diagnosis import Diagnosis, FailureKind
from enginehouse.servers.sessions import below, open_session
from enginehouse.tools.markup import leftover_markup

_PATH = "/v1/chat/completions"
_PATIENCE = 60.0  # seconds; the check only informs
_TOOL = {
    "name": "get_weather",
    "description": "The weather in a city now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Reply(msgspec.Struct):
    choices: list[_Choice]


def tool_parser(command: Sequence[str]) -> str | None:
    """The tool parser that a server was started with; None without one."""
    flag = "--tool-call-parser"
    for at, word in enumerate(command):
        if word == flag and at + 1 < len(command):
            return command[at + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


async def check_tool_parser(
    base_url: str, *, parser: str, model: str, api_key: str | None
) -> Diagnosis | None:
    """Ask for one call. Returns what is wrong with the parser, None if no problem was seen.

    A model that answers in words, or a server that does not answer in time, shows no problem.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the weather in Paris? Use the tool."}],
        "tools": [{"type": "function", "function": _TOOL}],
        "tool_choice": "auto",
        "temperature": 0.0,
        "max_tokens": 128,
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with (
            asyncio.timeout(_PATIENCE),
            open_session(base_url, headers=headers) as session,
            session.post(below(_PATH), json=body) as reply,
        ):
            status, content = reply.status, await read_body(reply, limit=MAX_PAGE_BYTES)
    except (aiohttp.ClientError, TimeoutError, WireError):
        return None
    if status != 200:
        said = content.decode(errors="replace").strip()[:300]
        about_tools = "tool" in said.lower()  # not a full context, a limit, a refused key
        cause = f"a request with a tool was answered with {status} by the tool parser {parser!r}"
        return _diagnosis(said, cause) if about_tools else None
    try:
        message = msgspec.json.decode(content, type=_Reply).choices[0].message
    except (msgspec.MsgspecError, IndexError, RecursionError):
        return None
    text = message.content or ""
    if message.tool_calls or leftover_markup(text) is None:
        return None
    return _diagnosis(text[:300], f"the tool parser {parser!r} leaves calls as markup in the text")


def _diagnosis(evidence: str, cause: str) -> Diagnosis:
    return Diagnosis(
        kind=FailureKind.TOOL_PARSER,
        evidence=evidence,
        cause=cause,
        fix="name the model family's own parser in extra_args (--tool-call-parser NAME), or none: "
        "constrained decoding then yields the calls",
    )
