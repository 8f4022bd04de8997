"""Positions in the spellings of Agent Arena's scenes, documents and models.

Scenes execute only `target_position: [x, y, z]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

TARGET: Final = "target_position"
_AXES: Final = ("x", "y", "z")
_OTHER_NAMES: Final = ("target", "position")
_PARTS: Final = tuple(f"target_{axis}" for axis in _AXES)
_POINTS: Final = frozenset({TARGET, "position", "rotation", "velocity"})
_WRITTEN = re.compile(r"\A\s*(?:Vector3\s*)?\(([^()]*)\)\s*")  # what Godot makes of a Vector3


def as_position(value: Any) -> list[float] | None:
    """[x, y, z] of a list, an object with x, y and z, or a text like "(1, 0, 2)".

    None for anything else, and for numbers that are not finite. An object may leave y out.
    """
    if isinstance(value, Mapping):
        value = [value.get("x"), value.get("y", 0), value.get("z")]
    elif isinstance(value, str):
        match = _WRITTEN.fullmatch(value)
        value = match[1].split(",") if match else None
    if not isinstance(value, Sequence) or len(value) != len(_AXES):
        return None
    try:
        position = [float(part) for part in value if not isinstance(part, bool)]
    except (TypeError, ValueError, OverflowError):
        return None
    return position if len(position) == len(_AXES) and all(map(math.isfinite, position)) else None


def normal_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A call's parameters with its target, however it is spelled, as `target_position`.

    A `target` that is not a position, such as a name, is left as it is.
    """
    for name in (TARGET, *_OTHER_NAMES):
        if (position := as_position(parameters.get(name))) is not None:
            return {TARGET: position} | _without(parameters, name)
    if {"target_x", "target_z"} <= parameters.keys():
        parts = [parameters.get(part, 0) for part in _PARTS]
        if (position := as_position(parts)) is not None:
            return {TARGET: position} | _without(parameters, *_PARTS)
    return dict(parameters)


def normal_observation(value: Any, name: str = "") -> Any:
    """An observation whose positions, at any depth, are lists; finite floats have two decimals."""
    if name in _POINTS and (position := as_position(value)) is not None:
        value = position
    if isinstance(value, Mapping):
        return {str(key): normal_observation(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [normal_observation(inner) for inner in value]
    return round(value, 2) if isinstance(value, float) else value


def _without(parameters: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name not in names}
