"""Reads the bodies of /v1/chat/completions and /v1/completions.

Names and meanings are those of OpenAI's API and of vLLM's additions to it. Unlike theirs, an
unknown field is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from hf_server.bodies import Body, parse, validate
from hf_server.errors import refused

MOST_SCORED = 128  # ids of logprob_token_ids, as in vLLM
MOST_CHOICES = 256
MOST_ANSWERS = 4096
MOST_STOPS = 64
LONGEST_CONSTRAINT = 1 << 18  # characters
_LARGEST = 1e6  # what fits a batch's tables of float32
_GREEDY_BELOW = 1e-5
_STRUCTURED = ("json", "choice", "regex", "grammar")
# What transformers' apply_chat_template takes besides the variables of a template. A template that
# comes with a request is a program, and would run in the server.
_NO_VARIABLES = frozenset(
    {
        *("chat_template", "conversation", "tokenize", "tokenizer_kwargs", "processor_kwargs"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        "return_assistant_tokens_mask",
    }
)

Natural = Annotated[int, Field(ge=0)]
Logprobs = Natural  # how many there may be is the server's option
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenIds = Annotated[list[Natural], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1)]


class _Request(Body):
    """The fields that both endpoints take; those of the last lines have no effect on an answer."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=_LARGEST)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    min_p: Fraction = 0.0
    repetition_penalty: Annotated[float, Field(ge=1 / _LARGEST, le=_LARGEST)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    seed: int | None = None
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[Natural] = Field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: Positive | None = None
    min_tokens: Natural = 0
    skip_special_tokens: bool = True
    prompt_logprobs: Logprobs | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    parallel_tool_calls: Any = None
    request_id: Any = None
    priority: Any = None


class _Chat(_Request):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    tools: Any = None
    tool_choice: Any = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None
    max_completion_tokens: Positive | None = None


class _Completion(_Request):
    prompt: str | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: Logprobs | None = None
    logprob_token_ids: Annotated[list[Natural], Field(max_length=MOST_SCORED)] = Field(
        default_factory=list
    )
    max_tokens: Positive | None = 16


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer must match; `text` is JSON for the kinds json and choice."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0 is off; max_tokens None is what fits.

    logprobs and prompt_logprobs: None is off, k means the chosen token's and the k most likely,
    or those of `logprob_token_ids` instead.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request. Either `messages` or `prompts` is given."""

    model: str | None
    sampling: Sampling
    n: int
    stream: bool
    include_usage: bool
    return_token_ids: bool
    return_tokens_as_token_ids: bool
    constraint: Constraint | None
    messages: tuple[dict[str, Any], ...] | None = None
    template: dict[str, Any] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()


def read_chat(body: Any) -> Asked:
    """A chat request. Raises ApiError (400) for what is wrong with it."""
    chat = validate(body, _Chat)
    template = dict(chat.chat_template_kwargs)
    if wrong := sorted(_NO_VARIABLES & template.keys()):
        raise refused(
            f"{wrong[0]} is not for a request to choose: this server uses the model's own template",
            param="chat_template_kwargs",
        )
    goes_on = chat.continue_final_message
    starts = chat.add_generation_prompt
    template["continue_final_message"] = goes_on
    template["add_generation_prompt"] = not goes_on if starts is None else starts
    if chat.tools or chat.tool_choice not in (None, "none", "auto"):
        raise refused(
            "this server has no native tool calls: describe the tools in the messages and constrain"
            " the answer with response_format",
            param="tools",
        )
    if chat.top_logprobs and not chat.logprobs:
        raise refused("top_logprobs needs logprobs: true", param="top_logprobs")
    return _asked(
        chat,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        max_tokens=chat.max_tokens or chat.max_completion_tokens,
        messages=tuple(_message(message) for message in chat.messages),
        template=template,
    )


def read_completion(body: Any) -> Asked:
    """A completion request. Raises ApiError (400) for what is wrong with it."""
    completion = validate(body, _Completion)
    given = completion.prompt
    prompts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return _asked(
        completion,
        logprobs=completion.logprobs,
        logprob_token_ids=tuple(completion.logprob_token_ids),
        max_tokens=completion.max_tokens,
        prompts=tuple(text if isinstance(text, str) else tuple(text) for text in prompts),
    )


def _asked(
    request: _Request,
    *,
    logprobs: int | None,
    max_tokens: int | None,
    logprob_token_ids: tuple[int, ...] = (),
    **prompt: Any,
) -> Asked:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    sampling = Sampling(
        temperature=request.temperature if request.temperature >= _GREEDY_BELOW else 0.0,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        seed=request.seed,
        stop=tuple(text for text in stop if text),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=logprobs,
        logprob_token_ids=logprob_token_ids,
        prompt_logprobs=request.prompt_logprobs,
    )
    asked = Asked(
        model=request.model,
        sampling=sampling,
        n=request.n,
        stream=request.stream,
        include_usage=(request.stream_options or {}).get("include_usage") is True,
        return_token_ids=request.return_token_ids,
        return_tokens_as_token_ids=request.return_tokens_as_token_ids,
        constraint=_constraint(request),
        **prompt,
    )
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options needs stream: true", param="stream_options")
    if logprob_token_ids and logprobs is None:
        raise refused("logprob_token_ids needs logprobs", param="logprob_token_ids")
    if len(sampling.stop) > MOST_STOPS:
        raise refused(f"stop may hold {MOST_STOPS} texts at most", param="stop")
    if asked.n * max(1, len(asked.prompts)) > MOST_ANSWERS:
        raise refused(f"a request may ask for {MOST_ANSWERS} answers at most", param="n")
    if asked.stream and (sampling.logprobs is not None or sampling.prompt_logprobs is not None):
        raise refused("a streamed answer has no logprobs; leave out stream", param="stream")
    return asked


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise refused(f"a message must have a role, got {message!r}", param="messages")
    made = dict(message)
    content = made.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise refused("a message's content must be a text", param="messages")
    made["content"] = content or ""
    if calls := made.get("tool_calls"):
        made["tool_calls"] = [_call(call) for call in calls]
    return made


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise refused("this server reads text only: a message has another part", param="messages")


def _call(call: Any) -> dict[str, Any]:
    """A past tool call; chat templates want its arguments as an object."""
    try:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = parse(function["arguments"] or "{}")
    except (TypeError, KeyError, ValueError) as error:
        raise refused(f"a message has a broken tool call: {call!r}", param="messages") from error
    return {**call, "function": function}


def _constraint(request: _Request) -> Constraint | None:
    found = [
        constraint
        for constraint in (
            _from_format(request.response_format),
            _from_structured(request.structured_outputs),
        )
        if constraint is not None
    ]
    if len(found) > 1:
        raise refused("response_format and structured_outputs exclude each other")
    if any(len(constraint.text) > LONGEST_CONSTRAINT for constraint in found):
        raise refused(
            f"a constraint may have {LONGEST_CONSTRAINT:,} characters at most",
            param="response_format" if found[0].kind == "json" else "structured_outputs",
        )
    return found[0] if found else None


def _from_format(wanted: dict[str, Any] | None) -> Constraint | None:
    kind = wanted.get("type") if wanted is not None else "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind="json", text='{"type": "object"}')
    assert wanted is not None
    described = wanted.get("json_schema")
    if kind != "json_schema" or not isinstance(described, dict) or "schema" not in described:
        raise refused(
            "response_format must be of type text, json_object, or json_schema with json_schema: "
            "{name, schema}",
            param="response_format",
        )
    return Constraint(kind="json", text=json.dumps(described["schema"]))


def _from_structured(wanted: dict[str, Any] | None) -> Constraint | None:
    given = {name: value for name, value in (wanted or {}).items() if value is not None}
    if not given:
        return None
    if len(given) != 1 or next(iter(given)) not in _STRUCTURED:
        raise refused(
            f"structured_outputs needs exactly one of {', '.join(_STRUCTURED)}",
            param="structured_outputs",
        )
    ((kind, value),) = given.items()
    if kind == "json":
        return Constraint(
            kind=kind, text=json.dumps(parse(value) if isinstance(value, str) else value)
        )
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise refused("choice must be a list of texts", param="structured_outputs")
        return Constraint(kind=kind, text=json.dumps(value))
    if not isinstance(value, str):
        raise refused(f"{kind} must be a text", param="structured_outputs")
    return Constraint(kind=kind, text=value)
