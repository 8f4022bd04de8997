"""Tool calls as vLLM 0.32 treats them: refused without a parser, else parsed or left in the text.

The fake's model writes calls in the hermes format, so only the parsers of that format read them;
any other leaves its markup in the content.
"""

from __future__ import annotations

import json
import random
import re
import secrets
from argparse import Namespace
from typing import Any

import msgspec

from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.instances import instance

_READERS = ("hermes", "qwen3_json")
_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Function(msgspec.Struct):
    """A function that may be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool of a request."""

    function: Function
    type: str = "function"


class Named(msgspec.Struct):
    """A tool choice that names one."""

    function: Function
    type: str = "function"


def offered(
    tools: list[Tool] | None, choice: str | Named | None, arguments: Namespace
) -> list[Function]:
    """The functions that may be called. Raises ApiError where the server has no parser."""
    if not tools or choice == "none":
        return []
    if arguments.tool_call_parser is None or not arguments.enable_auto_tool_choice:
        if choice in ("auto", None):
            raise ApiError(
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser '
                "to be set"
            )
        what = f'function "{choice.function.name}"' if isinstance(choice, Named) else f'"{choice}"'
        raise ApiError(f"tool_choice={what} requires --tool-call-parser to be set")
    if isinstance(choice, Named):
        return [t.function for t in tools if t.function.name == choice.function.name]
    return [tool.function for tool in tools]


def written(functions: list[Function], rng: random.Random) -> str:
    """What the fake's model writes to call one of them."""
    function = rng.choice(functions)
    arguments = instance(function.parameters or {}, rng=rng)
    call = json.dumps({"name": function.name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def message(text: str, *, parser: str | None) -> dict[str, Any]:
    """The assistant's message, with the calls that `parser` finds in its text."""
    calls = _BLOCK.findall(text) if parser in _READERS else []
    found = [
        {
            "id": f"chatcmpl-tool-{secrets.token_hex(8)}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for call in map(json.loads, calls)
    ]
    content = text.partition("<tool_call>")[0] if found else text
    plain = {"role": "assistant", "content": content or None, "reasoning": None}
    return plain | {"tool_calls": found} if found else plain
