"""The games there are, and how a name and settings become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.registry import Registry
from enginehouse.core.strict_model import explain
from enginehouse.games.base import Game, GameInfo
from enginehouse.runtime.context import Notify

_METHODS = (
    "rules",
    "start",
    "decisions",
    "history",
    "situation",
    "apply",
    "past_actions",
    "scores",
    "measures",
    "welfare",
)


def problem_of(name: str, game_class: Any) -> str | None:
    """What is wrong with a plug-in's game; None if nothing is."""
    missing = [
        member
        for member in ("info", "Settings", *_METHODS)
        if getattr(game_class, member, None) in (None, getattr(Game, member, None))
    ]
    if missing:
        return f"lacks: {', '.join(missing)}"
    if game_class.info.name != name:
        return f"is called {game_class.info.name} in its info: the entry point needs the same name"
    return None


GAMES: Final = Registry(
    "game",
    {
        "foraging": "enginehouse.games.foraging:Foraging",
        "public_goods": "enginehouse.games.public_goods:PublicGoods",
        "red_black": "enginehouse.games.red_black:RedBlack",
    },
    group="enginehouse.games",
    problem=problem_of,
)


def make_game(name: str, settings: Mapping[str, Any], *, seats: tuple[str, ...]) -> Game:
    """The game called `name` for these seats; `settings` are its configuration's keys.

    Raises UnknownNameError, and ConfigurationError for settings or seats that do not fit.
    """
    game_class = GAMES.load(name)
    try:
        parsed = game_class.Settings.model_validate(settings)
    except ValidationError as error:
        lines = explain(error, game_class.Settings)
        raise ConfigurationError(
            f"game {name}: {lines[0]}"
            if len(lines) == 1
            else f"game {name}:\n  " + "\n  ".join(lines),
            fix="docs/reference.md lists the keys of each game",
        ) from error
    game: Game = game_class(parsed, seats=seats)
    return game


def list_games(*, notify: Notify = lambda _: None) -> tuple[GameInfo, ...]:
    """Facts about every registered game. `notify` hears of plug-ins that cannot be loaded."""
    loaded = GAMES.load_all(on_error=lambda error: notify(str(error)))
    return tuple(game_class.info for game_class in loaded)
