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
# wire fields that only some engines know, sent whatever their value to those that do
_OPTIONAL = (
    ("n", Capability.N),
    ("seed", Capability.SEED),
    ("top_k", Capability.TOP_K),
    ("min_p", Capability.MIN_P),
    ("repetition_penalty", Capability.REPETITION_PENALTY),
    ("ignore_eos", Capability.IGNORE_EOS),
    ("prompt_logprobs", Capability.PROMPT_LOGPROBS),
)
_STRUCTURED = (
    ("json_schema", Capability.JSON_SCHEMA),
    ("choice", Capability.CHOICE),
    ("regex", Capability.REGEX),
    ("grammar", Capability.GRAMMAR),
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
        _check_stream(request, capabilities)
    if parameters.logprobs is not None:
        require(capabilities, Capability.LOGPROBS, "logprobs")
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
    for name, capability in _OPTIONAL:
        value = getattr(parameters, name)
        if capability in supports:
            body[name] = value
        elif value != getattr(_DEFAULTS, name):
            require(capabilities, capability, name)
    if Capability.LOGPROBS in supports:
        body.update(logprobs)
    if Capability.TOKEN_IDS in supports:
        body["return_token_ids"] = True
    if parameters.structured is not None:
        body.update(_structured(parameters.structured, capabilities))
    body.update(_tools(request, capabilities))
    if parameters.extra:
        _add_extra(body, parameters.extra, capabilities)
    return _encode(body)


def _tools(request: SampleRequest, capabilities: Capabilities) -> dict[str, Any]:
    if not request.tools:
        return {}
    require(capabilities, Capability.TOOLS, "native tool calls")
    choice: str | dict[str, Any] = request.tool_choice
    if choice not in ("auto", "required", "none"):
        choice = {"type": "function", "function": {"name": choice}}
    tools = [{"type": "function", "function": tool} for tool in request.tools]
    return {"tools": tools, "tool_choice": choice}


def _check_stream(request: SampleRequest, capabilities: Capabilities) -> None:
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
    for name, capability in _STRUCTURED:
        value = getattr(structured, name)
        if value is None:
            continue
        require(capabilities, capability, f"structured output by {name}")
        if name == "json_schema":
            # OpenAI's own field, which vLLM honours too
            schema = {"name": "answer", "schema": value, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        return {"structured_outputs": {name: value}}
    return {}


def _add_extra(body: dict[str, Any], extra: dict[str, Any], capabilities: Capabilities) -> None:
    for name, value in extra.items():
        if name in capabilities.ignored:
            raise UnsupportedError(
                f"this engine would silently ignore the field {name!r}",
                fix=f"use {capabilities.ignored[name]}",
            )
        if name in body:
            raise ConfigurationError(
                f"extra must not set {name!r}",
                why="it has a place of its own and is always sent",
                fix="set it in the request or its SamplingParameters",
            )
        body[name] = value
