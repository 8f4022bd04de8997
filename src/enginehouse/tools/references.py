"""Resolves the references within a JSON schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

OFFLINE: Registry[Any] = Registry()  # a schema never makes us fetch anything
_BRANCHES = ("allOf", "anyOf", "oneOf")
_CONDITIONS = ("not", "if", "then", "else")


class References:
    """The references of one schema: JSON pointers into it and its anchors."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._resolver = OFFLINE.resolver_with_root(DRAFT202012.create_resource(schema))

    def target(self, reference: str) -> Any:
        """The referenced schema. Raises ValueError if there is none."""
        if reference.startswith("#"):
            with suppress(Unresolvable, ValueError, TypeError):
                found = self._resolver.lookup(reference).contents
                if isinstance(found, Mapping | bool):
                    return found
        raise ValueError(f"nothing is at its $ref {reference!r}")


def subschemas(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The schema and all within it, with those that references lead to, each once.

    Raises ValueError for a reference that leads nowhere or, without going deeper into a value,
    back to itself, and for what is not understood: $dynamicRef and an $id of a part; SchemaError
    if a reference leads to something that is not a schema.
    """
    references = References(schema)
    found: list[Mapping[str, Any]] = []
    ended: dict[int, bool] = {}
    waiting: list[Any] = [schema]

    def visit(part: Any) -> None:
        if isinstance(part, bool) or ended.get(id(part)):
            return
        if id(part) in ended:
            raise ValueError(f"a reference in it leads back to itself: {str(part)[:100]}")
        if "$dynamicRef" in part or ("$id" in part and part is not schema):
            raise ValueError("it has a $dynamicRef, or a part with an $id of its own")
        ended[id(part)] = False
        found.append(part)
        if isinstance(reference := part.get("$ref"), str):
            target = references.target(reference)
            if id(target) not in ended:
                jsonschema.Draft202012Validator.check_schema(target)
            visit(target)
        for branch in _in_place(part):
            visit(branch)
        ended[id(part)] = True
        waiting.extend(DRAFT202012.subresources_of(part))

    while waiting:
        visit(waiting.pop())
    return found


def _in_place(part: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that apply to the same value as `part`."""
    for key in _BRANCHES:
        yield from part.get(key, ())
    for key in _CONDITIONS:
        if key in part:
            yield part[key]
    yield from part.get("dependentSchemas", {}).values()
