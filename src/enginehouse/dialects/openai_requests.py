"""Request fields that OpenAI's chat and text completions share, with vLLM's additions.

Protocol: https://platform.openai.com/docs/api-reference and vLLM 0.32's "extra parameters".
"""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, UnsupportedError
from enginehouse.core.sampler import Capabilities, Capability, SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput
from enginehouse.dialects.base import require

_encode = msgspec.json.Encoder().encode
_DEFAULTS = SamplingParameters()
# Fields, named like the capabilities, that only some engines know. Those get them with any value.
_OPTIONAL = (
    Capability.N,
    Capability.SEED,
    Capability.TOP_K,
    Capability.MIN_P,
    Capability.REPETITION_PENALTY,
    Capability.IGNORE_EOS,
    Capability.PROMPT_LOGPROBS,
)


def request_body(
    request: SampleRequest,
    *,
    model: str,
    prompt: dict[str, Any],
    logprobs: dict[str, Any],
    capabilities: Capabilities,
    stream: bool,
) -> bytes:
    """The JSON body of a request; the dialects differ in `prompt` and `logprobs`.

    Every sampling field that the engine knows is sent, so that a model's generation_config.json
    never fills one in.
    """
    parameters = request.parameters
    if stream:
        require_streamable(request, capabilities)
    require_logprobs(parameters, capabilities)
    body: dict[str, Any] = {
        "model": model,
        **prompt,
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "top_p": parameters.top_p,
        "presence_penalty": parameters.presence_penalty,
        "frequency_penalty": parameters.frequency_penalty,
        "stop": parameters.stop,
        "stream": stream,
    }
    supports = capabilities.supports
    for name in _OPTIONAL:
        value = getattr(parameters, name)
        if name in supports:
            body[name] = value
        elif value != getattr(_DEFAULTS, name):
            require(capabilities, name, name)
    if Capability.LOGPROBS in supports:
        body.update(logprobs)
    if Capability.TOKEN_IDS in supports:
        body["return_token_ids"] = True
    if parameters.structured is not None:
        body.update(_structured(parameters.structured, capabilities))
    body.update(_tools(request, capabilities))
    if parameters.extra:
        add_extra(body, parameters.extra, capabilities)
    return _encode(body)


def hosted_body(
    request: SampleRequest,
    *,
    model: str,
    messages: Any,
    length: str,
    capabilities: Capabilities,
    stream: bool,
) -> dict[str, Any]:
    """The fields of a chat request to a hosted API; `length` is what it calls max_tokens.

    Only what differs from the API's documented default is sent (temperature 1, top_p 1, no
    penalties): models that reason refuse those fields, whatever their value.
    """
    parameters = request.parameters
    require_logprobs(parameters, capabilities)
    body: dict[str, Any] = {"model": model, "messages": messages, length: parameters.max_tokens}
    if stream:
        require_streamable(request, capabilities)
        body["stream"] = True
    if parameters.temperature != 1:
        body["temperature"] = parameters.temperature
    for name in ("top_p", "presence_penalty", "frequency_penalty", "stop"):
        if (value := getattr(parameters, name)) != getattr(_DEFAULTS, name):
            body[name] = value
    body |= chosen_fields(parameters, capabilities)
    if parameters.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": parameters.logprobs}
    if parameters.structured is not None:
        body |= _structured(parameters.structured, capabilities)
    body |= _tools(request, capabilities)
    add_extra(body, parameters.extra, capabilities)
    return body


def chosen_fields(parameters: SamplingParameters, capabilities: Capabilities) -> dict[str, Any]:
    """The optional fields that differ from their defaults. Raises UnsupportedError."""
    fields: dict[str, Any] = {}
    for name in _OPTIONAL:
        if (value := getattr(parameters, name)) != getattr(_DEFAULTS, name):
            require(capabilities, name, name)
            fields[name] = value
    return fields


def constraint_of(structured: StructuredOutput, capabilities: Capabilities) -> tuple[str, Any]:
    """The field of `structured` that is set, and its value. Raises UnsupportedError."""
    name = next(n for n in structured.__struct_fields__ if getattr(structured, n) is not None)
    require(capabilities, Capability(name), f"structured output by {name}")
    return name, getattr(structured, name)


def require_logprobs(parameters: SamplingParameters, capabilities: Capabilities) -> None:
    """Raise UnsupportedError for log-probabilities, or candidates, that the engine lacks."""
    wanted, most = parameters.logprobs, capabilities.most_logprobs
    if wanted is None:
        return
    require(capabilities, Capability.LOGPROBS, "logprobs")
    if most is not None and wanted > most:
        raise UnsupportedError(
            f"this engine does not give {wanted} candidates per token",
            why=f"its limit is {most}; nothing was sent",
            fix=f"set logprobs to at most {most}",
        )


def _tools(request: SampleRequest, capabilities: Capabilities) -> dict[str, Any]:
    if not request.tools:
        return {}
    require(capabilities, Capability.TOOLS, "native tool calls")
    choice: str | dict[str, Any] = request.tool_choice
    if choice not in ("auto", "required", "none"):
        choice = {"type": "function", "function": {"name": choice}}
    tools = [{"type": "function", "function": tool} for tool in request.tools]
    return {"tools": tools, "tool_choice": choice}


def require_streamable(request: SampleRequest, capabilities: Capabilities) -> None:
    """Raise UnsupportedError for anything that a streamed answer cannot carry."""
    require(capabilities, Capability.STREAM, "streaming")
    parameters = request.parameters
    if request.tools:
        raise UnsupportedError(
            "a streamed answer carries no tool calls", fix="use sample() instead of stream()"
        )
    if parameters.logprobs is not None or parameters.prompt_logprobs is not None:
        # vLLM answers 200 and leaves prompt_logprobs out of a stream
        raise UnsupportedError(
            "a streamed answer carries no log-probabilities",
            fix="use sample() instead of stream()",
        )


def _structured(structured: StructuredOutput, capabilities: Capabilities) -> dict[str, Any]:
    name, value = constraint_of(structured, capabilities)
    if name != "json_schema":
        return {"structured_outputs": {name: value}}
    # OpenAI's own field, which vLLM honours too
    schema = {"name": "answer", "schema": value, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def add_extra(body: dict[str, Any], extra: dict[str, Any], capabilities: Capabilities) -> None:
    """Add the user's own fields. Raises UnsupportedError and ConfigurationError."""
    for name, value in extra.items():
        if name in capabilities.ignored:
            raise UnsupportedError(
                f"this engine would silently ignore the field {name!r}",
                fix=f"use {capabilities.ignored[name]}",
            )
        if name in body:
            raise ConfigurationError(
                f"extra must not set {name!r}",
                why="the request sets that field already",
                fix="set it in the request or its SamplingParameters",
            )
        body[name] = value
