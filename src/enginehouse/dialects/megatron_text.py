"""PUT /api of a Megatron-LM text generation server: a text, and the text with its continuation.

Protocol: megatron/core/inference/text_generation_server in megatron-core 0.16.1. The server
does not support stop strings, so answers are cut at them here; it accepts random_seed and add_BOS
and ignores them. It refuses temperature 0: greedy is top_k 1. A refusal is plain text, with status
200 more often than 400. Its `logprobs` are those of all tokens except the prompt's first.
"""

from __future__ import annotations

import re

import msgspec

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ContextOverflowError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import TextPrompt
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
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.base import require
from enginehouse.dialects.openai_errors import error_reply as openai_error_reply
from enginehouse.dialects.openai_replies import decode_reply, malformed
from enginehouse.dialects.openai_requests import add_extra, chosen_fields, require_logprobs

path = "/api"
_CONTEXT = re.compile(r"sequence.{0,40}(length|long)|longer than|exceed", re.IGNORECASE)
_encode = msgspec.json.Encoder().encode


class _Reply(msgspec.Struct):
    text: list[str]
    segments: list[list[str]]
    logprobs: list[list[float]] | None = None
    tokens: list[list[int]] | None = None


_reply = msgspec.json.Decoder(_Reply)


def encode(
    request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
) -> bytes:
    """See Dialect.encode; the prompt is a TextPrompt, and `model` a name that is not sent."""
    del model
    parameters = request.parameters
    require(capabilities, Capability.TEXT, "text prompts")
    if not isinstance(request.prompt, TextPrompt):
        require(capabilities, Capability.TOKENS, "token prompts")
        raise UnsupportedError(
            "a Megatron text server accepts text prompts only", fix="pass the prompt as text"
        )
    if not request.prompt.text:
        raise ConfigurationError(
            "a Megatron text server does not accept an empty prompt", fix="pass some text"
        )
    if stream:
        require(capabilities, Capability.STREAM, "streaming")
    if request.tools:
        require(capabilities, Capability.TOOLS, "native tool calls")
    require_logprobs(parameters, capabilities)
    if parameters.presence_penalty or parameters.frequency_penalty:
        raise UnsupportedError(
            "a Megatron text server does not support penalties", fix="leave them at 0"
        )
    if parameters.structured is not None:
        raise UnsupportedError(
            "a Megatron text server does not support structured output", fix="leave it out"
        )
    chosen_fields(parameters, capabilities)  # refuses those that the engine does not support
    if parameters.prompt_logprobs:
        raise UnsupportedError(
            "a Megatron text server does not return candidates", fix="set prompt_logprobs to 0"
        )
    body = {
        "prompts": [request.prompt.text],
        "tokens_to_generate": parameters.max_tokens,
        "logprobs": parameters.logprobs is not None or parameters.prompt_logprobs is not None,
        **_sampling(parameters),
    }
    add_extra(body, parameters.extra, capabilities)
    return _encode(body)


def _sampling(parameters: SamplingParameters) -> dict[str, float]:
    if parameters.temperature == 0:
        return {"temperature": 1.0, "top_k": 1}
    if parameters.top_k and parameters.top_p < 1:
        raise UnsupportedError(
            "a Megatron text server uses either top_k or top_p, not both",
            fix="leave one of them out",
        )
    chosen = {"top_k": parameters.top_k} if parameters.top_k else {"top_p": float(parameters.top_p)}
    return {"temperature": parameters.temperature, **chosen}


def decode(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """See Dialect.decode."""
    assert isinstance(request.prompt, TextPrompt)
    reply = decode_reply(_reply, body)
    prompt, parameters = request.prompt.text, request.parameters
    if len(reply.text) != 1 or len(reply.segments) != 1:
        raise malformed("it does not have exactly one text", body)
    (text,), (segments,) = reply.text, reply.segments
    if not text.startswith(prompt):
        raise malformed("the text does not begin with the prompt", body)
    split = _prompt_tokens(segments, prompt)
    logprobs = _logprobs(reply, segments, body) if reply.logprobs else None
    if logprobs is None and (parameters.logprobs, parameters.prompt_logprobs) != (None, None):
        raise malformed("logprobs were requested but are missing", body)
    answer = text[len(prompt) :]
    cut = min((at for stop in parameters.stop if (at := answer.find(stop)) >= 0), default=None)
    made = len(segments) - split
    ended = cut is not None or made < parameters.max_tokens
    completion = Completion(
        text=answer[:cut],
        finish_reason="stop" if ended else "length",
        logprobs=None if parameters.logprobs is None or not logprobs else logprobs[split - 1 :],
    )
    known = logprobs is not None and parameters.prompt_logprobs is not None
    return SampleResponse(
        completions=(completion,),
        model=request.model or "megatron",
        request_id="",
        prompt_tokens=split,
        completion_tokens=made,
        timing=timing,
        prompt_logprobs=(None, *logprobs[: split - 1]) if known and logprobs else None,
    )


def _prompt_tokens(segments: list[str], prompt: str) -> int:
    """How many of the tokens are the prompt's: the first ones, until their text is as long."""
    length = 0
    for count, segment in enumerate(segments, start=1):
        length += len(segment)
        if length >= len(prompt):
            return count
    return len(segments)


def _logprobs(reply: _Reply, segments: list[str], body: bytes) -> tuple[TokenLogprob, ...]:
    assert reply.logprobs is not None
    values = reply.logprobs[0]
    ids = reply.tokens[0] if reply.tokens else [None] * len(segments)
    if len(values) != len(segments) - 1 or len(ids) != len(segments):
        raise malformed("logprobs, tokens and segments do not match", body)
    return tuple(
        TokenLogprob(logprob=value, text=segment, token_id=token)
        for value, segment, token in zip(values, segments[1:], ids[1:], strict=True)
    )


def decode_chunk(data: bytes) -> tuple[Delta, ...]:
    """See Dialect.decode_chunk: there are no streams."""
    raise malformed("a Megatron text server does not stream", data)


def is_end(data: bytes) -> bool:
    """See Dialect.is_end: there are no streams."""
    return not data


def error_reply(status: int, body: bytes, *, retry_after: float | None = None) -> WireError:
    """The error that a reply with a status of 300 or above stands for."""
    return reply_error(body) or openai_error_reply(status, body, retry_after=retry_after)


def reply_error(body: bytes) -> WireError | None:
    """The refusal in a reply of any status: a reply that is only a text."""
    if not body.lstrip().startswith(b'"'):
        return None
    said = f"the Megatron server refused: {decode_reply(_text, body)}"
    if _CONTEXT.search(said):
        return ContextOverflowError(said, fix="lower max_tokens or shorten the prompt")
    return BadRequestError(said)


_text = msgspec.json.Decoder(str)
