"""What the fake understands of a request, and what it refuses as vLLM does."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec

from enginehouse.testing.fake_engine.errors import ApiError, bad_value, invalid_body
from enginehouse.testing.fake_engine.tool_calls import Named, Tool

_LITERAL = re.compile(r'"([^"\\]*)"')
_LITERALS = re.compile(rf"root ::= {_LITERAL.pattern}( \| {_LITERAL.pattern})*")
Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StructuredOutputs(msgspec.Struct):
    """vLLM's `structured_outputs`."""

    json: dict[str, Any] | None = None
    choice: list[str] | None = None
    regex: str | None = None
    grammar: str | None = None


class Sampling(msgspec.Struct, kw_only=True):
    """Fields of both generation endpoints; unknown ones (guided_json …) are ignored, as in vLLM."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    n: int | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None  # this and the next show in completions only
    return_tokens_as_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    response_format: dict[str, Any] | None = None


class ChatMessage(msgspec.Struct):
    """One turn; its content may come in parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatRequest(Sampling, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    tools: list[Tool] | None = None
    tool_choice: str | Named | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0

    @property
    def top(self) -> int | None:
        """How many candidates per token are wanted, None if no log-probabilities are."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling, kw_only=True):
    """POST /v1/completions; one prompt, as text or token ids, or a list with one prompt."""

    prompt: str | list[int | str | list[int]]
    logprobs: int | None = None
    echo: bool | None = False

    @property
    def only_prompt(self) -> str | list[int]:
        """The prompt. Raises ApiError for several, which vLLM takes and the fake does not."""
        if isinstance(self.prompt, str):
            return self.prompt
        if self.prompt and not isinstance(self.prompt[0], int):
            if len(self.prompt) > 1:
                raise ApiError("the fake engine takes one prompt at a time", parameter="prompt")
            return self.prompt[0]
        return [token for token in self.prompt if isinstance(token, int)]

    @property
    def top(self) -> int | None:
        """How many candidates per token are wanted, None if no log-probabilities are."""
        return self.logprobs


def check_sampling(request: Sampling, *, top: int | None, max_logprobs: int) -> None:
    """Raise ApiError for what vLLM 0.32 answers 400 to."""
    n = 1 if request.n is None else request.n
    temperature = 1.0 if request.temperature is None else request.temperature
    if n < 1:
        raise ApiError(f"n must be at least 1, got {n}.")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise bad_value(
            f"max_tokens must be at least 1, got {request.max_tokens}.",
            "max_tokens",
            request.max_tokens,
        )
    if temperature < 0:
        raise bad_value(
            f"temperature must be non-negative, got {temperature}.", "temperature", temperature
        )
    if temperature == 0 and n > 1:
        raise ApiError(f"n must be 1 when using greedy sampling, got {n}.")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise bad_value(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)
    if request.top_k is not None and request.top_k < -1:
        raise ApiError(f"top_k must be 0 (disable), or at least 1, got {request.top_k}.")
    for name, count in (("sample", top), ("prompt", request.prompt_logprobs)):
        if count is not None and count > max_logprobs:
            raise bad_value(
                f"Requested {name} logprobs of {count}, which is greater than max allowed: "
                f"{max_logprobs}",
                "logprobs" if name == "sample" else "prompt_logprobs",
                count,
            )


def constraint(request: Sampling) -> StructuredOutputs | None:
    """The constraint on the answer, from either of its two fields."""
    wanted = request.structured_outputs
    kind = (request.response_format or {}).get("type")
    if kind == "json_schema":
        holder = (request.response_format or {}).get("json_schema")
        if not isinstance(holder, dict):
            raise ApiError(
                "When response_format type is 'json_schema', the 'json_schema' field must be "
                "provided. (parameter=response_format)",
                parameter="response_format",
            )
        wanted = StructuredOutputs(json=holder.get("schema") or {})
    elif kind == "json_object":
        wanted = StructuredOutputs(json={"type": "object"})
    if wanted is None:
        return None
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name) is not None]
    if len(given) > 1:
        raise ApiError(
            "You can only use one kind of constraints for structured outputs ('json', 'regex' or "
            "'choice'). (parameter=structured_outputs)",
            parameter="structured_outputs",
        )
    if wanted.choice == []:
        raise ApiError("Choice '[]' cannot be an empty list")
    if wanted.grammar is not None:
        if not _LITERALS.fullmatch(wanted.grammar):
            raise ApiError("the fake engine honours grammars of plain texts only", status=501)
        return StructuredOutputs(choice=_LITERAL.findall(wanted.grammar))
    return wanted


def parse(body: bytes, kind: type[msgspec.Struct]) -> Any:
    """Decode a body as `kind`; ApiError 400 as FastAPI words it, roughly."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_body(str(error)) from None
