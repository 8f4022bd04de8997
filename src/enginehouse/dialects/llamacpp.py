"""llama-server's two OpenAI endpoints, and the small ones beside them.

Read in the sources of build 11434, tools/server/server-{schema,common,task,context}.cpp, and tried
on it. It drops unknown fields silently.
"""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import BadRequestError, ContextOverflowError
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
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.openai_replies import decode_reply, malformed
from enginehouse.dialects.openai_requests import constraint_of
from enginehouse.dialects.openai_variant import Changes, OpenAIVariant

# vLLM's order; llama.cpp's own applies the temperature last and samples a different distribution
_SAMPLERS = ("penalties", "temperature", "min_p", "top_k", "top_p")
_WINDOW = 1 << 17  # tokens that penalties look back on: all; llama-server's default is 64
_ESCAPED = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


class LlamaCppDialect(OpenAIVariant):
    """One of OpenAI's dialects, as llama-server speaks it.

    Its penalties for presence and frequency also count the prompt's tokens. An answer that the
    context cuts off before max_tokens is a ContextOverflowError, except in a stream.
    """

    def _changes(
        self, request: SampleRequest, *, capabilities: Capabilities, stream: bool
    ) -> Changes:
        del stream
        parameters = request.parameters
        fields: dict[str, Any] = {"samplers": _SAMPLERS, "mirostat": 0}
        replaced: dict[str, Any] = {}
        handled = {Capability.REPETITION_PENALTY} & capabilities.supports
        if handled:
            fields["repeat_penalty"] = parameters.repetition_penalty
            replaced["repetition_penalty"] = 1.0
        penalties = (parameters.presence_penalty, parameters.frequency_penalty)
        if parameters.repetition_penalty != 1 or any(penalties):
            fields["repeat_last_n"] = _WINDOW
        if parameters.logprobs is not None:
            replaced["logprobs"] = max(1, parameters.logprobs)  # 0 would switch them off
        if parameters.structured is not None:
            name, value = constraint_of(parameters.structured, capabilities)
            if name == "choice":
                name, value = "grammar", choice_grammar(value)
            fields[name] = value
            replaced["structured"] = None
        return Changes(fields, replaced, frozenset(handled))

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """See Dialect.decode. Raises ContextOverflowError where the context cut the answer off."""
        response = super().decode(body, request=request, timing=timing)
        _require_whole(response, request, body)
        if request.parameters.logprobs != 0:
            return response
        return msgspec.structs.replace(
            response, completions=tuple(map(_without_candidates, response.completions))
        )

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """See Dialect.decode_chunk; the last text of a completion carries the usage."""
        deltas = super().decode_chunk(data)
        if b'"usage"' not in data or any(delta.usage for delta in deltas):
            return deltas
        return (*deltas, Delta(text="", usage=decode_reply(_usage, data).usage))


def choice_grammar(choices: tuple[str, ...]) -> str:
    """GBNF for exactly one of `choices`."""
    return "root ::= " + " | ".join(f'"{"".join(map(_escaped, text))}"' for text in choices)


def _escaped(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def _without_candidates(completion: Completion) -> Completion:
    bare = [msgspec.structs.replace(token, top=()) for token in completion.logprobs or ()]
    return msgspec.structs.replace(completion, logprobs=tuple(bare))


def _require_whole(response: SampleResponse, request: SampleRequest, body: bytes) -> None:
    completion, made = response.completions[0], response.completion_tokens
    if not response.prompt_tokens:
        raise BadRequestError(
            "llama-server does not answer an empty prompt", fix="start the prompt with some text"
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


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Usage(msgspec.Struct):
    usage: Usage | None = None


_usage = msgspec.json.Decoder(_Usage)
_models = msgspec.json.Decoder(_Models)
_encode = msgspec.json.Encoder().encode


def decode_context(body: bytes) -> int | None:
    """The most tokens of one sequence, read from GET /v1/models; None in old builds."""
    sizes = [model.meta.n_ctx for model in decode_reply(_models, body).data if model.meta]
    return sizes[0] if sizes else None


def encode_tokenize(text: str, *, model: str, add_special_tokens: bool) -> bytes:  # noqa: ARG001
    """The body of POST /tokenize; llama-server has only one model."""
    return _encode({"content": text, "add_special": add_special_tokens})


chat = LlamaCppDialect(openai_chat)
completions = LlamaCppDialect(openai_completions)
