"""Whether JSON is what an SDK's typed parameters allow: unknown keys are not, at any depth.

pydantic would let unknown keys of a TypedDict pass, and panics on a Union with Iterable in it.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from typing_extensions import is_typeddict as is_extended_typeddict


def problems(value: Any, kind: Any, *, where: str = "body") -> list[str]:
    """What keeps `value` from being a `kind`; nothing if it is one."""
    origin, arguments = get_origin(kind), get_args(kind)
    while origin in (Required, NotRequired, Annotated):
        kind = arguments[0]
        origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        found = [problems(value, branch, where=where) for branch in arguments]
        return [] if [] in found else min(found, key=len)
    if is_typeddict(kind) or is_extended_typeddict(kind):
        return _keys(value, kind, where)
    if origin in (Iterable, Sequence, list):
        return _items(value, arguments[0], where)
    if origin is Literal:
        fine = value in arguments
    elif origin in (dict, Mapping):
        fine = isinstance(value, dict)
    elif kind is float:
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        fine = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return [] if fine else [f"{where}: {value!r} is no {kind}"]


def _keys(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: no object"]
    hints = get_type_hints(kind, include_extras=True)
    found = [f"{where}: {name} is missing" for name in kind.__required_keys__ - value.keys()]
    for name, item in value.items():
        if name not in hints:
            found.append(f"{where}: {name} is unknown to {kind.__name__}")
        else:
            found += problems(item, hints[name], where=f"{where}.{name}")
    return found


def _items(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{where}: no list"]
    places = enumerate(value)
    return [p for at, item in places for p in problems(item, kind, where=f"{where}[{at}]")]
