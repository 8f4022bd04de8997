"""POST /v1/chat/completions: conversations, for which the engine applies the chat template."""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
)
from enginehouse.core.tool_calls import ToolCall
from enginehouse.dialects.base import require
from enginehouse.dialects.openai_errors import stream_error
from enginehouse.dialects.openai_replies import (
    Content,
    Counts,
    PromptEntries,
    check_choices,
    decode_prompt_logprobs,
    decode_reply,
    is_end,
    text_of,
    token_ids_or_none,
    usage,
)
from enginehouse.dialects.openai_requests import request_body

__all__ = ["decode", "decode_chunk", "encode", "is_end", "path"]

path = "/v1/chat/completions"


class _Candidate(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_Candidate] | None = None
    id: int | None = None  # llama-server's


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: Content = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    # where SGLang has what vLLM has in token_ids, and beside the choices
    response_token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    model: str
    usage: Counts | None = None
    id: str = ""
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptEntries | None = None


class _Piece(msgspec.Struct):
    content: Content = None
    refusal: str | None = None


class _StreamChoice(msgspec.Struct):
    delta: _Piece
    index: int = 0
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_StreamChoice] = []
    usage: Counts | None = None


_reply = msgspec.json.Decoder(_Reply)
_chunk = msgspec.json.Decoder(_Chunk)


def encode(
    request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
) -> bytes:
    """See Dialect.encode; the prompt is a ChatPrompt."""
    assert isinstance(request.prompt, ChatPrompt)
    require(capabilities, Capability.CHAT, "chat prompts")
    top = request.parameters.logprobs
    return request_body(
        request,
        model=model,
        prompt={"messages": encode_messages(request.prompt.messages)},
        logprobs={"logprobs": False} if top is None else {"logprobs": True, "top_logprobs": top},
        capabilities=capabilities,
        stream=stream,
    )


def encode_messages(messages: tuple[Message, ...]) -> Any:
    """The conversation as the API writes it."""
    if any(message.tool_calls for message in messages):
        return [_message(message) for message in messages]
    return messages


def _message(message: Message) -> Any:
    if not message.tool_calls:
        return message
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": message.content or None, "tool_calls": calls}


def decode(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """See Dialect.decode."""
    reply = decode_reply(_reply, body)
    if len(reply.choices) > 1:
        reply.choices.sort(key=lambda choice: choice.index)
    completions = tuple([_completion(choice) for choice in reply.choices])
    check_choices(completions, request, body)
    counted = usage(reply.usage)
    return SampleResponse(
        completions=completions,
        model=reply.model,
        request_id=reply.id,
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        timing=timing,
        prompt_token_ids=token_ids_or_none(
            reply.prompt_token_ids or reply.choices[0].prompt_token_ids
        ),
        prompt_logprobs=decode_prompt_logprobs(
            reply.prompt_logprobs, token_ids=reply.prompt_token_ids, request=request, body=body
        ),
    )


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk; reasoning is left out, as it is from Completion.text."""
    if error := stream_error(data):
        raise error
    chunk = decode_reply(_chunk, data)
    if chunk.usage is not None and not chunk.choices:
        return (Delta(text="", usage=usage(chunk.usage)),)
    return tuple(
        Delta(
            text=text_of(choice.delta.content) or choice.delta.refusal or "",
            index=choice.index,
            token_ids=token_ids_or_none(choice.token_ids),
            finish_reason=choice.finish_reason,
        )
        for choice in chunk.choices
    )


def _completion(choice: _Choice) -> Completion:
    message = choice.message
    ids = choice.response_token_ids if choice.token_ids is None else choice.token_ids
    return Completion(
        text=text_of(message.content) or message.refusal or "",
        finish_reason="refusal" if message.refusal else choice.finish_reason,
        token_ids=token_ids_or_none(ids),
        logprobs=None if choice.logprobs is None else _logprobs(choice.logprobs, ids),
        reasoning=message.reasoning or message.reasoning_content,
        tool_calls=tuple([_call(at, call) for at, call in enumerate(message.tool_calls or ())]),
    )


def _call(place: int, call: _ToolCall) -> ToolCall:
    # some servers leave the id out; a reply in the conversation needs one
    function = call.function
    return ToolCall(
        id=call.id or f"call_{place}", name=function.name, arguments=function.arguments or "{}"
    )


def _logprobs(wire: _Logprobs, ids: list[int] | None) -> tuple[TokenLogprob, ...] | None:
    if wire.content is None:
        return None
    aligned = ids if ids is not None and len(ids) == len(wire.content) else None
    return tuple(
        TokenLogprob(
            logprob=token.logprob,
            text=token.token,
            token_id=token.id if aligned is None else aligned[place],
            top=tuple(
                TokenLogprob(logprob=candidate.logprob, text=candidate.token)
                for candidate in token.top_logprobs or ()
            ),
        )
        for place, token in enumerate(wire.content)
    )
