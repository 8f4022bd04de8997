"""Checks a model's calls against the tools it was given."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any, NoReturn

import msgspec

from enginehouse.core.errors import nearest
from enginehouse.tools.results import CheckedCall
from enginehouse.tools.specification import ToolSpec


class FoundCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it was found: `arguments` is JSON text or already decoded."""

    name: str
    arguments: Any
    id: str | None = None


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """All calls if every one is valid; otherwise none, and the first one's problem."""

    calls: tuple[CheckedCall, ...] = ()
    problem: str | None = None


def check_calls(
    found: Sequence[FoundCall],
    tools: Mapping[str, ToolSpec],
    *,
    max_calls: int,
    taken: Collection[str] = (),
) -> Checked:
    """Check calls against `tools`, those that may be called.

    An id that is missing or `taken` is replaced, deterministically.
    """
    if len(found) > max_calls:
        return Checked(problem=f"{len(found)} calls, but at most {max_calls} are allowed")
    calls = []
    ids = set(taken)
    for call in found:
        tool = tools.get(call.name)
        if tool is None:
            close = nearest(call.name, tools)
            hint = f"did you mean {close}?" if close else f"there are: {', '.join(tools)}"
            return Checked(problem=f"there is no function called {call.name!r}; {hint}")
        try:
            arguments = decode_arguments(call.arguments)
        except ValueError as error:
            return Checked(problem=f"the arguments of {call.name} are not JSON: {error}")
        if problem := tool.check(arguments):
            return Checked(problem=problem)
        own = call.id if call.id and call.id not in ids else _new_id(ids)
        ids.add(own)
        calls.append(CheckedCall(id=own, name=call.name, arguments=arguments))
    return Checked(calls=tuple(calls))


def decode_arguments(arguments: Any) -> Any:
    """The arguments, decoded if they are JSON text. Raises ValueError."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}", parse_constant=_refuse)
    except RecursionError:
        raise ValueError("they are nested too deeply") from None


def escape_surrogates(text: str) -> str:
    """The text with every lone surrogate escaped, which neither HTTP nor journals can carry."""
    return text.encode(errors="backslashreplace").decode()


def _new_id(taken: set[str]) -> str:
    return next(i for n in count(len(taken)) if (i := f"call_{n}") not in taken)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
