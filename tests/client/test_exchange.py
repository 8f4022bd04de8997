"""Attempts, one within another, as layers make them."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.layers import Below, exchange, settled

from enginehouse.client.exchange import Attempt, Reply


async def attempted(attempt: Attempt) -> Reply | None:
    """What came of it, by a task whose own cancellations must not be affected."""
    outcome = await attempt.reply()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return outcome


async def test_an_aborted_attempt():
    """Its work is interrupted, and its task goes on; a second abort changes nothing."""
    below = Below()
    attempt = Attempt(below(exchange()))
    task = asyncio.create_task(attempted(attempt))
    await settled()
    assert attempt.abort()
    assert attempt.abort()
    assert await task is None
    assert below.cancelled == 1
    assert not attempt.abort()


async def test_an_attempt_that_has_ended():
    """There is nothing to abort: the reply stands."""
    below = Below()
    below.end.set()
    attempt = Attempt(below(exchange()))
    assert await attempted(attempt) is not None
    assert not attempt.abort()


@pytest.mark.parametrize("outer_first", [True, False])
async def test_an_attempt_within_another(outer_first):
    """If both are aborted at once, the outer one's owner decides what is next."""
    below = Below()
    inner = Attempt(below(exchange()))
    goes_on = []

    async def layer() -> Reply:
        reply = await inner.reply()
        goes_on.append(reply)
        return await below(exchange())

    outer = Attempt(layer())
    task = asyncio.create_task(attempted(outer))
    await settled()
    for attempt in (outer, inner) if outer_first else (inner, outer):
        assert attempt.abort()
    assert await task is None
    assert not goes_on


async def test_only_the_inner_attempt_is_aborted():
    """Its owner tries again, and the outer one knows nothing of it."""
    below = Below()
    inner = Attempt(below(exchange()))

    async def layer() -> Reply:
        assert await inner.reply() is None
        return await below(exchange())

    task = asyncio.create_task(attempted(Attempt(layer())))
    await settled()
    inner.abort()
    await settled()
    below.end.set()
    assert await task is not None


@pytest.mark.parametrize("aborted_first", [True, False])
async def test_a_cancellation_beside_an_abort(aborted_first):
    """It is still one."""
    below = Below()
    attempt = Attempt(below(exchange()))
    task = asyncio.create_task(attempted(attempt))
    await settled()
    for interrupt in (
        (attempt.abort, task.cancel) if aborted_first else (task.cancel, attempt.abort)
    ):
        interrupt()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_out_within_an_attempt():
    """Which expires as it is aborted: the abort counts."""

    async def work() -> Reply:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        raise AssertionError

    attempt = Attempt(work())
    task = asyncio.create_task(attempted(attempt))
    await asyncio.sleep(0)
    assert attempt.abort()
    assert await task is None
