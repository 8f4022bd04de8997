"""Sends to the next engine what a dead one took with it.

A request that is lost with its engine is not the client's failure, so its caller only waits longer.
Only one that kills the engine alone comes back as an error, EngineKilledError.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from enginehouse.client.exchange import Attempt, Exchange, Forward, Reply
from enginehouse.core.errors import (
    ConnectionFailedError,
    EngineKilledError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    WireError,
)
from enginehouse.deployment.admission import Admission, Call
from enginehouse.servers.health import Health, HealthMonitor
from enginehouse.servers.records import ServerState

_SIGNS_OF_DEATH = (ConnectionFailedError, MalformedResponseError, ServerFaultError)


class Redelivery:
    """Layer: aborts what is in flight when the engine has died, and sends it again to the next one.

    `deployment.admission` decides in which order. A supervisor says when: it waits for `failure`,
    which is set as soon as the server is seen dead, calls `interrupt`, starts another server, and
    calls `resume`; or `close_for_good`. `answered`: whether the server has answered anything since
    that was set to false. Closed at first. Share it among all samplers of one server.
    """

    def __init__(self, monitor: HealthMonitor, *, admission: Admission, glance: float) -> None:
        self._monitor = monitor
        self._admission = admission
        self._glance = glance
        self._cause: str | None = None
        self.answered = False
        self.failure: asyncio.Future[Health] = asyncio.get_running_loop().create_future()

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The reply of the first engine that survives the request.

        Raises what the attempt raises while the engine lives; EngineKilledError, or ServerGoneError
        when the server is given up.
        """
        call = Call()
        while True:
            call.attempt = Attempt(self._attempt(call, exchange, forward))
            try:
                reply = await call.attempt.reply()
            except BaseException:
                self._admission.leave(call)
                raise
            if reply is not None:
                reply.when_closed(partial(self._admission.leave, call))
                return reply
            self._admission.leave(call)
            if call.alone and call.deaths > 2:
                self.answered = True
                self._admission.explain()
                raise EngineKilledError(
                    "this request was in flight at three deaths of the engine, at the last one "
                    "alone",
                    why=self._cause,
                    fix="read the server's log; leave the item out, or avoid what its diagnosis "
                    "names",
                )

    async def _attempt(self, call: Call, exchange: Exchange, forward: Forward) -> Reply:
        await self._admission.enter(call)
        try:
            reply = await forward(exchange)
        except _SIGNS_OF_DEATH:
            await self._outlive_death()
            raise
        except RequestTimeoutError:
            raise
        except WireError:
            self.answered = True
            raise
        self.answered = True
        self._monitor.note_work()
        return reply

    async def _outlive_death(self) -> None:
        """Return if the server works; if it is dead, this attempt will be aborted.

        A server that is neither is about to end, or busy: the supervisor judges it in time.
        """
        deadline = time.monotonic() + self._monitor.patience
        while time.monotonic() < deadline:
            if self._admission.error is not None:
                raise self._admission.error from None
            health = await self._monitor.glance()
            if health.state is ServerState.READY:
                return
            if health.state is ServerState.FAILED:
                self.report(health)
            await asyncio.sleep(self._glance)

    def report(self, health: Health) -> None:
        """The server was seen dead."""
        if not self.failure.done():
            self.failure.set_result(health)

    def interrupt(self, cause: str) -> int:
        """Let nothing in any more, and abort what is in flight. Returns how much that was."""
        self._cause = cause
        lost = self._admission.close()
        for call in lost:
            if not call.attempt.abort():  # a stream, which has begun and breaks off by itself
                self._admission.leave(call)
        return len(lost)

    def resume(self) -> None:
        """A working server is there (again)."""
        self.failure = asyncio.get_running_loop().create_future()
        self._admission.open()

    def close_for_good(self, error: Exception) -> None:
        """Raise `error` in every request that waits, now or later."""
        self._admission.close_for_good(error)
