"""What a test puts below a request layer: attempts that end when told, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from enginehouse.client.exchange import Exchange, Reply
from enginehouse.client.transport import WireReply, WireRequest
from enginehouse.core.errors import WireError
from enginehouse.core.sampler import SampleRequest

WIRE = WireRequest("POST", "/v1/completions", b"{}")


def exchange(sample: SampleRequest | None = None, **options: Any) -> Exchange:
    """A request on its way down."""
    return Exchange(WIRE, sample=sample, **options)


def whole_reply(answer: Any = None, *, error: WireError | None = None, **headers: str) -> Reply:
    """A reply without a stream."""
    wire = WireReply(
        status=200, headers=headers, body=b"", retry_after=None, started=0.0, elapsed=0.0
    )
    return Reply(wire, error=error, answer=answer)


class Below:
    """The rest of the stack: each attempt waits for `end`, then gives `answer`, or a stream."""

    def __init__(self, answer: Any = "answer") -> None:
        self.answer = answer
        self.attempts: list[Exchange] = []
        self.cancelled = 0
        self.closed = 0
        self.end = asyncio.Event()

    async def __call__(self, asked: Exchange) -> Reply:
        """One attempt."""
        self.attempts.append(asked)
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.answer, BaseException):
            raise self.answer
        if not asked.streamed:
            return whole_reply(self.answer)
        return Reply(
            WireReply(
                status=200,
                headers={},
                body=b"",
                retry_after=None,
                started=0.0,
                elapsed=0.0,
                chunks=_no_chunks(),
                close=self._close,
            )
        )

    def _close(self) -> None:
        self.closed += 1


async def _no_chunks() -> AsyncIterator[bytes]:
    return
    yield b""


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)
