"""A program that plays an experiment until it is done or killed: `RUN_FOLDER SEED [WRITE HOW]`."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import Model
from enginehouse.core.errors import BadRequestError
from enginehouse.games.registry import make_game
from enginehouse.store.layout import Layout
from enginehouse.store.runs import open_run
from tests.support.arena_fakes import (
    FakeModel,
    provenance,
    question_of,
    red_black,
    team,
    vote_for,
)
from tests.support.resumable_evaluation import die_at

SPEC = red_black(
    team("red", size=3),
    team("black", size=2),
    team("scripts", "tit for tat"),
    matches=4,
    seed=5,
    pairings=(("red", "black"), ("black", "red"), ("scripts", "red"), ("scripts", "scripts")),
)


def reply(request):
    """A function of the request, as a seeded engine's answer is; a few requests are refused."""
    seed = request.parameters.seed or 0
    if seed % 211 == 0:
        return BadRequestError("refused", status=400)
    question = question_of(request)
    if "How much do you wish" in question:
        return str(seed % 5)
    if "your turn to speak" in question:
        return f"I say {seed}."
    return vote_for("RED" if seed % 3 else "BLACK")(request)


def models(seed: int) -> dict[str, Model]:
    """Who answers, taking up to 4 ms."""
    delays = random.Random(seed)
    return {
        name: Model(
            sampler=FakeModel(reply, seconds=lambda: delays.random() * 0.004),
            provenance=provenance(name),
        )
        for name in ("red", "black")
    }


def main() -> None:
    """Play, dying when told to."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        die_at(int(sys.argv[3]), sys.argv[4])
    run = open_run(Layout.from_environment(), str(folder))
    game = make_game(SPEC.game, SPEC.settings, seats=SPEC.seats)
    asyncio.run(play_experiment(SPEC, game=game, models=models(seed), run=run))


if __name__ == "__main__":
    main()
