"""What a game is. Each game is a file in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

import msgspec

from enginehouse.core.strict_model import StrictModel
from enginehouse.core.tool_calls import ToolDefinition

MOST_TURNS: Final = 10_000
"""The longest match that our games allow."""


class Pick(msgspec.Struct, frozen=True, kw_only=True, tag="pick", tag_field="decide"):
    """Decide for exactly one of `options`, which are distinct words or numbers."""

    options: tuple[str, ...]


class UseTool(msgspec.Struct, frozen=True, kw_only=True, tag="use_tool", tag_field="decide"):
    """Decide by calling one of `tools`.

    At least one needs no arguments: an agent that gives no valid answer calls the last of these.
    """

    tools: tuple[ToolDefinition, ...]

    @property
    def default(self) -> ToolAction:
        """What an agent does that gives no valid answer."""
        free = [tool for tool in self.tools if not tool.parameters.get("required")]
        return ToolAction(free[-1].name, {})


Decision = Pick | UseTool


class ToolAction(msgspec.Struct, frozen=True):
    """A call of one of the offered tools, with arguments that fit its schema."""

    name: str
    arguments: Mapping[str, Any]


Action = str | ToolAction
"""One of a Pick's options, or a call of one of a UseTool's tools."""


class MeasureInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that a finished match gives for each seat: its name, meaning and range."""

    name: str
    description: str
    lowest: float | None = None
    highest: float | None = None


class GameInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `enginehouse play --list` shows.

    `least_seats` and `most_seats` bound the number of teams; `teams` says whether a seat may hold
    several agents, who then deliberate. `version` changes whenever prompts, rules or measures do,
    so that figures of different versions are never compared.
    """

    name: str
    version: int
    description: str
    least_seats: int
    most_seats: int
    teams: bool
    measures: tuple[MeasureInfo, ...]


class Game(Protocol):
    """One game with its settings, for named seats. Every method is pure.

    Constructed as `GameClass(settings, seats=("team_a", "team_b"))`; raises ConfigurationError for
    settings or seats that do not fit. A state is a frozen value of the game's own choosing. In one
    turn, all seats that `decisions` names decide at the same time.
    """

    info: ClassVar[GameInfo]
    Settings: ClassVar[type[StrictModel]]
    """The configuration's `game:` block, without its `name`."""

    def __init__(self, settings: Any, *, seats: tuple[str, ...]) -> None: ...

    def rules(self) -> str:
        """The rules in words, rendered from the settings; the same for every seat and turn."""
        ...

    def start(self, seed: int) -> Any:
        """The state before the first turn. The same seed gives the same state."""
        ...

    def decisions(self, state: Any) -> Mapping[str, Decision]:
        """What each seat must decide now; empty when the game is over."""
        ...

    def history(self, state: Any, seat: str) -> tuple[str, ...]:
        """What the seat knows of past turns, in words, one text for each.

        Texts are only ever appended: earlier ones never change.
        """
        ...

    def situation(self, state: Any, seat: str) -> str:
        """What the seat perceives now, and what it is asked to decide, in words."""
        ...

    def apply(self, state: Any, actions: Mapping[str, Action]) -> Any:
        """The state after one turn, given the action of every seat that `decisions` names.

        Raises ValueError for an action that was not offered.
        """
        ...

    def past_actions(self, state: Any) -> tuple[Mapping[str, Action], ...]:
        """Every seat's action in each past turn, for agents that follow a script."""
        ...

    def scores(self, state: Any) -> Mapping[str, float]:
        """Every seat's score so far."""
        ...

    def measures(self, state: Any) -> Mapping[str, Mapping[str, float | None]]:
        """By seat, the measures of a finished match by name; None where a measure has no value."""
        ...

    def welfare(self, state: Any) -> tuple[float, float | None]:
        """The total of all scores, and the largest total that the settings allow.

        None if that is not known. (JSON has no nan.)
        """
        ...
