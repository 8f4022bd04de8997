"""llama-server's two OpenAI endpoints, and the small ones beside them.

Read in the sources of build 11434, tools/server/server-{schema,common,task,context}.cpp, and tried
on it. Fields that it does not know are dropped there without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from enginehouse.core.errors import BadRequestError, ConfigurationError, ContextOverflowError
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
    Usage,
)
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.base import Dialect, require
from enginehouse.dialects.openai_replies import check_choices, decode_reply, malformed

# vLLM's order: llama.cpp's own has the temperature last, which samples from another distribution
_SAMPLERS = ("penalties", "temperature", "min_p", "top_k", "top_p")
_WINDOW = 1 << 17  # tokens that penalties look back on: all; llama-server's default is 64
_ESCAPED = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}

Decode = Callable[..., SampleResponse]


class LlamaCppDialect:
    """One of OpenAI's dialects, as llama-server speaks it.

    Its penalties for presence and frequency count the prompt's tokens, too. An answer that the
    context cuts off before max_tokens is a ContextOverflowError, except in a stream.
    """

    def __init__(self, openai: Dialect, *, decode: Decode) -> None:
        self.path = openai.path
        self._openai = openai
        self._decode = decode

    def encode(
        self, request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
    ) -> bytes:
        """See Dialect.encode."""
        parameters = request.parameters
        supports = set(capabilities.supports)
        own = _constraint(parameters.structured, capabilities)
        changes: dict[str, Any] = {"structured": None} if own else {}
        own |= {"samplers": _SAMPLERS, "mirostat": 0}
        if _is_penalised(parameters):
            own["repeat_last_n"] = _WINDOW
        if Capability.REPETITION_PENALTY in supports:
            supports.discard(Capability.REPETITION_PENALTY)
            own["repeat_penalty"] = parameters.repetition_penalty
            changes["repetition_penalty"] = 1.0
        if parameters.logprobs is not None:
            changes["logprobs"] = max(1, parameters.logprobs)  # 0 would switch them off
        if taken := own.keys() & parameters.extra.keys():
            raise ConfigurationError(
                f"extra must not set {', '.join(sorted(taken))!r}",
                why="it has a place of its own and is sent already",
                fix="set it in the request or its SamplingParameters",
            )
        changes["extra"] = parameters.extra | own
        request = msgspec.structs.replace(
            request, parameters=msgspec.structs.replace(parameters, **changes)
        )
        return self._openai.encode(
            request,
            model=model,
            capabilities=msgspec.structs.replace(capabilities, supports=frozenset(supports)),
            stream=stream,
        )

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """See Dialect.decode. Raises ContextOverflowError where the context cut the answer off."""
        response = self._decode(body, request=request, timing=timing)
        _check_length(response, request, body)
        if request.parameters.logprobs != 0:
            return response
        bare = [_without_candidates(completion) for completion in response.completions]
        return msgspec.structs.replace(response, completions=tuple(bare))

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """See Dialect.decode_chunk; the last text of a completion brings the usage along."""
        deltas = self._openai.decode_chunk(data)
        if b'"usage"' not in data or any(delta.usage for delta in deltas):
            return deltas
        return (*deltas, Delta(text="", usage=decode_reply(_counted, data).usage))

    def is_end(self, data: bytes) -> bool:
        """See Dialect.is_end."""
        return self._openai.is_end(data)


def choice_grammar(choices: tuple[str, ...]) -> str:
    """GBNF for exactly one of `choices`."""
    return "root ::= " + " | ".join(f'"{"".join(map(_escaped, text))}"' for text in choices)


def _escaped(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _constraint(structured: StructuredOutput | None, capabilities: Capabilities) -> dict[str, Any]:
    """llama-server's own field for a constraint; what it lacks is left for OpenAI's dialect."""
    if structured is None:
        return {}
    if structured.json_schema is not None:
        require(capabilities, Capability.JSON_SCHEMA, "structured output by json_schema")
        return {"json_schema": structured.json_schema}
    if structured.choice is not None:
        require(capabilities, Capability.CHOICE, "structured output by choice")
        return {"grammar": choice_grammar(structured.choice)}
    if structured.grammar is not None:
        require(capabilities, Capability.GRAMMAR, "structured output by grammar")
        return {"grammar": structured.grammar}
    return {}


def _is_penalised(parameters: SamplingParameters) -> bool:
    penalties = (parameters.presence_penalty, parameters.frequency_penalty)
    return parameters.repetition_penalty != 1 or any(penalties)


def _without_candidates(completion: Completion) -> Completion:
    bare = [msgspec.structs.replace(token, top=()) for token in completion.logprobs or ()]
    return msgspec.structs.replace(completion, logprobs=tuple(bare))


def _check_length(response: SampleResponse, request: SampleRequest, body: bytes) -> None:
    completion, made = response.completions[0], response.completion_tokens
    if not response.prompt_tokens:
        raise BadRequestError(
            "llama-server answers no empty prompt", fix="give it a token to begin with"
        )
    if completion.finish_reason != "length":
        return
    if made < request.parameters.max_tokens:
        raise ContextOverflowError(
            f"the context was full after {made} of max_tokens {request.parameters.max_tokens}",
            why=f"the prompt has {response.prompt_tokens} tokens",
            fix="lower max_tokens, shorten the prompt, or raise max_model_len",
        )
    if completion.logprobs is not None and len(completion.logprobs) != made:
        # it leaves out the tokens inside a character that takes several
        raise malformed(f"logprobs came for {len(completion.logprobs)} of {made} tokens", body)


class _Candidate(msgspec.Struct):
    id: int
    token: str
    logprob: float


class _Token(_Candidate):
    top_logprobs: list[_Candidate] = []


class _Logprobs(msgspec.Struct):
    content: list[_Token]


class _Choice(msgspec.Struct):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]
    usage: Usage
    model: str
    id: str = ""


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Counted(msgspec.Struct):
    usage: Usage | None = None


_reply = msgspec.json.Decoder(_Reply)
_counted = msgspec.json.Decoder(_Counted)
_models = msgspec.json.Decoder(_Models)
_encode = msgspec.json.Encoder().encode


def _decode_completions(body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
    """As openai_completions, but the log-probabilities have the form of the chat's."""
    reply = decode_reply(_reply, body)
    completions = tuple(
        Completion(
            text=choice.text,
            finish_reason=choice.finish_reason,
            logprobs=None if choice.logprobs is None else _logprobs(choice.logprobs),
        )
        for choice in reply.choices
    )
    check_choices(completions, request, body)
    return SampleResponse(
        completions=completions,
        model=reply.model,
        request_id=reply.id,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
        timing=timing,
    )


def _logprobs(wire: _Logprobs) -> tuple[TokenLogprob, ...]:
    return tuple(
        _logprob(token, top=tuple(_logprob(candidate) for candidate in token.top_logprobs))
        for token in wire.content
    )


def _logprob(wire: _Candidate, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(logprob=wire.logprob, text=wire.token, token_id=wire.id, top=top)


def decode_context(body: bytes) -> int | None:
    """The tokens that one sequence may have, in a reply of GET /v1/models; None in old builds."""
    sizes = [model.meta.n_ctx for model in decode_reply(_models, body).data if model.meta]
    return sizes[0] if sizes else None


def encode_tokenize(text: str, *, model: str, add_special_tokens: bool) -> bytes:  # noqa: ARG001
    """The body of POST /tokenize; there is but one model."""
    return _encode({"content": text, "add_special": add_special_tokens})


chat = LlamaCppDialect(openai_chat, decode=openai_chat.decode)
completions = LlamaCppDialect(openai_completions, decode=_decode_completions)
