"""Conversations for models that read about their tools in the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from enginehouse.core.messages import Message
from enginehouse.core.tool_calls import ToolCall
from enginehouse.tools.specification import ToolSpec

_CALL: Final = '{"name": …, "arguments": {…}}'


def constrained_instructions(tools: Iterable[ToolSpec], *, optional: bool, max_calls: int) -> str:
    """The system message for decoding constrained to `answer_schema`."""
    shape = _CALL if max_calls == 1 else f'{{"calls": [{_CALL}]}}'
    otherwise = ', or {"name": "none", "answer": …} if no function is needed' if optional else ""
    return f"{_documented(tools)}\nAnswer with JSON only: {shape}{otherwise}"


def prompted_instructions(tools: Iterable[ToolSpec], *, optional: bool, max_calls: int) -> str:
    """The system message for unconstrained answers."""
    shape = f"<tool_call>{_CALL}</tool_call>"
    several = "" if max_calls == 1 else f" Up to {max_calls} such lines make several calls."
    must = (
        "If no function is needed, answer in words. To call one, answer with nothing but one line:"
        if optional
        else "Call one now: answer with nothing but one line:"
    )
    return f"{_documented(tools)}\n{must}\n{shape}{several}"


def repair(problem: str) -> Message:
    """The turn that asks for a call again."""
    return Message(
        "user",
        f"That was not a valid function call: {problem}\n"
        f"Answer again, with nothing but one line: <tool_call>{_CALL}</tool_call>",
    )


def with_system(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with `text` at the end of its system message."""
    if messages and messages[0].role == "system":
        head = Message("system", f"{messages[0].content}\n\n{text}")
        return (head, *messages[1:])
    return (Message("system", text), *messages)


def flattened(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The conversation with calls and results as text, for templates without tool roles."""
    names: dict[str, str] = {}
    flat: list[Message] = []
    for message in messages:
        plain = message
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            calls = "\n".join(_written(call) for call in message.tool_calls)
            plain = Message("assistant", f"{message.content}\n{calls}".strip())
        elif message.role == "tool":
            name = names.get(message.tool_call_id or "", "the function")
            plain = Message("user", f"Result of {name}: {message.content}")
        if flat and message.role == "tool" and flat[-1].role == "user":
            plain = Message("user", f"{flat.pop().content}\n{plain.content}")
        flat.append(plain)
    return tuple(flat)


def _documented(tools: Iterable[ToolSpec]) -> str:
    lines = [msgspec.json.encode(tool.definition()).decode() for tool in tools]
    return "\n".join(["You may call these functions:", *lines])


def _written(call: ToolCall) -> str:
    return f'<tool_call>{{"name": "{call.name}", "arguments": {call.arguments}}}</tool_call>'
