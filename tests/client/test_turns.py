"""Requests that must be alone, and the others."""

from __future__ import annotations

import asyncio
import random

import pytest

from enginehouse.client.turns import Turns
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest

ALONE = SampleRequest(prompt=TextPrompt("alone"))
ANY = SampleRequest(prompt=TextPrompt("any"))


@pytest.fixture
def turns() -> Turns:
    """Those that say so are alone."""
    return Turns(lambda request: request is ALONE)


class Visit:
    """A request that is under way until it is told to end."""

    def __init__(self, turns: Turns, request: SampleRequest) -> None:
        self.inside = False
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._go(turns, request))

    async def _go(self, turns: Turns, request: SampleRequest) -> None:
        async with turns.of(request):
            self.inside = True
            await self._end.wait()
        self.inside = False

    async def end(self) -> None:
        """Let it end."""
        self._end.set()
        await self._task

    async def give_up(self) -> None:
        """Cancel it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_others_share_and_one_that_must_be_alone_waits_for_them(turns: Turns):
    """Who comes after it waits for it in turn, so that it is not kept out for good."""
    first, second = Visit(turns, ANY), Visit(turns, ANY)
    await settled()
    assert first.inside
    assert second.inside
    alone, late = Visit(turns, ALONE), Visit(turns, ANY)
    await settled()
    assert (alone.inside, late.inside) == (False, False)
    await first.end()
    await settled()
    assert not alone.inside
    await second.end()
    await settled()
    assert (alone.inside, late.inside) == (True, False)
    await alone.end()
    await settled()
    assert late.inside
    await late.end()


async def test_one_that_gives_up_while_it_waits_holds_nobody_up(turns: Turns):
    """Nor does one that gives up in the moment in which it is let in."""
    first, alone, late = Visit(turns, ANY), Visit(turns, ALONE), Visit(turns, ANY)
    await settled()
    await alone.give_up()
    await settled()
    assert late.inside
    await late.end()
    other = Visit(turns, ALONE)
    await settled()
    await first.end()  # `other` is let in, and has not run yet
    await other.give_up()
    last = Visit(turns, ALONE)
    await settled()
    assert last.inside
    await last.end()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_and_goes_nobody_meets_one_that_is_alone(turns: Turns, seed: int):
    """Two hundred requests, some given up; in the end all had their turn."""
    rng = random.Random(seed)
    inside: list[SampleRequest] = []
    ended = 0

    async def ask(request: SampleRequest) -> None:
        nonlocal ended
        async with turns.of(request):
            inside.append(request)
            assert ALONE not in inside or inside == [ALONE]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            inside.remove(request)
        ended += 1

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.create_task(ask(rng.choice((ALONE, ANY, ANY)))))
        await asyncio.sleep(0)
    given_up = rng.sample(tasks, 20)
    for task in given_up:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [e for e in done if e is not None and not isinstance(e, asyncio.CancelledError)]
    assert ended == sum(e is None for e in done) >= 180
