"""What is asked, read from the bodies of /v1/chat/completions and /v1/completions.

Names and meanings are those of OpenAI's API and of vLLM's additions to it. Unlike theirs, an
unknown field is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hf_server.bodies import parse
from hf_server.errors import refused
from hf_server.fields import Fields, is_token_ids

# They change nothing in an answer's text.
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "request_id", "priority"}
)
MOST_LOGPROBS = 20
MOST_CHOICES = 256
_LARGEST = 1e6  # what a batch's tables of float32 bear
_GREEDY_BELOW = 1e-5
_STRUCTURED = ("json", "choice", "regex", "grammar")
MOST_ANSWERS = 4096
MOST_STOPS = 64
LONGEST_CONSTRAINT = 1 << 18  # characters
# What transformers' apply_chat_template takes besides the variables of a template. A template that
# comes with a request is a program, and would run in the server.
_NO_VARIABLES = frozenset(
    {
        *("chat_template", "conversation", "tokenize", "tokenizer_kwargs", "processor_kwargs"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
        "return_assistant_tokens_mask",
    }
)


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What an answer must be an instance of; `text` is JSON for kinds json and choice."""

    kind: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 is greedy; top_k 0 is off; max_tokens None is what fits.

    logprobs and prompt_logprobs: None is off, k the chosen token's and the k most likely.
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
    constraint: Constraint | None
    messages: tuple[dict[str, Any], ...] | None = None
    template: dict[str, Any] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()


def read_chat(body: Any) -> Asked:
    """A chat request. Raises ApiError (400) for what is wrong with it."""
    fields = Fields(body)
    messages = tuple(_message(message) for message in _messages(fields.take("messages")))
    template = dict(fields.mapping("chat_template_kwargs") or {})
    if wrong := sorted(_NO_VARIABLES & template.keys()):
        raise refused(
            f"{wrong[0]} is not for a request to choose: this server uses the model's own template",
            param="chat_template_kwargs",
        )
    goes_on = fields.boolean("continue_final_message", default=False)
    template["continue_final_message"] = goes_on
    template["add_generation_prompt"] = fields.boolean("add_generation_prompt", default=not goes_on)
    _refuse_tools(fields)
    wanted = fields.boolean("logprobs", default=False)
    top = fields.integer("top_logprobs", low=0, high=MOST_LOGPROBS)
    if top and not wanted:
        raise refused("top_logprobs needs logprobs: true", param="top_logprobs")
    longest = fields.integer("max_completion_tokens", low=1)
    return _asked(
        fields,
        logprobs=(top or 0) if wanted else None,
        max_tokens=fields.integer("max_tokens", longest, low=1),
        messages=messages,
        template=template,
    )


def read_completion(body: Any) -> Asked:
    """A completion request. Raises ApiError (400) for what is wrong with it."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"))
    return _asked(
        fields,
        logprobs=fields.integer("logprobs", low=0, high=MOST_LOGPROBS),
        max_tokens=fields.integer("max_tokens", 16, low=1),
        prompts=prompts,
    )


def _asked(fields: Fields, *, logprobs: int | None, max_tokens: int | None, **prompt: Any) -> Asked:
    temperature = fields.number("temperature", 1.0, low=0, high=_LARGEST)
    top_p = fields.number("top_p", 1.0, low=0, high=1)
    if top_p == 0:
        raise refused("top_p must be above 0", param="top_p")
    sampling = Sampling(
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=top_p,
        top_k=max(fields.integer("top_k", 0, low=-1, high=2**31 - 1) or 0, 0),
        min_p=fields.number("min_p", 0.0, low=0, high=1),
        repetition_penalty=fields.number(
            "repetition_penalty", 1.0, low=1 / _LARGEST, high=_LARGEST
        ),
        presence_penalty=fields.number("presence_penalty", 0.0, low=-2, high=2),
        frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2, high=2),
        seed=fields.integer("seed"),
        stop=fields.texts("stop"),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos", default=False),
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens", 0, low=0) or 0,
        skip_special_tokens=fields.boolean("skip_special_tokens", default=True),
        logprobs=logprobs,
        prompt_logprobs=fields.integer("prompt_logprobs", low=0, high=MOST_LOGPROBS),
    )
    stream = fields.boolean("stream", default=False)
    asked = Asked(
        model=fields.text("model"),
        sampling=sampling,
        n=fields.integer("n", 1, low=1, high=MOST_CHOICES) or 1,
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
        return_token_ids=fields.boolean("return_token_ids", default=False),
        constraint=_constraint(fields),
        **prompt,
    )
    if len(sampling.stop) > MOST_STOPS:
        raise refused(f"stop may hold {MOST_STOPS} texts at most", param="stop")
    if asked.n * max(1, len(asked.prompts)) > MOST_ANSWERS:
        raise refused(f"a request may ask for {MOST_ANSWERS} answers at most", param="n")
    if stream and (sampling.logprobs is not None or sampling.prompt_logprobs is not None):
        raise refused("a streamed answer has no logprobs; leave out stream", param="stream")
    fields.finish(without_effect=WITHOUT_EFFECT)
    return asked


def _include_usage(fields: Fields, *, stream: bool) -> bool:
    options = fields.mapping("stream_options")
    if options is None:
        return False
    if not stream:
        raise refused("stream_options needs stream: true", param="stream_options")
    return options.get("include_usage") is True


def _messages(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise refused("messages must be a list with at least one message", param="messages")
    return value


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise refused(f"a message must be an object with a role, got {message!r}", param="messages")
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
    raise refused("this server reads text only: a part of a message is none", param="messages")


def _call(call: Any) -> dict[str, Any]:
    """A past tool call; chat templates want its arguments as an object."""
    try:
        function = dict(call["function"])
        if isinstance(function["arguments"], str):
            function["arguments"] = parse(function["arguments"] or "{}")
    except (TypeError, KeyError, ValueError) as error:
        raise refused(f"a message has a broken tool call: {call!r}", param="messages") from error
    return {**call, "function": function}


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if is_token_ids(value):
            return (tuple(value),)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(is_token_ids(item) and item for item in value):
            return tuple(tuple(item) for item in value)
    raise refused("prompt must be a text, token ids, or a list of either", param="prompt")


def _refuse_tools(fields: Fields) -> None:
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    if tools or choice not in (None, "none", "auto"):
        raise refused(
            "this server has no native tool calls: describe the tools in the messages and constrain"
            " the answer with response_format",
            param="tools",
        )


def _constraint(fields: Fields) -> Constraint | None:
    found = [
        constraint
        for constraint in (
            _from_format(fields.mapping("response_format")),
            _from_structured(fields.mapping("structured_outputs")),
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
