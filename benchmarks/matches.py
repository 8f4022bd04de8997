"""How many matches an hour an engine plays: python benchmarks/matches.py.

Red-Black, 5 agents against 5, 10 rounds, against a sampler that answers 64 requests at a time, each
after 200 ms. 16 matches are played by our schedule, which the bound is compared with: the calls'
time on 64 places, or the time of a match's calls that wait for one another. RedBlackBench plays its
matches one after another; within a match it asks at once what can be asked at once, as we do, so a
match that is played alone takes as long there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop
from interleaved import HEAD, interleaved, machine, paired_ratio, row, say

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import Model
from enginehouse.arena.records import AgentSpec, ExperimentSpec, ModelSpec, TeamSpec
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.games.registry import make_game
from enginehouse.store.layout import Layout
from enginehouse.store.runs import create_run

_AGENTS, _ROUNDS, _MATCHES = 5, 10, 16
_PLACES, _SECONDS = 64, 0.2
_SEATS = ("team_a", "team_b")
_PROVENANCE = Provenance(
    engine=None,
    engine_version=None,
    engine_arguments=None,
    environment=None,
    model="fixed",
    weights_digest=None,
    chat_template_digest=None,
    base_url="http://localhost",
)


class FixedSampler:
    """Answers a bounded number of requests at a time, each after a fixed time."""

    capabilities = Capabilities(supports=frozenset(Capability))

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_PLACES)

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """A valid answer."""
        structured = request.parameters.structured
        if structured is None:
            text = "I think that BLACK is best for all of us, whatever the others do."
        else:
            text = "1" if structured.choice else '{"reasoning": "", "vote": "BLACK"}'
        async with self._places:
            await asyncio.sleep(_SECONDS)
        return SampleResponse(
            completions=(Completion(text=text, finish_reason="stop"),),
            model="fixed",
            request_id="",
            prompt_tokens=500,
            completion_tokens=20,
            timing=Timing(started=0, elapsed=_SECONDS),
        )

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Not asked for."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Not asked for."""
        raise NotImplementedError


async def _play(matches: int) -> float:
    agents = (AgentSpec(kind="llm", model="fixed"),) * _AGENTS
    spec = ExperimentSpec(
        name="benchmark",
        game="red_black",
        settings={"num_rounds": _ROUNDS},
        seats=_SEATS,
        models=(ModelSpec(name="fixed"),),
        teams=tuple(TeamSpec(name=name, agents=agents) for name in _SEATS),
        pairings=(_SEATS,),
        matches=matches,
    )
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(cache=Path(folder), state=Path(folder), config=Path(folder))
        run = create_run(layout, model="fixed", tasks=["red_black"], config="", versions={})
        model = Model(sampler=FixedSampler(), provenance=_PROVENANCE, slots=_PLACES)
        game = make_game(spec.game, spec.settings, seats=_SEATS)
        began = time.perf_counter()
        await play_experiment(spec, game=game, models={"fixed": model}, run=run)
        return time.perf_counter() - began


def _per_hour(matches: int) -> float:
    cpu = time.process_time()
    seconds = uvloop.run(_play(matches))
    calls = matches * _ROUNDS * _AGENTS * (_AGENTS + 5)
    say(f"{(time.process_time() - cpu) / calls * 1e6:,.0f} µs of CPU per call")
    return matches / seconds * 3600


def main(arguments: Sequence[str]) -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    asked = parser.parse_args(arguments)
    say(machine())
    calls = _MATCHES * _ROUNDS * _AGENTS * (_AGENTS + 5)
    steps = max(calls / _PLACES, _ROUNDS * (2 * _AGENTS + 1))
    bound = _MATCHES / (steps * _SECONDS) * 3600
    say(f"the bound: {bound:,.0f} matches per hour")
    ours, alone = interleaved(
        {"16 at once": lambda: _per_hour(_MATCHES), "one alone": lambda: _per_hour(1)},
        rounds=asked.rounds,
    ).values()
    print(HEAD)
    figure = f"matches per hour, {_MATCHES} of {_AGENTS} against {_AGENTS}"
    print(row(f"{figure} / one after another", paired_ratio(ours, alone), at_least=8))
    print(row(f"{figure} / bound", paired_ratio(ours, [bound] * len(ours)), at_least=0.85))


if __name__ == "__main__":
    main(sys.argv[1:])
