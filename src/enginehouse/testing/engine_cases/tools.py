"""Cases about native tool calls."""

from __future__ import annotations

import msgspec

from enginehouse.core.errors import UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import Capability
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.testing.engine_cases.base import CITY, Inapplicable, Subject, case

_TOOL = ToolDefinition(
    name="get_weather", description="The weather in a city now.", parameters=CITY
)
_QUESTION = ChatPrompt((Message("user", "What is the weather in Paris? Use the tool."),))


@case(Capability.CHAT, Capability.TOOLS)
async def tool_call(subject: Subject) -> None:
    """A required tool call comes back as a call, not in the text."""
    request = msgspec.structs.replace(
        subject.request(_QUESTION, max_tokens=256), tools=(_TOOL,), tool_choice="required"
    )
    try:
        response = await subject.sampler.sample(request)
    except UnsupportedError as error:
        if error.status is None:
            raise
        raise Inapplicable(f"the server was started without tools: {error.message}") from None
    completion = response.completions[0]
    if completion.finish_reason == "length":
        raise Inapplicable("the model's call was longer than 256 tokens")
    assert completion.tool_calls, f"the answer is not a call but the text {completion.text!r}"
    for call in completion.tool_calls:
        assert call.name == _TOOL.name, f"{call.name!r} was called instead of {_TOOL.name}"
        assert call.id, "the call has no id"
