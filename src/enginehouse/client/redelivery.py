"""Sends to the next engine what a dead one took with it.

A request that is lost with its engine is not the client's failure, so its caller only waits longer.
Only one that kills the engine alone comes back as an error, EngineKilledError.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

from enginehouse.client.admission import Admission
from enginehouse.client.exchange import (
    Attempt,
    Call,
    Exchange,
    Forward,
    InstanceLostError,
    Reply,
)
from enginehouse.core.errors import (
    ConnectionFailedError,
    EngineKilledError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    WireError,
)

_SIGNS_OF_DEATH = (ConnectionFailedError, MalformedResponseError, ServerFaultError)


class Redelivery:
    """Layer: aborts what is in flight when the engine has died, and sends it again to the next one.

    `client.admission` decides in which order. A supervisor says when. It awaits `suspects`, the
    requests that failed as they do on a dying engine, and looks at the server: if that works it
    calls `acquit`, and the failures stand. If it is dead the supervisor calls `interrupt`, starts
    another server, and calls `resume`; or `close_for_good`. A request that nobody judges fails
    after `patience` seconds. `answered` is whether the server has answered anything, or refused it,
    since that was set to false; `last_answer` is when it last answered, by time.monotonic.
    Every event in `watchers` is set when the layer has opened, or closed for good.

    Closed at first. Share it among all samplers of one server. A request that other instances can
    answer (`Exchange.call`) waits for no restart: it raises InstanceLostError.
    """

    def __init__(self, *, admission: Admission, patience: float) -> None:
        self.watchers: set[asyncio.Event] = set()
        self._admission = admission
        self._patience = patience
        self._cause: str | None = None
        self._suspects: set[asyncio.Future[None]] = set()
        self._suspicion = asyncio.Event()
        self.answered = False
        self.last_answer = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the server works, as far as is known."""
        return self._admission.is_open

    @property
    def error(self) -> Exception | None:
        """Why the server will never work again; None as long as it may."""
        return self._admission.error

    @property
    def is_busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._admission.in_flight)

    async def send(self, exchange: Exchange, forward: Forward) -> Reply:
        """The reply of the first engine that survives the request.

        Raises what the attempt raises while the engine lives; EngineKilledError, or ServerGoneError
        when the server is given up.
        """
        call = exchange.call or Call()
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
            if call.movable:
                raise InstanceLostError

    async def _attempt(self, call: Call, exchange: Exchange, forward: Forward) -> Reply:
        await self._admission.enter(call)
        try:
            reply = await forward(exchange)
        except _SIGNS_OF_DEATH:
            await self._be_judged(call)
            raise
        except RequestTimeoutError:
            raise
        except WireError:
            self.answered = True  # but a front end may refuse requests while its engine hangs
            raise
        self.answered = True
        self.last_answer = time.monotonic()
        return reply

    async def _be_judged(self, call: Call) -> None:
        """Return if the server works; if it is dead, this attempt is aborted meanwhile."""
        verdict = asyncio.get_running_loop().create_future()
        if self._admission.error is not None:
            raise (InstanceLostError() if call.movable else self._admission.error) from None
        self._suspects.add(verdict)
        self._suspicion.set()
        try:
            async with asyncio.timeout(self._patience):
                await verdict
        except TimeoutError:
            pass
        finally:
            self._suspects.discard(verdict)

    async def suspects(self, *, within: float) -> frozenset[asyncio.Future[None]]:
        """All that are not judged yet; waits up to `within` seconds for a new one."""
        try:
            async with asyncio.timeout(within):
                await self._suspicion.wait()
        except TimeoutError:
            pass
        self._suspicion.clear()
        return frozenset(self._suspects)

    def acquit(self, suspects: frozenset[asyncio.Future[None]]) -> None:
        """The server works, so these requests' failures are their own."""
        for verdict in suspects & self._suspects:
            if not verdict.done():
                verdict.set_result(None)

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
        self._admission.open()
        self._wake_watchers()

    def close_for_good(self, error: Exception) -> None:
        """Raise `error` in every request that waits, now or later."""
        self._admission.close_for_good(error)
        for verdict in self._suspects:
            if not verdict.done():
                verdict.set_exception(error)
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        for watcher in self.watchers:
            watcher.set()
