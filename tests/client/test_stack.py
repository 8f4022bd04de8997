"""The whole stack of layers over a transport without a network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from tests.support.layers import settled

from enginehouse.client.admission import Admission
from enginehouse.client.concurrency import ConcurrencyLimit
from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.client.exclusive import ExclusiveRequests
from enginehouse.client.pacing import Pacing
from enginehouse.client.redelivery import Redelivery
from enginehouse.client.retry import Retries, Retrying
from enginehouse.client.stack import ServerLayers, WireLayer, build_stack
from enginehouse.client.swap_gate import SwapGate
from enginehouse.client.transport import WireReply, WireRequest
from enginehouse.client.wire import OPENAI
from enginehouse.core.errors import ConnectionFailedError, MalformedResponseError, ServerFaultError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest

ALONE = SampleRequest(prompt=TextPrompt("alone"))
ANY = SampleRequest(prompt=TextPrompt("any"))
WIRE = WireRequest("POST", "/v1/completions", b"{}")


class Engine:
    """A transport whose server answers after some turns of the loop, and can be dead."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.dead = False
        self.in_flight: list[WireReply | int] = []
        self.peak = 0

    async def send(self, request: WireRequest, *, streamed: bool = False) -> WireReply:
        """An answer, or none from a dead server."""
        number = self.rng.getrandbits(64)
        self.in_flight.append(number)
        self.peak = max(self.peak, len(self.in_flight))
        ended = not streamed
        try:
            for _ in range(self.rng.randrange(6)):
                await asyncio.sleep(0)
            if self.dead:
                ended = True
                raise ConnectionFailedError("refused")
        except asyncio.CancelledError:
            ended = True
            raise
        finally:
            if ended:
                self.in_flight.remove(number)

        def close() -> None:
            if number in self.in_flight:
                self.in_flight.remove(number)

        return WireReply(
            status=200,
            headers={},
            body=b"answer",
            retry_after=None,
            started=0.0,
            elapsed=0.0,
            chunks=_chunks() if streamed else None,
            close=close,
        )

    async def close(self) -> None:
        """Nothing is open."""


async def _chunks() -> AsyncIterator[bytes]:
    yield b"answer"


def stack_over(
    engine: Engine, shared: ServerLayers, *, limit: ConcurrencyLimit | None = None
) -> Forward:
    """The stack of a sampler that retries without waiting."""
    return build_stack(
        WireLayer(engine, wire=OPENAI, redact=lambda error: error),
        pacing=Pacing(patience=1, endurance=1),
        retrying=Retrying(Retries(attempts=2, base=0.0)),
        limit=limit or ConcurrencyLimit(8),
        shared=shared,
        redact=lambda error: error,
    )


class Noting:
    """A layer that notes what passes: down, and back up with an answer or an error."""

    def __init__(self, name: str, passed: list[str]) -> None:
        self.name = name
        self.passed = passed

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The next layer's reply."""
        self.passed.append(self.name)
        try:
            reply = await forward(exchange)
        except BaseException as error:
            self.passed.append(f"{self.name}: {type(error).__name__}")
            raise
        self.passed.append(f"{self.name}: {reply.answer!r}")
        return reply


async def test_the_order():
    """A request passes the shared layers with its place held, and they see the decoded answer."""
    passed: list[str] = []
    limit = ConcurrencyLimit(1)

    class Placed(Noting):
        async def send(self, exchange: Exchange, forward: Forward) -> Reply:
            self.passed.append(f"in flight: {limit.in_flight}")
            return await super().send(exchange, forward)

    send = stack_over(
        Engine(random.Random(1)),
        ServerLayers(
            exclusive=Placed("exclusive", passed),
            gate=Placed("gate", passed),
            redelivery=Noting("redelivery", passed),
        ),
        limit=limit,
    )
    await send(Exchange(WIRE, lambda reply: reply.wire.body.decode()))
    down = ["in flight: 0", "exclusive", "in flight: 1", "gate", "redelivery"]
    assert passed == [*down, "redelivery: 'answer'", "gate: 'answer'", "exclusive: 'answer'"]


@pytest.mark.parametrize("error", [MalformedResponseError, ServerFaultError])
async def test_a_reply_that_does_not_count_is_redelivery_s_concern(error):
    """It is not retried, even where its error may pass."""
    passed: list[str] = []
    send = stack_over(
        Engine(random.Random(1)), ServerLayers(redelivery=Noting("redelivery", passed))
    )
    decoded = []

    def decode(reply: Reply) -> None:
        decoded.append(reply)
        raise error("half an answer")

    with pytest.raises(error):
        await send(Exchange(WIRE, decode))
    assert passed == ["redelivery", f"redelivery: {error.__name__}"]
    assert len(decoded) == 1


async def judge(engine: Engine, redelivery: Redelivery) -> None:
    """Look at the engine whenever a request has failed suspiciously."""
    while True:
        suspects = await redelivery.suspects(within=1.0)
        if not engine.dead:
            redelivery.acquit(suspects)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_nothing_is_lost_and_nothing_is_left(seed: int):
    """Deaths, swaps, exclusive requests, streams left early, and callers that leave, at random."""
    rng = random.Random(seed)
    engine = Engine(rng)
    redelivery = Redelivery(admission=(admission := Admission(stagger=0.0)), patience=60.0)
    redelivery.resume()
    gate, limit = SwapGate("0"), ConcurrencyLimit(5)
    exclusive = ExclusiveRequests(lambda request: request is ALONE)
    send = stack_over(
        engine,
        ServerLayers(exclusive=exclusive, gate=gate, redelivery=redelivery),
        limit=limit,
    )

    async def ask() -> object:
        streamed, request = rng.random() < 0.3, rng.choice((ALONE, ANY, ANY, ANY))
        reply = await send(
            Exchange(WIRE, lambda reply: reply.wire.body, request, streamed=streamed)
        )
        try:
            if request is ALONE and streamed:
                assert len(engine.in_flight) == 1
            for _ in range(rng.randrange(3) if streamed else 0):
                await asyncio.sleep(0)
        finally:
            reply.close()
        return reply.weights_digest

    async def disturb() -> None:
        for number in range(12):
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            if rng.random() < 0.5:
                engine.dead = True
                redelivery.interrupt("it died")
                await asyncio.sleep(0)
                engine.dead = False
                admission.limit = None
                redelivery.resume()
            else:
                await gate.close(rng.choice(("drain", "abort")))
                gate.open(str(number))

    asked = []
    judging, disturbing = map(asyncio.create_task, (judge(engine, redelivery), disturb()))
    for _ in range(150):
        asked.append(asyncio.create_task(ask()))
        await asyncio.sleep(0)
        if rng.random() < 0.2:
            rng.choice(asked).cancel()
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*asked, return_exceptions=True)
        await disturbing
    judging.cancel()
    failures = [
        end
        for end in ends
        if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError)
    ]
    assert {type(failure).__name__ for failure in failures} <= {"EngineKilledError"}
    assert sum(isinstance(end, str) for end in ends) > 50
    assert engine.peak <= 5
    await settled()
    assert (limit.in_flight, limit.waiting, engine.in_flight) == (0, 0, [])
    assert not admission.in_flight
    reply = await asyncio.wait_for(send(Exchange(WIRE, sample=ALONE)), 5)
    assert reply.wire.status == 200
    await asyncio.wait_for(gate.close("drain"), 5)
