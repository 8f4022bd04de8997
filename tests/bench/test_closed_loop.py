from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from enginehouse.bench.closed_loop import TimedRequest, ask, run_closed_loop
from enginehouse.core.errors import MalformedResponseError, ServerFaultError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Capabilities, Delta, SampleRequest, Usage

REQUEST = SampleRequest(prompt=TokenPrompt((1, 2)))


class Scripted:
    """A Sampler whose stream is a list: pieces, errors to raise, and numbers that set the clock."""

    capabilities = Capabilities(supports=frozenset())

    def __init__(self, *script: Delta | float | Exception) -> None:
        self.script = script
        self.now = 10.0

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Play it."""
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Delta):
                yield step
            else:
                self.now = step

    async def sample(self, request: SampleRequest) -> Any:
        """Nobody asks."""
        raise NotImplementedError

    tokenize = sample

    async def ask(self) -> TimedRequest:
        """One request, by the script's clock."""
        return await ask(self, REQUEST, clock=lambda: self.now)


def token(*ids: int) -> Delta:
    """A piece with tokens."""
    return Delta(text="x" * len(ids), token_ids=ids)


async def test_times_are_those_of_chunks_with_tokens():
    """An empty opening and a bare ending carry no token; the usage is later than the last one."""
    timed = await Scripted(
        10.5,
        Delta(text="", token_ids=()),
        11.0,
        token(7),
        12.5,
        token(8, 9),
        13.0,
        token(10),
        13.2,
        Delta(text="", token_ids=(), finish_reason="length"),
        13.5,
        Delta(text="", usage=Usage(2, 4)),
        14.0,
    ).ask()
    assert timed.failure is None
    assert (timed.first_token, timed.end_to_end) == (1.0, 3.0)
    assert timed.gaps == [1.5, 0.5]
    assert (timed.started, timed.ended) == (10.0, 14.0)
    assert (timed.prompt_tokens, timed.output_tokens) == (2, 4)


async def test_token_ids_stand_in_for_the_usage():
    """Chunks are never counted: two ids in one are two tokens."""
    timed = await Scripted(token(1), token(2, 3)).ask()
    assert (timed.output_tokens, len(timed.chunks)) == (3, 2)


async def test_the_usage_goes_before_the_ids():
    """The server's own count holds."""
    timed = await Scripted(token(1), Delta(text="", usage=Usage(2, 5))).ask()
    assert timed.output_tokens == 5


async def test_text_without_ids_needs_the_usage():
    """A server that tells neither: no figure is better than a guess."""
    told = await Scripted(Delta(text="a"), Delta(text=""), Delta(text="", usage=Usage(2, 2))).ask()
    assert (told.failure, told.output_tokens, len(told.chunks)) == (None, 2, 1)
    untold = await Scripted(Delta(text="a"), token(1)).ask()
    assert isinstance(untold.failure, MalformedResponseError)
    assert "how many tokens" in untold.failure.message


async def test_an_answer_without_a_token_failed():
    """There is nothing to time."""
    timed = await Scripted(Delta(text="", usage=Usage(2, 0))).ask()
    assert isinstance(timed.failure, MalformedResponseError)


async def test_an_error_in_the_middle_is_kept():
    """The request failed, and is there with its error and its end."""
    timed = await Scripted(11.0, token(1), 12.0, ServerFaultError("died")).ask()
    assert isinstance(timed.failure, ServerFaultError)
    assert timed.ended == 12.0


class Counting(Scripted):
    """Keeps how many were asked at once; answers when as many as it waits for are there."""

    def __init__(self, *, full: int) -> None:
        super().__init__()
        self.full = full
        self.inside = self.most = 0
        self.crowded = asyncio.Event()
        self.both = asyncio.Event()

    async def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Wait for the others, then answer."""
        self.inside += 1
        self.most = max(self.most, self.inside)
        if self.inside == 2:
            self.both.set()
        if self.inside >= self.full:
            self.crowded.set()
        await self.crowded.wait()
        yield token(1)
        self.inside -= 1


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_as_many_are_in_flight_as_wanted(concurrency: int):
    """Never more; every request is asked once, failed or not, and told to the progress."""
    sampler = Counting(full=concurrency)
    told: list[TimedRequest] = []
    async with asyncio.timeout(10):
        done = await run_closed_loop(
            sampler, [REQUEST] * 9, concurrency=concurrency, progress=told.append
        )
    assert sampler.most == concurrency
    assert (len(done), told) == (9, done)


async def test_the_next_request_is_taken_when_there_is_room():
    """Requests are drawn one by one: a closed loop does not ask ahead."""
    drawn: list[int] = []

    def requests() -> Iterator[SampleRequest]:
        for number in range(5):
            drawn.append(number)
            yield REQUEST

    sampler = Counting(full=99)
    task = asyncio.create_task(run_closed_loop(sampler, requests(), concurrency=2))
    async with asyncio.timeout(10):
        await sampler.both.wait()
    assert drawn == [0, 1]
    sampler.crowded.set()
    assert len(await task) == 5
