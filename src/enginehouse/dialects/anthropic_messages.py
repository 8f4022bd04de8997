"""POST /v1/messages: Anthropic's API, version 2023-06-01.

Protocol: https://docs.anthropic.com/en/api/messages. Version 2026-10-21 accepts no temperature
at all; under this one, models up to Claude 4.6 accept it, and later ones refuse it with an error
that says so. As with every hosted API, only what differs from its defaults is sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import UnsupportedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    Usage,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.core.tool_calls import ToolCall, ToolDefinition
from enginehouse.dialects.base import require
from enginehouse.dialects.hosted_errors import HostedErrors
from enginehouse.dialects.openai_replies import decode_reply
from enginehouse.dialects.openai_requests import (
    add_extra,
    chosen_fields,
    constraint_of,
    require_logprobs,
    require_streamable,
)

path = "/v1/messages"
errors = HostedErrors(
    vendor="Anthropic",
    key_variable="ANTHROPIC_API_KEY",
    keys_page="https://console.anthropic.com/settings/keys",
    billing_page="https://console.anthropic.com/settings/billing",
)
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_encode = msgspec.json.Encoder().encode


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int = 0
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        """All tokens of the prompt: input_tokens leaves out those read from a cache."""
        cached = (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)
        return (self.input_tokens or 0) + cached


class _Reply(msgspec.Struct):
    id: str
    model: str
    content: list[_Block]
    usage: _Counts
    stop_reason: str | None = None


class _EventDelta(msgspec.Struct):
    type: str = ""
    text: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    content_block: _Block | None = None
    delta: _EventDelta | None = None
    usage: _Counts | None = None


_reply = msgspec.json.Decoder(_Reply)
_event = msgspec.json.Decoder(_Event)


def encode(
    request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
) -> bytes:
    """See Dialect.encode; the prompt is a ChatPrompt."""
    assert isinstance(request.prompt, ChatPrompt)
    require(capabilities, Capability.CHAT, "chat prompts")
    messages = request.prompt.messages
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.parameters.max_tokens,
        "messages": _turns(messages),
    }
    if system := "\n\n".join(m.content for m in messages if m.role == "system" and m.content):
        body["system"] = system
    if stream:
        require_streamable(request, capabilities)
        body["stream"] = True
    body |= _sampling(request.parameters, capabilities)
    if request.tools:
        require(capabilities, Capability.TOOLS, "native tool calls")
        body["tools"] = [_tool(tool) for tool in request.tools]
        kind = _CHOICES.get(request.tool_choice)
        body["tool_choice"] = (
            {"type": kind} if kind else {"type": "tool", "name": request.tool_choice}
        )
    add_extra(body, request.parameters.extra, capabilities)
    return _encode(body)


def _sampling(parameters: SamplingParameters, capabilities: Capabilities) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    require_logprobs(parameters, capabilities)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(parameters, name):
            raise UnsupportedError(
                f"this engine does not support {name}",
                why="its API has no such field",
                fix="leave it at 0",
            )
    if parameters.temperature > 1:
        raise UnsupportedError(
            f"this engine does not accept temperature {parameters.temperature:g}",
            why="its API allows 0 to 1; nothing was sent",
            fix="use a temperature of at most 1",
        )
    if parameters.temperature != 1:
        fields["temperature"] = parameters.temperature
    if parameters.top_p != 1:
        fields["top_p"] = parameters.top_p
    fields |= chosen_fields(parameters, capabilities)
    if parameters.stop:
        fields["stop_sequences"] = parameters.stop
    if parameters.structured is not None:
        kind, value = constraint_of(parameters.structured, capabilities)
        fields["output_config"] = {"format": {"type": kind, "schema": value}}
    return fields


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    schema = {"type": "object"} | tool.parameters
    return {"name": tool.name, "description": tool.description, "input_schema": schema}


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The turns of user and assistant, with consecutive messages of one role merged.

    The API expects all results of one turn's calls in a single user turn.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        blocks = [] if message.role == "system" else _blocks(message)
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        return [result | {"content": message.content}]
    # the API refuses empty texts
    blocks: list[dict[str, Any]] = []
    if message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        use = {"type": "tool_use", "id": call.id, "name": call.name}
        blocks.append(use | {"input": _input(call.arguments)})
    return blocks


def _input(arguments: str) -> Any:
    """The arguments as an object, which the API requires even for a malformed call."""
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        decoded = None
    return decoded if isinstance(decoded, dict) else {"arguments": arguments}


def decode(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """See Dialect.decode."""
    del request  # there is always exactly one completion, without log-probabilities
    reply = decode_reply(_reply, body)
    blocks = reply.content
    completion = Completion(
        text="".join(block.text for block in blocks if block.type == "text"),
        finish_reason=_reason(reply.stop_reason),
        reasoning="".join(b.thinking for b in blocks if b.type == "thinking") or None,
        tool_calls=tuple(
            ToolCall(id=block.id, name=block.name, arguments=bytes(block.input).decode())
            for block in blocks
            if block.type == "tool_use"
        ),
    )
    return SampleResponse(
        completions=(completion,),
        model=reply.model,
        request_id=reply.id,
        prompt_tokens=reply.usage.prompt,
        completion_tokens=reply.usage.output_tokens,
        timing=timing,
    )


def _reason(reason: str | None) -> str | None:
    """The reason in OpenAI's terms, which the rest of the program uses; "refusal" stays."""
    return None if reason is None else _REASONS.get(reason, reason)


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk; reasoning is left out, as it is from Completion.text."""
    event = decode_reply(_event, data)
    if event.type == "error" and (error := errors.in_reply(data)):
        raise error
    delta = event.delta
    if event.type == "content_block_delta" and delta is not None:
        return (Delta(text=delta.text),) if delta.type == "text_delta" else ()
    if event.type == "message_delta" and delta is not None:
        last = Delta(text="", finish_reason=_reason(delta.stop_reason))
        counts = event.usage
        if counts is None or counts.input_tokens is None:
            return (last,)
        usage = Usage(counts.prompt, counts.output_tokens)
        return (last, Delta(text="", usage=usage))
    return ()  # ping, the frames of blocks, and what a later version adds


def is_end(data: bytes) -> bool:
    """See Dialect.is_end."""
    return b'"message_stop"' in data and decode_reply(_event, data).type == "message_stop"
