"""Tools in every accepted form: JSON Schemas, OpenAI tools, flat dicts, typed functions."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.errors import PydanticUserError

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.tool_calls import ToolDefinition
from enginehouse.tools.references import OFFLINE, subschemas

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # OpenAI's rule, which every wire format follows
RESERVED = ("auto", "required", "none")
_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
_FIELD = "argument_"  # pydantic drops or refuses parameters named _x, model_dump and the like
_DEEPEST = 64  # levels of arguments; models that loop open brackets
_MOST_VALUES = 10_000  # in the arguments of one call; some keywords take the square of it
_SURROGATE = re.compile("[\ud800-\udfff]")

ToolLike = ToolDefinition | Mapping[str, Any] | Callable[..., Any]


class ToolSpec(ToolDefinition, frozen=True, kw_only=True):
    """A tool whose name is valid and whose `parameters` are a JSON Schema (2020-12).

    `function` runs it, `arguments_type` has the function's parameter types; both are None unless
    the tool was made from a function. Raises ConfigurationError for an invalid tool.
    """

    function: Callable[..., Any] | None = None
    arguments_type: type[BaseModel] | None = None

    def __post_init__(self) -> None:
        _require_name(self.name)
        _require_schema(self.name, self.parameters)

    @classmethod
    def of(cls, tool: ToolLike) -> ToolSpec:
        """The spec of a tool in any of the accepted forms. Raises ConfigurationError.

        An OpenAI tool has the key `function`, a flat dict `name`, a JSON Schema `title`.
        """
        if isinstance(tool, ToolSpec):
            return tool
        if isinstance(tool, ToolDefinition):
            return cls(name=tool.name, description=tool.description, parameters=tool.parameters)
        if isinstance(tool, Mapping):
            inner = tool.get("function")
            if isinstance(inner, Mapping):
                return cls._from_flat(inner)
            if "name" in tool:
                return cls._from_flat(tool)
            if "title" in tool:
                return cls.from_schema(tool, name=_text(tool, "title"))
        elif callable(tool):
            return cls.from_function(tool)
        raise ConfigurationError(
            f"this does not describe a tool: {str(tool)[:200]}",
            fix="pass a typed Python function, a dict with name, description and parameters, an "
            "OpenAI tool, or a JSON Schema with a title",
        )

    @classmethod
    def _from_flat(cls, tool: Mapping[str, Any]) -> ToolSpec:
        parameters = tool.get("parameters")
        return cls.from_schema(
            _NOTHING if parameters is None else parameters,
            name=_text(tool, "name"),
            description=_text(tool, "description", default=""),
        )

    @classmethod
    def from_schema(
        cls, schema: Mapping[str, Any], *, name: str, description: str | None = None
    ) -> ToolSpec:
        """A tool with that schema; the description defaults to the schema's own."""
        if not isinstance(schema, Mapping):
            raise _bad_schema(name, f"it is {type(schema).__name__}, not an object")
        if description is None:
            description = str(schema.get("description", ""))
        return cls(name=name, description=description, parameters=dict(schema))

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> ToolSpec:
        """A tool from a function's signature (annotations as pydantic reads them) and docstring."""
        called = name or str(getattr(function, "__name__", type(function).__name__))
        arguments = _arguments_type(function, called)
        try:
            schema = arguments.model_json_schema()
        except PydanticUserError as error:
            raise ConfigurationError(
                f"the arguments of {called} cannot be written as JSON",
                why=error.message,
                fix="annotate its parameters with JSON types, or pass a JSON Schema",
            ) from error
        del schema["title"]
        return cls(
            name=called,
            description=inspect.getdoc(function) or "" if description is None else description,
            parameters=schema,
            function=function,
            arguments_type=arguments,
        )

    def definition(self) -> ToolDefinition:
        """What the model sees; part of requests and journals."""
        return ToolDefinition(
            name=self.name, description=self.description, parameters=self.parameters
        )

    def check(self, arguments: Any) -> str | None:
        """What is wrong with `arguments`, decoded from JSON; None if they are valid."""
        if not isinstance(arguments, dict):
            return f"the arguments of {self.name} are {_kind(arguments)}, not an object"
        if problem := _unwritable(arguments):
            return f"the arguments of {self.name} hold {problem}"
        # with $schema in it, references to the whole would bring back jsonschema's own validator
        schema = {key: value for key, value in self.parameters.items() if key != "$schema"}
        validator = _Validator(schema, registry=OFFLINE)
        try:
            error = best_match(validator.iter_errors(arguments))
        except RecursionError:
            return f"the arguments of {self.name} are nested too deeply"
        if error is not None:
            place = error.json_path.removeprefix("$").removeprefix(".") or "the arguments"
            return f"{self.name}: {place}: {error.message[:300]}"
        if self.arguments_type is not None:
            try:
                self.arguments_type.model_validate(arguments)
            except ValidationError as wrong:  # a validator of the user's
                first = wrong.errors()[0]
                return f"{self.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        return None

    def typed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Valid arguments, converted to the function's annotated types."""
        if self.arguments_type is None:
            return arguments
        given = self.arguments_type.model_validate(arguments)
        return {
            field.removeprefix(_FIELD): getattr(given, field) for field in given.model_fields_set
        }


