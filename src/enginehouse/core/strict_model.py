"""The base of every model of a user's settings, from YAML, options or Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from enginehouse.core.errors import nearest


class StrictModel(BaseModel):
    """Frozen; unknown keys are errors, and so are numbers that are not finite (.nan, .inf)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        defer_build=True,  # most are never used by one command
    )


def explain(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One line for each wrong key of `kind`; for an unknown key it names the nearest one."""
    return [_explain(kind, dict(problem)) for problem in error.errors()]


def _explain(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    location = problem["loc"]
    where = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _fields(kind, location[:-1])
        close = nearest(str(location[-1]), known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {hint}"
    message: str = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{where!r} is missing"
    if not where:
        return message
    return f"{where!r}: {message}{_given(location, problem['input'])}"


def _given(location: tuple[Any, ...], value: Any) -> str:
    """The given value, unless it may contain a secret."""
    if {"api_key", "env_vars"} & set(location):
        return ""
    if isinstance(value, Mapping | list | tuple | BaseModel):
        return f" (got a {type(value).__name__})"
    return f" (got {value!r})"


def _fields(kind: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if part in kind.model_fields:
            kind = _model_in(kind.model_fields[part].annotation) or kind
    return list(kind.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, alone, optionally or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in models if model is not None), None)
