from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from enginehouse.core.sampler import Completion, SampleResponse, Timing
from enginehouse.weights.gate import Gate

ANSWER = SampleResponse(
    completions=(Completion(text="x", finish_reason="stop"),),
    model="m",
    request_id="1",
    prompt_tokens=1,
    completion_tokens=1,
    timing=Timing(started=0, elapsed=0),
)


class Asked:
    """Attempts that end when told; counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.end = asyncio.Event()

    async def __call__(self) -> SampleResponse:
        """Wait for the end."""
        self.count += 1
        await self.end.wait()
        return ANSWER


async def settled() -> None:
    """Let every task go on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_weights_that_answered_are_named():
    """On samples; other results pass as they are."""
    gate = Gate("d1")

    async def other() -> str:
        return "x"

    asked = Asked()
    asked.end.set()
    assert (await gate.deliver(asked)).weights_digest == "d1"
    assert await gate.deliver(other) == "x"
    gate.open("d2")
    assert (await gate.deliver(asked)).weights_digest == "d2"


async def test_drained_requests_end_with_the_old_weights():
    """New ones wait, also while it closes, and get the new ones."""
    gate, old, new = Gate("old"), Asked(), Asked()
    under_way = asyncio.create_task(gate.deliver(old))
    await settled()
    closing = asyncio.create_task(gate.close("drain"))
    await settled()
    waiting = asyncio.create_task(gate.deliver(new))
    await settled()
    assert not closing.done()
    assert new.count == 0
    old.end.set()
    assert (await under_way).weights_digest == "old"
    await closing
    new.end.set()
    await settled()
    assert new.count == 0
    gate.open("new")
    assert (await waiting).weights_digest == "new"


async def test_aborted_requests_are_asked_again():
    """Their callers see one answer, of the new weights."""
    gate, asked = Gate("old"), Asked()
    under_way = asyncio.create_task(gate.deliver(asked))
    await settled()
    await gate.close("abort")
    assert not under_way.done()
    gate.open("new")
    asked.end.set()
    assert (await under_way).weights_digest == "new"
    assert asked.count == 2
    assert not under_way.cancelling()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_caller_that_leaves_is_no_lost_request(closed):
    """Neither under way, nor waiting, nor given up at the same moment."""
    gate, asked = Gate("old"), Asked()
    under_way = asyncio.create_task(gate.deliver(asked))
    await settled()
    if closed:
        closing = asyncio.create_task(gate.close("abort"))
        await asyncio.sleep(0)
    under_way.cancel()
    with suppress(asyncio.CancelledError):
        await under_way
    assert under_way.cancelled()
    if closed:
        await closing
    assert asked.count == 1


async def test_it_may_close_again_before_anybody_got_in():
    """Who waited for the first opening waits on."""
    gate, asked = Gate("a"), Asked()
    asked.end.set()
    await gate.close("drain")
    waiting = asyncio.create_task(gate.deliver(asked))
    await settled()
    gate.open("b")
    await gate.close("drain")
    await settled()
    assert asked.count == 0
    gate.open("c")
    assert (await waiting).weights_digest == "c"
