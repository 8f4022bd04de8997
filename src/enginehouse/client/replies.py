"""What a reply must be to count: whole, and finished by the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

from enginehouse.core.errors import MalformedResponseError, ServerFaultError
from enginehouse.dialects.base import Dialect
from enginehouse.dialects.server_sent_events import EventParser

_ABORTED = ("abort", "error")  # most often because the engine was shutting down


def require_finished(finish_reason: str | None) -> None:
    """Raise ServerFaultError for the finish reason of an answer that the engine aborted."""
    if finish_reason in _ABORTED:
        raise ServerFaultError(
            "the engine aborted the answer",
            why=f"finish_reason is {finish_reason!r}",
            fix="ask again; a server that is being stopped does this",
        )


async def events(chunks: AsyncIterator[bytes], dialect: Dialect) -> AsyncIterator[bytes]:
    """The data of every event before the last. Raises MalformedResponseError if that is missing."""
    parser = EventParser()
    async for chunk in chunks:
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
        why="the server closed it without its end marker",
        fix="read the server's log; a server that died while answering looks like this",
    )
