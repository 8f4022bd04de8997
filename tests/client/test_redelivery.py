"""What a dead engine took with it is sent to the next one, without an engine."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.layers import Below, exchange, settled

from enginehouse.client.admission import Admission
from enginehouse.client.redelivery import Redelivery
from enginehouse.core.errors import BadRequestError, ConnectionFailedError, ServerGoneError


def redelivery() -> tuple[Redelivery, Admission]:
    """The layer, open."""
    admission = Admission()
    layer = Redelivery(admission=admission, patience=60.0)
    layer.resume()
    return layer, admission


async def test_a_request_refused_while_the_server_goes_down_is_a_lost_one():
    """It is told nothing until the server is judged: then it is lost, and sent again."""
    below = Below(ConnectionFailedError("refused"))
    layer, admission = redelivery()
    below.end.set()
    sending = asyncio.create_task(layer.send(exchange(), below))
    assert len(await layer.suspects(within=60.0)) == 1
    (call,) = admission.in_flight
    assert layer.interrupt("it died") == 1
    await settled()
    assert (call.deaths, sending.done(), len(below.attempts)) == (1, False, 1)
    assert not await layer.suspects(within=0.0)
    below.answer = "from the next server"
    layer.resume()
    assert (await sending).answer == "from the next server"
    assert not sending.cancelling()
    assert not admission.in_flight


async def test_a_server_that_works_leaves_a_failure_as_it_is():
    """Only what failed before the look that found it working is acquitted by it."""
    below = Below(ConnectionFailedError("refused"))
    layer, admission = redelivery()
    below.end.set()
    first = asyncio.create_task(layer.send(exchange(), below))
    suspects = await layer.suspects(within=60.0)
    second = asyncio.create_task(layer.send(exchange(), below))
    await settled()
    layer.acquit(suspects)
    with pytest.raises(ConnectionFailedError):
        await first
    assert not second.done()
    assert layer.answered is False
    layer.acquit(await layer.suspects(within=60.0))
    with pytest.raises(ConnectionFailedError):
        await second
    assert not admission.in_flight


async def test_a_failure_that_nobody_judges_stands_after_a_while():
    """A supervisor that hangs holds nobody up for longer than a server's patience."""
    below = Below(ConnectionFailedError("refused"))
    layer = Redelivery(admission=Admission(), patience=0.05)
    layer.resume()
    below.end.set()
    with pytest.raises(ConnectionFailedError):
        await layer.send(exchange(), below)


@pytest.mark.parametrize("moment", ["in flight", "redelivered", "waiting", "dying"])
async def test_a_caller_that_leaves(moment: str):
    """Ends at once, whatever happens to its request meanwhile, and keeps nobody out."""
    below = Below(ConnectionFailedError("refused") if moment == "dying" else "answer")
    layer, admission = redelivery()
    if moment == "dying":
        below.end.set()
    sending = asyncio.create_task(layer.send(exchange(), below))
    await settled()
    if moment in ("redelivered", "waiting"):
        layer.interrupt("it died")
        await settled()
    if moment == "redelivered":
        layer.resume()
        await settled()
        assert len(below.attempts) == 2
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not admission.in_flight
    if moment == "waiting":
        layer.resume()
    await settled()
    assert len(below.attempts) == 1 + (moment == "redelivered")


async def test_a_caller_that_leaves_just_as_its_request_is_lost():
    """The cancellation is not taken for the loss: nothing is sent again."""
    below = Below()
    layer, admission = redelivery()
    sending = asyncio.create_task(layer.send(exchange(), below))
    await settled()
    layer.interrupt("it died")
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    layer.resume()
    await settled()
    assert (len(below.attempts), admission.in_flight) == (1, set())


async def test_a_stream_is_in_flight_until_it_is_closed():
    """It was present at a death that it lived to see, but is not sent again: it breaks off."""
    below = Below()
    layer, admission = redelivery()
    below.end.set()
    replies = [await layer.send(exchange(streamed=True), below) for _ in range(2)]
    assert len(admission.in_flight) == 2
    replies[0].close()
    assert len(admission.in_flight) == 1
    assert layer.interrupt("it died") == 1
    assert not admission.in_flight
    replies[1].close()
    assert len(below.attempts) == 2


async def test_given_up_while_the_server_is_judged():
    """Who waits for the judgement is told why there is none."""
    below = Below(ConnectionFailedError("refused"))
    layer, _ = redelivery()
    below.end.set()
    sending = asyncio.create_task(layer.send(exchange(), below))
    await settled()
    layer.close_for_good(ServerGoneError("over"))
    with pytest.raises(ServerGoneError, match="over"):
        await sending


async def test_a_refusal_is_an_answer_but_no_sign_of_work():
    """A front end can refuse requests while its engine hangs."""
    below = Below(BadRequestError("no"))
    layer, _ = redelivery()
    below.end.set()
    with pytest.raises(BadRequestError):
        await layer.send(exchange(), below)
    assert (layer.answered, layer.last_answer) == (True, 0.0)
    below.answer = "yes"
    await layer.send(exchange(), below)
    assert layer.last_answer > 0
