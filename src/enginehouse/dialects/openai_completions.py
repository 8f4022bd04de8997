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
    Choice,
    Counts,
    PromptEntries,
    TokenLogprobs,
    decode_deltas,
    decode_reply,
    in_order,
    is_end,
    malformed,
    sample_response,
    token_ids_or_none,
)
from enginehouse.dialects.openai_requests import request_body

__all__ = ["decode", "decode_chunk", "encode", "is_end", "path"]

path = "/v1/completions"


class _Logprobs(TokenLogprobs):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(Choice, kw_only=True):
    text: str
    logprobs: _Logprobs | None = None
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
    choices = in_order(reply.choices, request, body)
    return sample_response(
        reply,
        tuple([_completion(choice, request, body) for choice in choices]),
        request=request,
        body=body,
        timing=timing,
        prompt_token_ids=choices[0].prompt_token_ids,
        prompt_logprobs=choices[0].prompt_logprobs,
    )


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk."""
    if error := stream_error(data):
        raise error
    chunk = decode_reply(_chunk, data)
    return decode_deltas(chunk.choices, chunk.usage, text=lambda choice: choice.text)


def _completion(choice: _Choice, request: SampleRequest, body: bytes) -> Completion:
    top = request.parameters.logprobs
    logprobs = None
    if choice.logprobs is not None and top is not None:
        logprobs = choice.logprobs.decoded(choice.token_ids) or _logprobs(
            choice.logprobs, ids=choice.token_ids, top=top, body=body
        )
    return Completion(
        text=choice.text,
        finish_reason=choice.finish_reason,
        token_ids=token_ids_or_none(choice.token_ids),
        logprobs=logprobs,
    )


def _logprobs(
    wire: _Logprobs, *, ids: list[int] | None, top: int, body: bytes
) -> tuple[TokenLogprob, ...]:
    tokens, values = wire.tokens or [], wire.token_logprobs or []
    count = len(tokens)
    candidates = wire.top_logprobs or [None] * count
    if not count == len(values) == len(candidates):
        raise malformed("logprobs has lists of different lengths", body)
    known = ids if ids is not None and len(ids) == count else None
    decoded = []
    for place, (text, logprob) in enumerate(zip(tokens, values, strict=True)):
        if logprob is None:
            raise malformed(f"logprobs has no value for token {place}", body)
        # the chosen token is always among them, so there may be one more than requested
        ranked = sorted((candidates[place] or {}).items(), key=lambda pair: -pair[1])
        decoded.append(
            TokenLogprob(
                logprob=logprob,
                text=text,
                token_id=None if known is None else known[place],
                top=tuple(TokenLogprob(logprob=p, text=t) for t, p in ranked[:top]),
            )
        )
    return tuple(decoded)
