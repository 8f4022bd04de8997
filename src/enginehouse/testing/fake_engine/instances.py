"""Small instances of JSON schemas and regular expressions, as far as tests use them."""

from __future__ import annotations

import random
import re
import string
from contextlib import suppress
from typing import Any

from enginehouse.testing.fake_engine.errors import ApiError

_PART = re.compile(r"(\[[^]]+\]|\\?.)(?:\{(\d+)\})?")  # one character, or {n} of them


def instance(schema: dict[str, Any], *, rng: random.Random, root: Any = None) -> Any:
    """A value that `schema` allows: all properties, shortest arrays, smallest numbers."""
    root = schema if root is None else root
    if "$ref" in schema:
        return instance(_resolve(schema["$ref"], root), rng=rng, root=root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return instance(rng.choice(branches), rng=rng, root=root)
    return _typed(schema, rng=rng, root=root)


def matching(pattern: str, *, rng: random.Random) -> str:
    """A text that `pattern` matches, a row of characters and classes; ApiError 501 for others."""
    text = ""
    with suppress(re.error):
        for part, count in _PART.findall(pattern):
            allowed = [character for character in string.printable if re.fullmatch(part, character)]
            text += "".join(rng.choice(allowed or "?") for _ in range(int(count or 1)))
        if re.fullmatch(pattern, text):
            return text
    raise ApiError("the fake engine knows classes and {n} of regular expressions", status=501)


def _typed(schema: dict[str, Any], *, rng: random.Random, root: Any) -> Any:
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: instance(part, rng=rng, root=root) for name, part in properties.items()}
    if kind == "array":
        item = schema.get("items", {"type": "string"})
        return [instance(item, rng=rng, root=root) for _ in range(schema.get("minItems", 1))]
    text = "steam".ljust(schema.get("minLength", 0), "m")[: schema.get("maxLength")]
    least = schema.get("minimum", 0)
    scalars = {"integer": least, "number": float(least), "boolean": True, "null": None}
    return scalars.get(kind, text)


def _resolve(reference: str, root: Any) -> dict[str, Any]:
    found = root
    for key in reference.removeprefix("#/").split("/"):
        found = found[key]
    assert isinstance(found, dict)
    return found
