"""Keeps one server at work: sees it fail, says why, starts it again, and asks again what it took.

A request lost with the engine is not the client's failure, so it is not told to the caller: it is
delivered again (`deployment.admission` says when). Only one that kills the engine alone comes back
as an error, EngineKilledError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

from enginehouse.client.sampler import RESTORING
from enginehouse.core.errors import (
    ConnectionFailedError,
    EnginehouseError,
    EngineKilledError,
    MalformedResponseError,
    RequestTimeoutError,
    ServerFaultError,
    ServerGoneError,
    WireError,
)
from enginehouse.core.incidents import Incident
from enginehouse.deployment.admission import Admission, Call
from enginehouse.diagnosis import explained
from enginehouse.runtime.context import Notify
from enginehouse.servers.health import Health, HealthMonitor
from enginehouse.servers.records import ServerState
from enginehouse.servers.server import OwnedServer
from enginehouse.servers.sessions import open_session

Result = TypeVar("Result")

BARREN = 4  # deaths in a row between which nothing was answered
_LOOK = 5.0  # seconds between full looks
_GLANCE = 0.25  # seconds between looks at the process
_SIGNS = (ConnectionFailedError, MalformedResponseError, ServerFaultError)


class Supervisor:
    """Watches `owned` inside `supervised`; at most `max_restarts` restarts, with back-off.

    `watching` ends, as `run` does, when the server is given up. `restorations` are awaited after
    each restart, before requests are admitted, and put back what the server had been told; what
    they ask goes through `deliver` without waiting. An EnginehouseError of one is a failed restart.
    """

    watching: asyncio.Task[None]
    restorations: list[Callable[[], Awaitable[object]]]

    def __init__(
        self,
        owned: OwnedServer,
        *,
        monitor: HealthMonitor,
        admission: Admission,
        max_restarts: int,
        notify: Notify,
        on_incident: Callable[[Incident], None],
    ) -> None:
        self._owned = owned
        self._monitor = monitor
        self._max_restarts = max_restarts
        self._notify = notify
        self._on_incident = on_incident
        self._admission = admission
        self._admission.open()
        self._down: asyncio.Future[Health] = asyncio.get_running_loop().create_future()
        self._restarts = 0
        self._barren = 0
        self._cause = ""
        self.restorations = []

    async def deliver(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """What `attempt` gives, made again if the server died with it.

        Raises what `attempt` raises while the server lives, EngineKilledError, or ServerGoneError
        when the server is given up.
        """
        if RESTORING.get():
            return await attempt()
        task = asyncio.current_task()
        assert task is not None
        call = Call(task)
        while True:
            try:
                await self._admission.enter(call)
                return await self._attempted(attempt)
            except asyncio.CancelledError:
                if not call.lost or task.uncancel():
                    raise
            finally:
                self._admission.leave(call)
            if call.alone and call.deaths > 2:
                self._barren = 0
                self._admission.explain()
                raise self._killed()
            call.lost = False

    async def _attempted(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        try:
            result = await attempt()
        except _SIGNS:
            await self._outlive_death()
            raise
        except RequestTimeoutError:
            raise
        except WireError:
            self._barren = 0
            raise
        self._barren = 0
        self._monitor.note_work()
        return result

    async def _outlive_death(self) -> None:
        """Return if the server works; if it is dead, this task is cancelled as lost.

        A server that does neither is about to end, or busy: the watcher judges it in time.
        """
        deadline = time.monotonic() + self._monitor.patience
        while time.monotonic() < deadline and not self.watching.done():
            health = await self._monitor.glance()
            if health.state is ServerState.READY:
                return
            if health.state is ServerState.FAILED:
                self._report(health)
            await asyncio.sleep(_GLANCE)

    def _killed(self) -> EngineKilledError:
        return EngineKilledError(
            "this request was under way at three deaths of the engine, at the last one alone",
            why=self._cause,
            fix="read the server's log; leave the item out, or avoid what its diagnosis names",
        )

    def condemn(self, reason: str) -> None:
        """Start the server again as if it had failed; whatever is under way is asked again."""
        self._report(Health(state=ServerState.FAILED, reason=reason))

    def _report(self, health: Health) -> None:
        if not self._down.done():
            self._down.set_result(health)

    async def run(self) -> None:
        """Watch and restart until cancelled.

        Raises ServerGoneError when the server is given up, and what `on_incident` raises; whoever
        waits for a delivery gets the same.
        """
        try:
            await self._watch()
        except asyncio.CancelledError:
            self._admission.close_for_good(ServerGoneError("the server has been stopped"))
            raise
        except Exception as error:
            self._admission.close_for_good(error)
            raise

    async def _watch(self) -> None:
        while True:
            health = await self._until_down()
            lost = self._admission.close()
            for call in lost:
                call.task.cancel()
            await self._restart(health, in_flight=len(lost))
            self._monitor.restarted()
            self._down = asyncio.get_running_loop().create_future()
            self._admission.open()

    async def _until_down(self) -> Health:
        """Wait until the server has failed; its state is noted on the way."""
        next_look = time.monotonic() + _LOOK
        before = ServerState.READY
        while not self._down.done():
            await asyncio.wait({self._down}, timeout=_GLANCE)
            if self._owned.exit_code() is not None:
                self._report(await self._monitor.glance())
            elif time.monotonic() >= next_look and not self._down.done():
                health = await self._monitor.look()
                if self._monitor.has_worked:
                    self._barren = 0
                if health.state is ServerState.FAILED:
                    self._report(health)
                elif health.state is not before:
                    before = health.state
                    self._owned.note_state(before)
                    self._notify(f"the server is {before.value}: {health.reason or 'as it was'}")
                next_look = time.monotonic() + _LOOK
        return self._down.result()

    async def _restart(self, health: Health, *, in_flight: int) -> None:
        error = self._gone(f"the server {self._owned.server.name} failed: {health.reason}")
        while True:
            self._cause = error.why or error.message
            given_up = self._reason_to_give_up()
            self._note(error, in_flight, given_up or "started again")
            if given_up:
                raise self._given_up(error, given_up)
            self._notify(f"{error.message}: {error.why}; starting it again")
            self._owned.hold_port()
            await asyncio.sleep(min(30.0, 2.0**self._barren - 1))
            self._restarts += 1
            self._barren += 1
            try:
                await self._owned.restart()
                await self._restore()
            except EnginehouseError as failed:
                error = ServerGoneError(
                    failed.message,
                    why=failed.why,
                    fix=failed.fix,
                    log=failed.log,
                    kind=getattr(failed, "kind", None),
                    evidence=getattr(failed, "evidence", None),
                )
                in_flight = 0
            else:
                return

    async def _restore(self) -> None:
        token = RESTORING.set(True)
        try:
            for restore in self.restorations:
                await restore()
        finally:
            RESTORING.reset(token)

    def _reason_to_give_up(self) -> str | None:
        if self._owned.is_stopped():
            return "it was stopped by `enginehouse stop`"
        if self._restarts >= self._max_restarts:
            return f"given up after {self._restarts} restarts (max_restarts)"
        if self._barren >= BARREN:
            return f"given up: nothing was answered between the last {self._barren} restarts"
        return None

    def _gone(self, message: str) -> ServerGoneError:
        error = ServerGoneError(
            message, why="its log does not say", fix="mend the cause; then serve again, or resume"
        )
        return explained(error, self._owned.diagnose(), log=self._owned.server.log)

    def _given_up(self, error: ServerGoneError, reason: str) -> ServerGoneError:
        error.message = f"{error.message}; {reason}"
        error.args = (error.message,)
        return error

    def _note(self, error: ServerGoneError, in_flight: int, consequence: str) -> None:
        self._on_incident(
            Incident(
                moment=datetime.now(UTC),
                kind=error.kind or "unknown",
                cause=error.why or error.message,
                evidence=error.evidence,
                log=str(error.log) if error.log else None,
                in_flight=in_flight,
                consequence=consequence,
            )
        )


@asynccontextmanager
async def supervised(
    owned: OwnedServer,
    *,
    patience: float,
    max_restarts: int,
    notify: Notify,
    on_incident: Callable[[Incident], None] = lambda _: None,
) -> AsyncIterator[Supervisor]:
    """Supervise the server for the length of the block."""
    server = owned.server
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    async with open_session(server.base_url, headers=headers) as session:
        admission = Admission()
        monitor = HealthMonitor(
            session,
            engine=owned.engine,
            model=server.models[0],
            exit_code=owned.exit_code,
            patience=patience,
            busy=lambda: bool(admission.under_way),
            cores=owned.cores,
            timings=owned.timings,
        )
        supervisor = Supervisor(
            owned,
            monitor=monitor,
            admission=admission,
            max_restarts=max_restarts,
            notify=notify,
            on_incident=on_incident,
        )
        supervisor.watching = watching = asyncio.create_task(supervisor.run())
        try:
            yield supervisor
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
