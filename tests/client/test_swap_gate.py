"""Requests and changes of weights, without a server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from tests.support.layers import Below, exchange, settled

from enginehouse.client.swap_gate import SwapGate
from enginehouse.core.errors import ServerFaultError


async def test_the_weights_that_answered_are_named():
    """Those of the time at which the answer was whole."""
    gate, below = SwapGate("d1"), Below()
    below.end.set()
    assert (await gate.send(exchange(), below)).weights_digest == "d1"
    gate.open("d2")
    assert (await gate.send(exchange(), below)).weights_digest == "d2"


async def test_drained_requests_end_with_the_old_weights():
    """New ones wait, also while it closes, and get the new ones."""
    gate, old, new = SwapGate("old"), Below(), Below()
    in_flight = asyncio.create_task(gate.send(exchange(), old))
    await settled()
    closing = asyncio.create_task(gate.close("drain"))
    await settled()
    waiting = asyncio.create_task(gate.send(exchange(), new))
    await settled()
    assert not closing.done()
    assert not new.attempts
    old.end.set()
    assert (await in_flight).weights_digest == "old"
    await closing
    new.end.set()
    await settled()
    assert not new.attempts
    gate.open("new")
    assert (await waiting).weights_digest == "new"


async def test_aborted_requests_are_sent_again():
    """Their callers see one answer, of the new weights; their tasks are never cancelled."""
    gate, below = SwapGate("old"), Below()
    in_flight = asyncio.create_task(gate.send(exchange(), below))
    await settled()
    await gate.close("abort")
    assert not in_flight.done()
    assert below.cancelled == 1
    gate.open("new")
    below.end.set()
    assert (await in_flight).weights_digest == "new"
    assert len(below.attempts) == 2
    assert not in_flight.cancelling()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_caller_that_leaves_is_no_aborted_request(closed):
    """Neither in flight, nor waiting, nor aborted at the same moment."""
    gate, below = SwapGate("old"), Below()
    in_flight = asyncio.create_task(gate.send(exchange(), below))
    await settled()
    if closed:
        closing = asyncio.create_task(gate.close("abort"))
        await asyncio.sleep(0)
    in_flight.cancel()
    with suppress(asyncio.CancelledError):
        await in_flight
    assert in_flight.cancelled()
    if closed:
        await closing
    assert len(below.attempts) == 1


async def test_a_caller_that_leaves_while_the_gate_is_closed():
    """It is never sent, and nothing waits for it."""
    gate, below = SwapGate("old"), Below()
    await gate.close("drain")
    waiting = asyncio.create_task(gate.send(exchange(), below))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    gate.open("new")
    await settled()
    assert not below.attempts
    await gate.close("drain")


async def test_a_caller_that_leaves_just_as_a_stream_begins():
    """The stream is closed, so that what lower layers hold for it is free again."""
    gate, below = SwapGate("old"), Below()
    in_flight = asyncio.create_task(gate.send(exchange(streamed=True), below))
    await settled()
    below.end.set()
    await asyncio.sleep(0)  # the attempt has ended, and its caller has not run yet
    in_flight.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_flight
    await settled()
    assert below.closed == 1
    await gate.close("drain")


async def test_a_stream_counts_until_it_begins():
    """A reader who takes his time does not hold a swap up."""
    gate, below = SwapGate("old"), Below()
    below.end.set()
    reply = await gate.send(exchange(streamed=True), below)
    await gate.close("abort")
    assert below.closed == 0
    reply.close()
    assert below.closed == 1


async def test_an_error_is_the_callers():
    """And leaves nothing in flight."""
    gate, below = SwapGate("old"), Below(ServerFaultError("no"))
    below.end.set()
    with pytest.raises(ServerFaultError):
        await gate.send(exchange(), below)
    await gate.close("drain")


async def test_it_may_close_again_before_anybody_got_in():
    """Who waited for the first opening waits on."""
    gate, below = SwapGate("a"), Below()
    below.end.set()
    await gate.close("drain")
    waiting = asyncio.create_task(gate.send(exchange(), below))
    await settled()
    gate.open("b")
    await gate.close("drain")
    await settled()
    assert not below.attempts
    gate.open("c")
    assert (await waiting).weights_digest == "c"
