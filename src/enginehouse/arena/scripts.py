"""Agents that follow a script instead of asking a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.games.base import Action, Decision, Pick, ToolAction

_ALWAYS: Final = "always "
_OPENING: Final = "BLACK"  # what tit for tat begins with: the option that is best for both
NAMES: Final = ("always OPTION", "tit for tat", "random")

Past = Sequence[Mapping[str, Action]]
"""Every seat's action in each past turn."""


@dataclass(frozen=True)
class Position:
    """What a script decides about: one seat's decision and the past; `seed` is for drawing."""

    seat: str
    decision: Decision
    past: Past
    seed: str


Script = Callable[[Position], Action]


def make_script(name: str) -> Script:
    """The script called `name`: "always OPTION", "tit for tat" or "random".

    Raises UnknownNameError. A script raises ConfigurationError in a game that it does not suit.
    """
    if name.startswith(_ALWAYS):
        return _Always(name.removeprefix(_ALWAYS))
    if name in _SCRIPTS:
        return _SCRIPTS[name]
    raise UnknownNameError("script", name, NAMES)


@dataclass(frozen=True)
class _Always:
    """One option, or one tool without arguments, in every turn."""

    option: str

    def __call__(self, position: Position) -> Action:
        known = _choices(position.decision)
        if self.option not in known:
            raise UnknownNameError("option", self.option, known)
        return known[self.option]


def _random(position: Position) -> Action:
    known = _choices(position.decision)
    return known[random.Random(position.seed).choice(sorted(known))]


def _tit_for_tat(position: Position) -> Action:
    if not position.past:
        return _Always(_OPENING)(position)
    last = position.past[-1]
    others = [action for seat, action in last.items() if seat != position.seat]
    if len(others) != 1:
        raise ConfigurationError(
            "tit for tat needs exactly one opponent",
            fix="use another script, such as 'always OPTION' or 'random'",
        )
    return others[0]


_SCRIPTS: Final[Mapping[str, Script]] = {"tit for tat": _tit_for_tat, "random": _random}


def _choices(decision: Decision) -> Mapping[str, Action]:
    """What a script can decide, by name: the options, or the tools that need no arguments."""
    if isinstance(decision, Pick):
        return {option: option for option in decision.options}
    return {
        tool.name: ToolAction(tool.name, {})
        for tool in decision.tools
        if not tool.parameters.get("required")
    }
