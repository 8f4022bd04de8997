"""POST /v1/completions: texts and token ids to continue, without a chat template."""

from __future__ import annotations

import msgspec

from enginehouse.core.errors import UnsupportedError
from enginehouse.core.messages import TextPrompt, TokenPrompt
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
from enginehouse.dialects.base import require
from enginehouse.dialects.openai_errors import stream_error
from enginehouse.dialects.openai_replies import (
    Counts,
    PromptEntries,
    check_choices,
    decode_prompt_logprobs,
    decode_reply,
    is_end,
    malformed,
    token_ids_or_none,
    usage,
)
from enginehouse.dialects.openai_requests import request_body

__all__ = ["decode", "decode_chunk", "encode", "is_end", "path"]

path = "/v1/completions"


class _Logprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptEntries | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    model: str
    usage: Counts | None = None
    id: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Counts | None = None


_reply = msgspec.json.Decoder(_Reply)
_chunk = msgspec.json.Decoder(_Chunk)


def encode(
    request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
) -> bytes:
    """See Dialect.encode; the prompt is a TextPrompt or a TokenPrompt."""
    if request.tools:
        raise UnsupportedError(
            "tools need a conversation", fix="make the prompt a ChatPrompt of its messages"
        )
    prompt: str | tuple[int, ...]
    if isinstance(request.prompt, TextPrompt):
        require(capabilities, Capability.TEXT, "text prompts")
        prompt = request.prompt.text
    else:
        assert isinstance(request.prompt, TokenPrompt)
        require(capabilities, Capability.TOKENS, "token prompts")
        prompt = request.prompt.token_ids
    return request_body(
        request,
        model=model,
        prompt={"prompt": prompt},
        logprobs={"logprobs": request.parameters.logprobs},
        capabilities=capabilities,
        stream=stream,
    )


def decode(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """See Dialect.decode."""
    reply = decode_reply(_reply, body)
    if len(reply.choices) > 1:
        reply.choices.sort(key=lambda choice: choice.index)
    completions = tuple([_completion(choice, request, body) for choice in reply.choices])
    check_choices(completions, request, body)
    first = reply.choices[0]
    counted = usage(reply.usage)
    return SampleResponse(
        completions=completions,
        model=reply.model,
        request_id=reply.id,
        prompt_tokens=counted.prompt_tokens,
        completion_tokens=counted.completion_tokens,
        timing=timing,
        prompt_token_ids=token_ids_or_none(first.prompt_token_ids),
        prompt_logprobs=decode_prompt_logprobs(
            first.prompt_logprobs, token_ids=first.prompt_token_ids, request=request, body=body
        ),
    )


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk."""
    if error := stream_error(data):
        raise error
    chunk = decode_reply(_chunk, data)
    if chunk.usage is not None and not chunk.choices:
        return (Delta(text="", usage=usage(chunk.usage)),)
    return tuple(
        Delta(
            text=choice.text,
            index=choice.index,
            token_ids=token_ids_or_none(choice.token_ids),
            finish_reason=choice.finish_reason,
        )
        for choice in chunk.choices
    )


def _completion(choice: _Choice, request: SampleRequest, body: bytes) -> Completion:
    top = request.parameters.logprobs
    logprobs = None
    if choice.logprobs is not None and top is not None:
        logprobs = _logprobs(choice.logprobs, ids=choice.token_ids, top=top, body=body)
    return Completion(
        text=choice.text,
        finish_reason=choice.finish_reason,
        token_ids=token_ids_or_none(choice.token_ids),
        logprobs=logprobs,
    )


def _logprobs(
    wire: _Logprobs, *, ids: list[int] | None, top: int, body: bytes
) -> tuple[TokenLogprob, ...]:
    count = len(wire.tokens)
    candidates = wire.top_logprobs or [None] * count
    if len(wire.token_logprobs) != count or len(candidates) != count:
        raise malformed("logprobs has lists of different lengths", body)
    aligned = ids if ids is not None and len(ids) == count else None
    decoded = []
    for place, (text, logprob) in enumerate(zip(wire.tokens, wire.token_logprobs, strict=True)):
        if logprob is None:
            raise malformed(f"logprobs has no value for token {place}", body)
        decoded.append(
            TokenLogprob(
                logprob=logprob,
                text=text,
                token_id=None if aligned is None else aligned[place],
                top=_top(candidates[place], top),
            )
        )
    return tuple(decoded)


def _top(candidates: dict[str, float] | None, count: int) -> tuple[TokenLogprob, ...]:
    # the chosen token is always among them, so there may be one more than was asked for
    if not candidates or not count:
        return ()
    ranked = sorted(candidates.items(), key=lambda pair: -pair[1])
    return tuple(TokenLogprob(logprob=logprob, text=text) for text, logprob in ranked[:count])
