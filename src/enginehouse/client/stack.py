"""The stack of request layers, put together in one place.

From the caller down to the wire:

1. ExclusiveRequests and SeparatedScores (client.exclusive): a request that the engine survives
   only alone is alone, and those that spoil each other's answers are not in flight together.
2. ConcurrencyLimit (client.concurrency): as many requests in flight as the user or the server's
   queue allows.
3. SwapGate (client.swap_gate): nothing is in flight while the weights change.
4. Redelivery (client.redelivery): what a dead engine took with it is sent to the next one.
5. Decoding (here): the reply is read; one that is not whole, or that the engine aborted, is an
   error.
6. Retrying (client.retry): what may pass is sent again, after a pause.
7. Pacing (client.pacing): a hosted API's limits are waited for, not hit.
8. WireLayer (here): the transport, and what error statuses stand for.

Why this order. An exclusive request waits outside the limit, or it would hold a place that those it
waits for need. Redelivery is inside the limit: a request that waits for a restart keeps its place,
so the new engine never sees more than the limit at once, and first come is still first served
(docs/decisions/0004). The gate is outside redelivery, so that a swap also waits for, or aborts,
what is being redelivered. Decoding is inside redelivery, because half an answer is a sign that the
engine is dying, but outside the retries, because a living engine would only give it again. Pacing
is inside the retries, because each attempt counts against the API's limits.

Layers 1, 3 and 4 belong to a server and are shared by all its samplers; the others belong to one
sampler. Those that a sampler does not need are left out, so that the plain client pays for nothing.

Where several servers answer alike, the limit is above them all, Spread (client.spread) below it
chooses one for each request, and each has a stack of its own: 1, and 3 to 8. An exclusive request
then waits inside the limit, but only for those that have their places already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from enginehouse.client.concurrency import ConcurrencyLimit
from enginehouse.client.exchange import Exchange, Forward, Layer, Reply
from enginehouse.client.pacing import Pacing
from enginehouse.client.retry import Retrying
from enginehouse.client.transport import Transport
from enginehouse.client.wire import Wire
from enginehouse.core.errors import MalformedResponseError, WireError
from enginehouse.dialects.server_sent_events import EventParser

Redact = Callable[[WireError], WireError]


@dataclass(frozen=True, kw_only=True)
class ServerLayers:
    """The layers that all samplers of one server share; None where there is nothing to do."""

    exclusive: Layer | None = None
    separated: Layer | None = None
    gate: Layer | None = None
    redelivery: Layer | None = None


def build_stack(
    wire: WireLayer,
    *,
    pacing: Pacing | None,
    retrying: Retrying,
    limit: ConcurrencyLimit | None,
    shared: ServerLayers,
    redact: Redact,
) -> Forward:
    """The entrance of the stack: give it an exchange, and await the reply."""
    send: Forward = wire.send
    layers: tuple[Layer | None, ...] = (
        shared.exclusive,
        shared.separated,
        limit,
        shared.gate,
        shared.redelivery,
        Decoding(redact),
        retrying,
        pacing,
    )
    for layer in reversed(layers):
        if layer is not None:
            send = partial(layer.send, forward=send)
    return send


class Decoding:
    """Layer: reads a whole reply as its exchange says. Raises WireError for one that is not one."""

    def __init__(self, redact: Redact) -> None:
        self._redact = redact

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The reply with its `answer`; a streamed one as soon as its first bytes are there."""
        reply = await forward(exchange)
        if exchange.streamed:
            return await self._begun(reply, exchange)
        if exchange.decode is not None:
            try:
                reply.answer = exchange.decode(reply)
            except WireError as error:
                raise self._redact(error) from None
        return reply

    async def _begun(self, reply: Reply, exchange: Exchange) -> Reply:
        """The streamed reply with its first bytes; servers send headers before they compute."""
        chunks = reply.wire.chunks
        assert chunks is not None, "error replies are raised by Retrying"
        try:
            first = await _first(chunks)
            if exchange.decode_event is not None:
                for event in EventParser().feed(first)[:1]:
                    exchange.decode_event(event)
        except WireError as error:
            reply.close()
            raise self._redact(error) from None
        except BaseException:
            reply.close()
            raise
        reply.wire = msgspec.structs.replace(reply.wire, chunks=_after(first, chunks))
        return reply


async def _first(chunks: AsyncIterator[bytes]) -> bytes:
    async for chunk in chunks:
        return chunk
    raise MalformedResponseError(
        "the stream ended before it began",
        why="the server closed it without a byte",
        fix="read the server's log; a server that died while answering looks like this",
    )


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


class WireLayer:
    """The bottom of the stack: hands requests to the transport, and recognises error replies."""

    def __init__(self, transport: Transport, *, wire: Wire, redact: Redact) -> None:
        self._transport = transport
        self._wire = wire
        self._redact = redact

    async def send(self, exchange: Exchange) -> Reply:
        """The reply, with the error that its status or its body stands for. It is not raised."""
        reply = Reply(await self._transport.send(exchange.wire, streamed=exchange.streamed))
        status, body = reply.wire.status, reply.wire.body
        error: WireError | None = None
        if status != 200:
            error = self._wire.error_reply(status, body, retry_after=reply.wire.retry_after)
            error.body = body
        elif self._wire.reply_error is not None:
            error = self._wire.reply_error(body)
        if error is not None:
            reply.error = self._redact(error)
        return reply
