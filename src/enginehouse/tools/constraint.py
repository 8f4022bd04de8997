"""The JSON schema of an answer with calls, for constrained decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginehouse.tools.checking import FoundCall, escape_surrogates
from enginehouse.tools.references import References, subschemas
from enginehouse.tools.specification import ToolSpec

NO_CALL = "none"  # no tool can have this name
# What xgrammar and llguidance neither refuse nor ignore; the check afterwards covers the rest.
_KEPT = frozenset(
    {"type", "enum", "const", "required", "pattern", "minLength", "maxLength", "minItems"}
    | {"maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
_INNER = frozenset({"items", "prefixItems", "additionalProperties", "allOf", "anyOf", "oneOf"})
_LOOKAROUND = re.compile(r"\(\?<?[=!]")
# Beside `properties` or one another, these describe further keys of the same object.
_FURTHER = ("$ref", "anyOf", "oneOf", "then", "else", "dependentSchemas", "patternProperties")


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
    """The calls in an answer that follows the schema, or its text.

    Raises ValueError for any other answer: an engine may ignore the constraint.
    """
    try:
        answer = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(answer, dict) and answer.get("name") == NO_CALL:
        return escape_surrogates(str(answer.get("answer", "")))
    calls = answer.get("calls", [answer]) if isinstance(answer, dict) else answer
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls
    ):
        raise ValueError("it does not follow the schema")
    return tuple(
        FoundCall(name=call["name"], arguments=call.get("arguments", {})) for call in calls
    )


def _call(tool: ToolSpec, shared: dict[str, Any]) -> dict[str, Any]:
    arguments = _Bounding(tool, shared).bounded(tool.parameters)
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


def _is_composed(schema: Mapping[str, Any]) -> bool:
    further = sum(key in schema for key in ("properties", *_FURTHER))
    return further + len(schema.get("allOf", ())) > 1


def _leave_out_pattern(kept: dict[str, Any]) -> None:
    """Remove the pattern if there is a length, or if it looks around."""
    pattern = kept.get("pattern")
    has_length = "minLength" in kept or "maxLength" in kept  # xgrammar takes one or the other
    if has_length or (isinstance(pattern, str) and _LOOKAROUND.search(pattern)):
        kept.pop("pattern", None)


@dataclass
class _Bounding:
    """Reduces a tool's schema to what constrained decoding supports.

    Objects get no further keys, unless several schemas describe the same object: each would forbid
    the others' keys. Referenced schemas go into `shared`.
    """

    tool: ToolSpec
    shared: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        schema = self.tool.parameters
        self.references = References(schema)
        self.composed = any(map(_is_composed, subschemas(schema)))

    def bounded(self, schema: Any) -> Any:
        """The schema, or list of schemas, as decoding supports it."""
        if isinstance(schema, list | tuple):
            return [self.bounded(part) for part in schema]
        if not isinstance(schema, Mapping):
            return schema
        kept: dict[str, Any] = {}
        for key, value in schema.items():
            if key in _KEPT:
                kept[key] = value
            elif key in _INNER:
                # llguidance does not support branches of a oneOf that may overlap
                any_will_do = key == "oneOf" and "anyOf" not in schema
                kept["anyOf" if any_will_do else key] = self.bounded(value)
            elif key == "properties":
                kept[key] = {name: self.bounded(part) for name, part in value.items()}
            elif key == "$ref":
                kept[key] = self._moved(value)
        if "properties" in kept:
            self._close(kept)
        _leave_out_pattern(kept)
        return kept

    def _close(self, kept: dict[str, Any]) -> None:
        others = kept.get("additionalProperties")
        for name in kept.get("required", ()):
            kept["properties"].setdefault(name, others if isinstance(others, dict) else {})
        if not self.composed:
            kept.setdefault("additionalProperties", False)

    def _moved(self, reference: str) -> str:
        if reference not in self.names:
            name = self.names[reference] = f"{self.tool.name}_{len(self.names)}"
            self.shared[name] = self.bounded(self.references.target(reference))
        return f"#/$defs/{self.names[reference]}"
