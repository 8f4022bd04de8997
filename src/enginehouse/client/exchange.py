"""What passes through the stack of request layers: an exchange goes down, a reply comes back up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from enginehouse.client.transport import WireReply, WireRequest
from enginehouse.core.errors import WireError
from enginehouse.core.sampler import SampleRequest

Forward = Callable[["Exchange"], Coroutine[Any, Any, "Reply"]]


class InstanceLostError(Exception):
    """The engine died with a request that another instance can answer. Only layers see it."""


class Call:
    """What happened to one request so far. `deaths` counts the engines that died with it in flight.

    `movable`: another instance can take it (see client.spread). `died_in` is the admission that it
    was lost from last. `alone`: it is, or was at the last death, the only one in flight.
    """

    attempt: Attempt

    def __init__(self, *, movable: bool = False) -> None:
        self.movable = movable
        self.deaths = 0
        self.died_in: object | None = None
        self.alone = False


class Exchange(msgspec.Struct, frozen=True):
    """One request on its way to the server.

    `sample` is what the caller asked for; None for requests that generate nothing. `decode` reads
    a whole reply, and raises WireError for one that does not count. `streamed`: the reply is handed
    over as soon as its first bytes are there, undecoded; `decode_event` reads its first event, and
    raises WireError for one that reports an error. `limited` is false for requests that take no
    place among those in flight: adapters must load although requests for them hold every place.
    `call` is its history, where several instances may answer it.
    """

    wire: WireRequest
    decode: Callable[[Reply], Any] | None = None
    sample: SampleRequest | None = None
    streamed: bool = False
    limited: bool = True
    call: Call | None = None
    decode_event: Callable[[bytes], object] | None = None


class Reply(msgspec.Struct):
    """What came back. Each layer may add what it knows.

    `error` is what an error status stands for, until Retrying raises it. `answer` is what `decode`
    returned. `attempts` counts the failed ones, too. `weights_digest` is that of the weights that
    answered, where they can be swapped.
    """

    wire: WireReply
    error: WireError | None = None
    answer: Any = None
    attempts: int = 1
    weights_digest: str | None = None
    _releases: list[Callable[[], object]] = []

    def when_closed(self, release: Callable[[], object]) -> None:
        """Call `release` when a streamed reply is closed, or at once if the reply is whole."""
        if self.wire.chunks is None:
            release()
        else:
            self._releases.append(release)

    def close(self) -> None:
        """End a streamed reply, read or not, and free what the layers hold for it. Idempotent."""
        self.wire.close()
        releases, self._releases = self._releases, []
        for release in releases:
            release()


class Layer(Protocol):
    """One layer of the stack. Several stacks may share one, so it is told what comes next."""

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The reply to `exchange`, which `forward` gets from the next layer.

        A layer may wait before it forwards, and forward more than once until a reply has begun.
        What it holds for a streamed reply it holds until that is closed. It never cancels its
        caller's task: to abort an attempt it makes it an `Attempt`.
        """
        ...


class Attempt:
    """One try at an exchange, in a task of its own, which can be aborted at any time."""

    def __init__(self, work: Coroutine[Any, Any, Reply]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._aborted = False

    def abort(self) -> bool:
        """Have `reply` return None; false if the attempt has ended already."""
        self._aborted = True
        return self._task.cancel()

    async def reply(self) -> Reply | None:
        """The reply, or None if the attempt was aborted. Raises what the attempt raises.

        If the caller is cancelled, so is the attempt, and has ended when this raises.
        """
        caller = asyncio.current_task()
        assert caller is not None
        cancellations = caller.cancelling()
        try:
            return await self._task
        except asyncio.CancelledError:
            if self._aborted and caller.cancelling() == cancellations:
                return None
            if not self._task.cancelled() and self._task.exception() is None:
                self._task.result().close()  # it had just begun, and nobody will read it
            raise
