"""What the vendors' constrained decoding refuses of a JSON Schema, in their words.

https://platform.openai.com/docs/guides/structured-outputs#supported-schemas and
https://docs.claude.com/en/docs/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NOT_ANTHROPIC = ("minimum", "maximum", "multipleOf", "minLength", "maxLength", "maxItems")


def openai_refusal(schema: Any) -> str | None:
    """Strict mode: an object at the root; every object closed, all its properties required."""
    where = "Invalid schema for response_format 'answer': "
    if "anyOf" in schema or schema.get("type") != "object":
        return f"{where}schema must be a JSON Schema of 'type: \"object\"', without anyOf."
    for part in _parts(schema):
        if part.get("type") != "object":
            continue
        if part.get("additionalProperties") is not False:
            return f"{where}'additionalProperties' is required to be supplied and to be false."
        if set(part.get("properties", ())) != set(part.get("required", ())):
            return f"{where}'required' is required to include every key in properties."
    return None


def anthropic_refusal(schema: Any) -> str | None:
    """No bounds on numbers, strings or arrays; every object closed."""
    for part in _parts(schema):
        kind = part.get("type")
        if kind == "object" and part.get("additionalProperties") is not False:
            return "output_config.format.schema: 'additionalProperties' not false is not supported"
        for name in _NOT_ANTHROPIC:
            if name in part:
                return (
                    f"output_config.format.schema: For '{kind}' type, property '{name}' is not "
                    "supported"
                )
    return None


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all within it."""
    if isinstance(schema, list):
        for part in schema:
            yield from _parts(part)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                yield from _parts(list(value.values()))
            elif key not in ("enum", "const", "default", "required"):
                yield from _parts(value)
