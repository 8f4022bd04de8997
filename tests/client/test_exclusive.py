"""Exclusive requests, and the others."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.support.layers import Below, exchange, settled, whole_reply

from enginehouse.client.exchange import Exchange, Layer, Reply
from enginehouse.client.exclusive import ExclusiveRequests, SeparatedScores
from enginehouse.core.errors import ConnectionFailedError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters

ALONE = SampleRequest(prompt=TextPrompt("alone"))
ANY = SampleRequest(prompt=TextPrompt("any"))
NAMED = SampleRequest(
    prompt=TextPrompt("named"),
    parameters=SamplingParameters(logprobs=2, extra={"logprob_token_ids": [7]}),
)
CANDIDATES = SampleRequest(
    prompt=TextPrompt("candidates"), parameters=SamplingParameters(logprobs=1)
)


@pytest.fixture
def layer() -> ExclusiveRequests:
    """One request is exclusive."""
    return ExclusiveRequests(lambda request: request is ALONE)


class Visit:
    """A request that is in flight until it is told to end."""

    def __init__(self, layer: Layer, request: SampleRequest) -> None:
        self._below = Below()
        self._task = asyncio.create_task(layer.send(exchange(request), self._below))

    @property
    def inside(self) -> bool:
        """Whether it is in flight."""
        return bool(self._below.attempts) and not self._task.done()

    async def end(self) -> None:
        """Let it end."""
        self._below.end.set()
        await self._task

    async def give_up(self) -> None:
        """Cancel it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_the_others_share_and_one_that_must_be_alone_waits_for_them(layer: ExclusiveRequests):
    """Who comes after it waits for it in turn, so that it is not kept out for good."""
    first, second = Visit(layer, ANY), Visit(layer, ANY)
    await settled()
    assert first.inside
    assert second.inside
    alone, late = Visit(layer, ALONE), Visit(layer, ANY)
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


async def test_one_that_gives_up_while_it_waits_holds_nobody_up(layer: ExclusiveRequests):
    """Nor does one that gives up in the moment in which it is let in."""
    first, alone, late = Visit(layer, ANY), Visit(layer, ALONE), Visit(layer, ANY)
    await settled()
    await alone.give_up()
    await settled()
    assert late.inside
    await late.end()
    other = Visit(layer, ALONE)
    await settled()
    await first.end()  # `other` is let in, and has not run yet
    await other.give_up()
    last = Visit(layer, ALONE)
    await settled()
    assert last.inside
    await last.end()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_comes_and_goes_nobody_meets_one_that_is_alone(
    layer: ExclusiveRequests, seed: int
):
    """Two hundred requests, some given up; in the end all had their turn."""
    rng = random.Random(seed)
    inside: list[SampleRequest] = []
    ended = 0

    async def visit(asked: Exchange) -> Reply:
        assert asked.sample is not None
        inside.append(asked.sample)
        try:
            assert ALONE not in inside or inside == [ALONE]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            inside.remove(asked.sample)
        return whole_reply()

    async def ask(request: SampleRequest) -> None:
        nonlocal ended
        await layer.send(exchange(request), visit)
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


async def test_a_stream_is_in_flight_until_it_is_closed(layer: ExclusiveRequests):
    """Read or not."""
    below = Below()
    below.end.set()
    reply = await layer.send(exchange(ANY, streamed=True), below)
    alone = Visit(layer, ALONE)
    await settled()
    assert not alone.inside
    reply.close()
    await settled()
    assert (alone.inside, below.closed) == (True, 1)
    reply.close()
    await alone.end()


async def test_an_error_lets_the_next_one_in(layer: ExclusiveRequests):
    """And requests that generate nothing need not wait."""
    failing = Below(ConnectionFailedError("refused"))
    task = asyncio.create_task(layer.send(exchange(ALONE), failing))
    await settled()
    other, listing = Visit(layer, ANY), Below()
    listing.end.set()
    assert (await layer.send(exchange(), listing)).answer == "answer"
    assert not other.inside
    failing.end.set()
    with pytest.raises(ConnectionFailedError):
        await task
    await settled()
    assert other.inside
    await other.end()


async def test_two_groups_are_kept_apart_and_the_others_pass():
    """Of a group any number is in flight; who conflicts with it waits, in turn."""
    first, second = NAMED, CANDIDATES
    layer = SeparatedScores()
    inside = [Visit(layer, first), Visit(layer, first), Visit(layer, ANY)]
    await settled()
    waiting = Visit(layer, second)
    late = Visit(layer, first)
    other = Visit(layer, ANY)
    await settled()
    assert all(visit.inside for visit in (*inside, other))
    assert (waiting.inside, late.inside) == (False, False)
    await inside[0].end()
    await settled()
    assert (waiting.inside, late.inside) == (False, False)
    await inside[1].end()
    await settled()
    assert (waiting.inside, late.inside) == (True, False)
    await waiting.end()
    await settled()
    assert late.inside
    for visit in (inside[2], other, late):
        await visit.end()


async def test_one_of_a_group_that_gives_up_lets_the_next_one_in():
    """Its place in the queue is not kept."""
    first, second = NAMED, CANDIDATES
    layer = SeparatedScores()
    inside, waiting, late = Visit(layer, first), Visit(layer, second), Visit(layer, first)
    await settled()
    await waiting.give_up()
    await settled()
    assert late.inside
    await inside.end()
    await late.end()
