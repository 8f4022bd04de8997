"""Plays scripted matches, then prints seconds and peak memory in MB (10⁶ bytes): COUNT."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from our_memory import peak

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.records import AgentSpec, ExperimentSpec, TeamSpec
from enginehouse.games.registry import make_game
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run

_SEATS = ("team_a", "team_b")
_TEAMS = {"copies": "tit for tat", "draws": "random"}


def main(matches: int) -> None:
    """Play ten rounds of Red-Black in every match."""
    spec = ExperimentSpec(
        name="benchmark",
        game="red_black",
        settings={},
        seats=_SEATS,
        teams=tuple(
            TeamSpec(name=name, agents=(AgentSpec(kind=script),) * 5)
            for name, script in _TEAMS.items()
        ),
        pairings=(tuple(_TEAMS), tuple(reversed(_TEAMS))),
        matches=matches // 2,
    )
    game = make_game(spec.game, spec.settings, seats=_SEATS)
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(cache=Path(folder), state=Path(folder), config=Path(folder))
        run = create_run(layout, model="scripts", tasks=["red_black"], config="", versions={})
        began = time.perf_counter()
        asyncio.run(play_experiment(spec, game=game, models={}, run=run))
        print(time.perf_counter() - began, peak())


if __name__ == "__main__":
    main(int(sys.argv[1]))
