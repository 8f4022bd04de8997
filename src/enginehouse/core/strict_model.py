"""The bases of every model of a user's settings, from YAML, options or Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from enginehouse.core.errors import nearest

Fraction = Annotated[float, Field(ge=0, le=1)]


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

    @classmethod
    def user_fields(cls) -> dict[str, FieldInfo]:
        """The fields, by the keys that a user writes."""
        return cls.model_fields


class ComposedModel(StrictModel):
    """Settings in parts whose keys lie side by side, in a user's file and on the command line.

    Every field is a part, a StrictModel; no two parts have a key in common. Values are given flat,
    and dumped flat.
    """

    @classmethod
    def user_fields(cls) -> dict[str, FieldInfo]:
        """The fields of all parts."""
        return {key: field for part in _parts(cls).values() for key, field in part.items()}

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The values of each part; the first is also given the unknown keys, and refuses them."""
        split = {
            name: {key: values[key] for key in fields if key in values}
            for name, fields in _parts(cls).items()
        }
        known = cls.user_fields()
        first = next(iter(split.values()))
        first.update({key: value for key, value in values.items() if key not in known})
        return split

    @model_serializer(mode="wrap")
    def _join(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for part in dump(self).values() for key, value in part.items()}


def _parts(kind: type[ComposedModel]) -> dict[str, dict[str, FieldInfo]]:
    """The fields of each part."""
    parts = {name: _model_in(field.annotation) for name, field in kind.model_fields.items()}
    return {name: part.user_fields() for name, part in parts.items() if part is not None}


def explain(error: ValidationError, kind: type[StrictModel]) -> list[str]:
    """One line for each wrong key of `kind`; for an unknown key it names the nearest one."""
    problems = error.errors()
    places = [problem["loc"] for problem in problems]
    return [_explain(kind, dict(one)) for one in problems if not _is_consequence(one, places)]


def _is_consequence(problem: ErrorDetails, places: Sequence[tuple[int | str, ...]]) -> bool:
    """Whether a sequence is called too short because its elements are wrong, and left out."""
    where = problem["loc"]
    return problem["type"] == "too_short" and any(
        len(other) > len(where) and other[: len(where)] == where for other in places
    )


def _explain(kind: type[StrictModel], problem: dict[str, Any]) -> str:
    location = problem["loc"]
    if issubclass(kind, ComposedModel):
        location = location[1:]  # users do not see the parts
    where = ".".join(str(step) for step in location)
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
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping | BaseModel):
        return f"{where!r}: {message}"  # a check of several keys, which its message names
    return f"{where!r}: {message}{_given(location, problem['input'])}"


def _given(location: tuple[Any, ...], value: Any) -> str:
    """The given value, unless it may contain a secret."""
    if {"api_key", "env_vars"} & set(location):
        return ""
    if isinstance(value, Mapping | list | tuple | BaseModel):
        return f" (got a {type(value).__name__})"
    return f" (got {value!r})"


def _fields(kind: type[StrictModel], location: tuple[Any, ...]) -> list[str]:
    for step in location:
        fields = kind.user_fields()
        if step in fields:
            kind = _model_in(fields[step].annotation) or kind
    return list(kind.user_fields())


def _model_in(annotation: Any) -> type[StrictModel] | None:
    """The model that a field holds, alone, optionally or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return annotation
    models = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in models if model is not None), None)
