"""One JSON schema that every answer with calls obeys, for constrained decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from enginehouse.tools.checking import FoundCall
from enginehouse.tools.specification import ToolSpec

NO_CALL = "none"  # no tool can have this name
# Notes for the reader, and what xgrammar refuses or ignores; the check afterwards knows it all.
_LEFT_OUT = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"}
    | {"readOnly", "writeOnly", "format", "multipleOf", "uniqueItems", "contains", "minContains"}
    | {"maxContains", "propertyNames", "patternProperties", "minProperties", "maxProperties"}
    | {"unevaluatedProperties", "unevaluatedItems", "not", "if", "then", "else"}
    | {"dependentRequired", "dependentSchemas"}
)
_NAMED = ("properties", "$defs", "definitions")


def answer_schema(tools: Sequence[ToolSpec], *, optional: bool, max_calls: int) -> dict[str, Any]:
    """The schema of an answer: a union of the tools, discriminated by the name.

    With `max_calls` 1 a call is the whole answer, else it is in the list `calls`. If calls are
    `optional`, {"name": "none", "answer": …} is allowed in their place.
    """
    shared: dict[str, Any] = {}
    call = _any_of([_call(tool, shared) for tool in tools])
    answer = call
    if max_calls > 1:
        calls = {"type": "array", "items": call, "minItems": 1, "maxItems": max_calls}
        answer = _object({"calls": calls})
    if optional:
        none = _object({"name": {"const": NO_CALL}, "answer": {"type": "string"}})
        answer = (
            {"anyOf": [*answer["anyOf"], none]} if "anyOf" in answer else _any_of([answer, none])
        )
    return answer | {"$defs": shared} if shared else answer


def read_answer(text: str) -> tuple[FoundCall, ...] | str:
    """The calls in an answer that obeys the schema, or its words. Raises ValueError if it does not.

    An engine that ignores the constraint is found out here.
    """
    try:
        answer = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(answer, dict) and answer.get("name") == NO_CALL:
        return str(answer.get("answer", ""))
    calls = answer.get("calls", [answer]) if isinstance(answer, dict) else answer
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls
    ):
        raise ValueError("it is not what the schema says")
    return tuple(
        FoundCall(name=call["name"], arguments=call.get("arguments", {})) for call in calls
    )


def _call(tool: ToolSpec, shared: dict[str, Any]) -> dict[str, Any]:
    arguments = _bounded(tool.parameters, tool.name)
    if "$ref" in json.dumps(arguments):
        # references count from the root, so the whole schema goes there under the tool's name
        shared[tool.name] = arguments
        arguments = {"$ref": f"#/$defs/{tool.name}"}
    return _object({"name": {"const": tool.name}, "arguments": arguments})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _bounded(schema: Any, tool: str) -> Any:
    """The schema without what constrained decoding cannot take; objects get no further keys."""
    if isinstance(schema, list):
        return [_bounded(part, tool) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            kept[key] = {name: _bounded(part, tool) for name, part in value.items()}
        elif key in ("enum", "const", "required"):
            kept[key] = value
        elif key == "$ref":
            kept[key] = f"#/$defs/{tool}{value.removeprefix('#')}"
        elif key not in _LEFT_OUT:
            kept[key] = _bounded(value, tool)
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    if "minLength" in kept or "maxLength" in kept:
        kept.pop("pattern", None)  # xgrammar takes one or the other
    return kept
