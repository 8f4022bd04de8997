"""Prompts from a file or standard input, each with its own sampling parameters."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.batch.settings import SampleSettings
from enginehouse.core.errors import ConfigurationError, nearest
from enginehouse.core.messages import ChatPrompt, Message, Prompt, TextPrompt, TokenPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters, StructuredOutput

PromptId = str | int
_PROMPTS = ("prompt", "messages", "token_ids")
_CONSTRAINTS = StructuredOutput.__struct_fields__
_UNSET = ("logprobs", "prompt_logprobs", "structured", "extra")  # not part of the samples
_PARAMETERS = tuple(n for n in SamplingParameters.__struct_fields__ if n not in _UNSET)
OVERRIDES = (*_PARAMETERS, *_CONSTRAINTS)
_KEYS = ("id", *_PROMPTS, *OVERRIDES)
_NOTHING = SamplingParameters()


class PromptLine(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt. Its id is in its line, or else the number of the line, from 1.

    `digest` identifies the prompt and every sampling parameter that is not a default.
    """

    id: PromptId
    request: SampleRequest
    digest: str


def read_prompts(settings: SampleSettings) -> list[PromptLine]:
    """Every prompt in order; blank lines are skipped. Blocking.

    Raises ConfigurationError, naming file and line, for an invalid prompt and for a duplicate id.
    """
    name = "standard input" if settings.prompts == "-" else settings.prompts
    common = _common(settings)
    prompts: list[PromptLine] = []
    lines_of: dict[PromptId, int] = {}
    try:
        path = Path(settings.prompts).expanduser()
        opened = nullcontext(sys.stdin.buffer) if settings.prompts == "-" else path.open("rb")
        with opened as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    prompt = _prompt_line(line, number, settings=settings, common=common)
                except ConfigurationError as error:
                    error.message = f"{name}, line {number}: {error.message}"
                    raise
                if (earlier := lines_of.setdefault(prompt.id, number)) != number:
                    raise ConfigurationError(
                        f"{name}, line {number}: the id {prompt.id!r} is also in line {earlier}",
                        fix="give every prompt a different id; the default is the line's number",
                    )
                prompts.append(prompt)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {name}", why=error.strerror, fix="check the path given to --prompts"
        ) from error
    if not prompts:
        raise ConfigurationError(
            f"{name} has no prompts",
            fix='write one per line, as in {"prompt": "Once upon a time"}',
        )
    return prompts


def _common(settings: SampleSettings) -> dict[str, Any]:
    values = {name: getattr(settings, name) for name in _PARAMETERS if hasattr(settings, name)}
    if settings.json_schema is not None:
        values["json_schema"] = _read_schema(settings.json_schema)
    if settings.choice is not None:
        values["choice"] = settings.choice
    return values


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}", why=error.strerror, fix="check the path given to --schema"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not a JSON schema", why=str(error)) from error


def _prompt_line(
    line: bytes, number: int, *, settings: SampleSettings, common: Mapping[str, Any]
) -> PromptLine:
    values = {"prompt": _text(line)} if settings.plain else _object(line)
    if unknown := [key for key in values if key not in _KEYS]:
        close = nearest(unknown[0], _KEYS)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(_KEYS)}"
        raise ConfigurationError(f"unknown key {unknown[0]!r}; {hint}")
    given = [key for key in _PROMPTS if values.get(key) is not None]
    if len(given) != 1:
        raise ConfigurationError(
            f"it has {' and '.join(given) or 'no prompt'}", fix=f"give one of {', '.join(_PROMPTS)}"
        )
    prompt = _prompt(given[0], values[given[0]], chat=settings.chat)
    own = {k: v for k, v in values.items() if k not in ("id", *_PROMPTS) and v is not None}
    parameters = _parameters(common, own)
    return PromptLine(
        id=_convert(values.get("id", number), PromptId, "id"),
        request=SampleRequest(prompt=prompt, parameters=parameters),
        digest=_digest(prompt, parameters),
    )


def _text(line: bytes) -> str:
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError("it is not UTF-8 text", why=str(error)) from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(
            "it is not a JSON object",
            why=str(error),
            fix='write {"prompt": "…"}, or use --plain for lines of text',
        ) from error


def _prompt(kind: str, value: Any, *, chat: bool) -> Prompt:
    if kind == "messages":
        for message in value if isinstance(value, list) else ():
            _require_known_fields(message)
        if messages := _convert(value, tuple[Message, ...], kind):
            return ChatPrompt(messages)
    elif kind == "token_ids":
        if ids := _convert(value, tuple[int, ...], kind):
            return TokenPrompt(ids)
    elif text := _convert(value, str, kind):
        return ChatPrompt((Message("user", text),)) if chat else TextPrompt(text)
    raise ConfigurationError(f"{kind} is empty")


def _require_known_fields(message: Any) -> None:
    known = Message.__struct_fields__
    unknown = [key for key in message if key not in known] if isinstance(message, dict) else ()
    if unknown:
        raise ConfigurationError(
            f"a message has an unknown field {unknown[0]!r}", fix=f"known: {', '.join(known)}"
        )


def _parameters(common: Mapping[str, Any], own: Mapping[str, Any]) -> SamplingParameters:
    values = {**common, **own}
    if any(name in own for name in _CONSTRAINTS):
        values = {k: v for k, v in values.items() if k not in _CONSTRAINTS or k in own}
    constraint = {name: values.pop(name) for name in _CONSTRAINTS if name in values}
    if constraint:
        values["structured"] = constraint
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    parameters: SamplingParameters = _convert(values, SamplingParameters, "parameters")
    if parameters.n > 1 and parameters.temperature == 0:
        raise ConfigurationError(
            f"{parameters.n} greedy answers would all be the same",
            fix="give a temperature above 0 (--temperature), or leave n at 1",
        )
    return parameters


def _convert(value: Any, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(msgspec.to_builtins(value), kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _digest(prompt: Prompt, parameters: SamplingParameters) -> str:
    """The first half of a SHA-256; unaffected by fields that later versions add with a default."""
    chosen = {
        name: value
        for name in SamplingParameters.__struct_fields__
        if (value := getattr(parameters, name)) != getattr(_NOTHING, name)
    }
    return hashlib.sha256(msgspec.json.encode((prompt, chosen), order="sorted")).hexdigest()[:32]