def tool_specs(tools: Iterable[ToolLike]) -> tuple[ToolSpec, ...]:
    """The specs of several tools. Raises ConfigurationError, also for a duplicate name."""
    specs = tuple(ToolSpec.of(tool) for tool in tools)
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(
            f"several tools are called {twice[0]!r}", fix="give every tool a name of its own"
        )
    return specs


def _require_name(name: str) -> None:
    fix = "use 1 to 64 letters, digits, underscores and hyphens"
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"the API does not allow the tool name {name!r}", fix=fix)
    if name in RESERVED:
        raise ConfigurationError(
            f"a tool cannot be called {name!r}",
            why="the name has a special meaning as a tool choice",
            fix="give the tool another name",
        )


def _require_schema(name: str, schema: dict[str, Any]) -> None:
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        if schema.get("type") != "object":
            raise _bad_schema(name, f"its type is {schema.get('type')!r}: arguments are an object")
        subschemas(schema)
    except jsonschema.SchemaError as error:
        raise _bad_schema(name, f"{error.json_path}: {error.message[:300]}") from error
    except ValueError as error:
        raise _bad_schema(name, str(error)) from error
    except RecursionError as error:
        raise _bad_schema(name, "it is nested too deeply") from error
    try:
        json.dumps(schema, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise _bad_schema(name, f"it is not JSON: {error}") from error


def _bad_schema(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the parameters of the tool {name!r} are not a JSON Schema of an object",
        why=why,
        fix='write {"type": "object", "properties": {…}, "required": […]} with the types string, '
        "number, integer, boolean, array, object and null, and references to parts of the same "
        'schema, as in {"$ref": "#/$defs/place"}',
    )


def _arguments_type(function: Callable[..., Any], name: str) -> type[BaseModel]:
    try:
        signature = inspect.signature(function, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the signature of {name} cannot be read", why=str(error), fix="annotate it with types"
        ) from error
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"a tool cannot have the parameter {parameter} of {name}",
                why="arguments are passed by name",
                fix="use a function whose parameters all have names",
            )
        kind = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[_FIELD + parameter.name] = (
            kind,
            ... if parameter.default is parameter.empty else parameter.default,
        )
    config = ConfigDict(extra="forbid", alias_generator=lambda f: f.removeprefix(_FIELD))
    try:
        return create_model(name, __config__=config, **fields)
    except (PydanticUserError, NameError, TypeError) as error:
        raise ConfigurationError(
            f"the arguments of {name} cannot be described",
            why=str(error).splitlines()[0],
            fix="annotate its parameters with JSON types, or pass a JSON Schema",
        ) from error


def _text(tool: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    value = tool.get(key, default)
    value = default if value is None else value
    if not isinstance(value, str):
        raise ConfigurationError(
            f"{key!r} of a tool must be a text, not {_kind(value)}",
            fix="provide name, description and parameters",
        )
    return value


def _unwritable(arguments: Any) -> str | None:
    """What in a decoded value neither tools nor journals can represent."""
    level, values = [arguments], 0
    for _ in range(_DEEPEST + 1):
        values += len(level)
        if values > _MOST_VALUES:
            return f"more than {_MOST_VALUES:,} values"
        if problem := next((p for value in level if (p := _unwritable_scalar(value))), None):
            return problem
        level = [part for value in level for part in _parts(value)]
        if not level:
            return None
    return f"more than {_DEEPEST} levels of objects and lists"


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []


def _unwritable_scalar(value: Any) -> str | None:
    if isinstance(value, str) and (half := _SURROGATE.search(value)):
        return f"half a character ({half[0]!a})"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a whole number of more than 64 bits"
    if isinstance(value, float) and value - value != 0:
        return "a number that is not finite"
    return None


def _unique_items(
    validator: Any, wanted: Any, instance: Any, _: Any
) -> Iterator[jsonschema.ValidationError]:
    """`uniqueItems` in linear time; jsonschema compares every two items."""
    if (
        wanted
        and validator.is_type(instance, "array")
        and len(set(map(_identity, instance))) < len(instance)
    ):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def _identity(value: Any) -> Hashable:
    """Equal for values that are equal to JSON Schema: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return dict, frozenset((key, _identity(part)) for key, part in value.items())
    if isinstance(value, list):
        return list, tuple(map(_identity, value))
    return (bool, value) if isinstance(value, bool) else value


_Validator = extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator, {"uniqueItems": _unique_items}
)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"
