"""What a reply must be to count: whole, and one that the engine did not give up."""

from __future__ import annotations

from collections.abc import AsyncIterator

from enginehouse.client.transport import WireStream
from enginehouse.core.errors import MalformedResponseError, ServerFaultError
from enginehouse.core.sampler import GIVEN_UP
from enginehouse.dialects.base import Dialect
from enginehouse.dialects.server_sent_events import EventParser


def demand_whole(finish_reason: str | None) -> None:
    """Raise ServerFaultError for the finish reason of an answer that the engine gave up."""
    if finish_reason in GIVEN_UP:
        raise ServerFaultError(
            "the engine gave the answer up",
            why=f"finish_reason is {finish_reason!r}",
            fix="ask again; a server that is being stopped does this",
        )


async def events(stream: WireStream, dialect: Dialect) -> AsyncIterator[bytes]:
    """The data of every event before the last; a stream that ends without that broke off."""
    parser = EventParser()
    async for chunk in stream.chunks:
        for data in parser.feed(chunk):
            if dialect.is_end(data):
                return
            yield data
    for data in parser.close():
        if dialect.is_end(data):
            return
        yield data
    raise MalformedResponseError(
        "the stream ended before it was complete",
        why="the server closed it without saying that this was all",
        fix="read the server's log; a server that died while answering looks like this",
    )
