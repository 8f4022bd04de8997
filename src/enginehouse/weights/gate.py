"""Lets requests to a server, except while its weights change; says which weights answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import msgspec

from enginehouse.client.sampler import RESTORING, Delivery, delivered_once
from enginehouse.client.wire import InFlight
from enginehouse.core.sampler import SampleResponse

Result = TypeVar("Result")


class Gate:
    """Stands before `deliver`; open at first. Single-threaded.

    No request is under way at a change of weights, so that one digest is that of a whole answer.
    """

    def __init__(self, digest: str, *, deliver: Delivery = delivered_once) -> None:
        self._digest = digest
        self._deliver = deliver
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()

    async def deliver(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """What `attempt` gives; made once more, of the new weights, if a swap gave it up."""
        if RESTORING.get():
            return await self._deliver(attempt)
        task = asyncio.current_task()
        assert task is not None
        while True:
            while not self._open.is_set():  # it may have closed again before we got here
                await self._open.wait()
            self._under_way.add(task)
            self._idle.clear()
            try:
                return self._stamped(await self._deliver(attempt))
            except asyncio.CancelledError:
                if task not in self._given_up or task.uncancel():
                    raise
            finally:
                self._given_up.discard(task)
                self._under_way.discard(task)
                if not self._under_way:
                    self._idle.set()

    def _stamped(self, result: Result) -> Result:
        if not isinstance(result, SampleResponse):
            return result
        return cast("Result", msgspec.structs.replace(result, weights_digest=self._digest))

    async def close(self, in_flight: InFlight) -> None:
        """Let nothing in any more, and wait until nothing is under way; "abort" sees to that.

        A stream counts until its reply begins; what is left of it is the server's to end.
        """
        self._open.clear()
        if in_flight == "abort":
            for task in self._under_way - self._given_up:
                self._given_up.add(task)
                task.cancel()
        await self._idle.wait()

    def open(self, digest: str) -> None:
        """Let requests in; the weights that answer them have this digest. Idempotent."""
        self.relabel(digest)
        self._open.set()

    def relabel(self, digest: str) -> None:
        """What is answered from now on is answered by the weights of this digest."""
        self._digest = digest
