"""Whether matches keep an engine full: python benchmarks/full_engine.py.

Serves SmolLM2 (the environment is built on first use) with room for --places sequences, plays
Red-Black, and reads the server's queue four times a second: from the first full batch on, as long
as more teams are left than places, each of which always waits for at least one answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean as average

import uvloop
from interleaved import HEAD, machine, mean, row, say

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import Model, slots_for
from enginehouse.arena.records import AgentSpec, ExperimentSpec, ModelSpec, TeamSpec
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.opening import serve
from enginehouse.games.registry import make_game
from enginehouse.results.experiment_progress import ExperimentProgress
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run

_SEATS = ("team_a", "team_b")


class Watch:
    """The server's running requests while enough matches are left."""

    def __init__(self, deployment: Deployment, *, places: int, matches: int) -> None:
        self.running: list[int] = []
        self._deployment = deployment
        self._places = places
        self._left = matches

    def see(self, progress: ExperimentProgress) -> None:
        """Note how many matches are left."""
        self._left = progress.matches - progress.finished - progress.failed

    async def read(self) -> None:
        """Read the queue until cancelled."""
        while True:
            await asyncio.sleep(0.25)
            load = await self._deployment.sampler.load()
            assert load is not None
            started = self.running or load.running >= self._places
            if started and self._left * len(_SEATS) > self._places:
                self.running.append(load.running)


async def _share(asked: argparse.Namespace) -> float:
    agents = (AgentSpec(kind="llm", model="smollm2"),) * asked.agents
    parameters = SamplingParameters(temperature=0.7, max_tokens=asked.tokens)
    spec = ExperimentSpec(
        name="benchmark",
        game="red_black",
        settings={"num_rounds": asked.turns},
        seats=_SEATS,
        models=(ModelSpec(name="smollm2", parameters=parameters),),
        teams=tuple(TeamSpec(name=name, agents=agents) for name in _SEATS),
        pairings=(_SEATS,),
        matches=asked.matches,
    )
    slots = slots_for(asked.places)
    serving = serve("smollm2", notify=say, concurrency=slots, max_num_seqs=asked.places)
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(cache=Path(folder), state=Path(folder), config=Path(folder))
        run = create_run(layout, model="smollm2", tasks=["red_black"], config="", versions={})
        async with serving as deployment:
            model = Model(sampler=deployment.sampler, provenance=deployment.provenance, slots=slots)
            watch = Watch(deployment, places=asked.places, matches=asked.matches)
            reading = asyncio.create_task(watch.read())
            await play_experiment(
                spec,
                game=make_game(spec.game, spec.settings, seats=_SEATS),
                models={"smollm2": model},
                run=run,
                progress=watch.see,
            )
            reading.cancel()
    say(f"{len(watch.running)} readings: {watch.running}")
    return average(watch.running) / asked.places


def main(arguments: Sequence[str]) -> None:
    """Measure and print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--places", type=int, default=16, help="max_num_seqs of the server")
    parser.add_argument("--matches", type=int, default=24)
    parser.add_argument("--agents", type=int, default=2, help="in each team")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96, help="at most, in an answer")
    asked = parser.parse_args(arguments)
    say(machine())
    shares = [uvloop.run(_share(asked)) for _ in range(asked.rounds)]
    print(HEAD)
    print(row("running requests / max_num_seqs of a real vLLM", mean(shares), at_least=0.9))


if __name__ == "__main__":
    main(sys.argv[1:])
