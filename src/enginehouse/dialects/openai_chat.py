"""POST /v1/chat/completions: conversations, to which the engine applies the chat template."""

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
)
from enginehouse.core.tool_calls import ToolCall
from enginehouse.dialects.base import require
from enginehouse.dialects.openai_errors import stream_error
from enginehouse.dialects.openai_replies import (
    Choice,
    Content,
    Counts,
    PromptEntries,
    TokenLogprobs,
    decode_deltas,
    decode_reply,
    in_order,
    is_end,
    sample_response,
    text_of,
    token_ids_or_none,
)
from enginehouse.dialects.openai_requests import request_body

__all__ = ["decode", "decode_chunk", "encode", "is_end", "path"]

path = "/v1/chat/completions"


class _Function(msgspec.Struct):
    name: str
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Piece(msgspec.Struct):
    content: Content = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        return text_of(self.content) or self.refusal or ""


class _Message(_Piece):
    tool_calls: list[_ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(Choice, kw_only=True):
    message: _Message
    logprobs: TokenLogprobs | None = None
    # SGLang's names for token_ids, and for the prompt_token_ids that vLLM puts beside the choices
    response_token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    model: str
    usage: Counts | None = None
    id: str = ""
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptEntries | None = None


class _StreamChoice(Choice, kw_only=True):
    delta: _Piece


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
    """The conversation in the API's form."""
    if not any(message.tool_calls for message in messages):
        return messages
    return [
        {
            "role": message.role,
            "content": message.content or None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ],
        }
        if message.tool_calls
        else message
        for message in messages
    ]


def decode(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """See Dialect.decode."""
    reply = decode_reply(_reply, body)
    choices = in_order(reply.choices, request, body)
    return sample_response(
        reply,
        tuple([_completion(choice) for choice in choices]),
        request=request,
        body=body,
        timing=timing,
        prompt_token_ids=reply.prompt_token_ids or choices[0].prompt_token_ids,
        prompt_logprobs=reply.prompt_logprobs,
    )


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk; reasoning is left out, as it is from Completion.text."""
    if error := stream_error(data):
        raise error
    chunk = decode_reply(_chunk, data)
    return decode_deltas(chunk.choices, chunk.usage, text=lambda choice: choice.delta.text)


def _completion(choice: _Choice) -> Completion:
    message = choice.message
    ids = choice.response_token_ids if choice.token_ids is None else choice.token_ids
    return Completion(
        text=message.text,
        finish_reason="refusal" if message.refusal else choice.finish_reason,
        token_ids=token_ids_or_none(ids),
        logprobs=None if choice.logprobs is None else choice.logprobs.decoded(ids),
        reasoning=message.reasoning or message.reasoning_content,
        tool_calls=tuple(
            [
                ToolCall(
                    id=call.id or f"call_{place}",  # some servers send none, but a reply needs one
                    name=call.function.name,
                    arguments=call.function.arguments or "{}",
                )
                for place, call in enumerate(message.tool_calls or ())
            ]
        ),
    )
