"""Keeps one server at work: sees it fail, says why, and starts it again.

What it took with it is sent again by `client.redelivery`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from enginehouse.client.admission import Admission
from enginehouse.client.redelivery import Redelivery
from enginehouse.core.errors import EnginehouseError, ServerGoneError
from enginehouse.core.incidents import Incident
from enginehouse.diagnosis import explained
from enginehouse.servers.health import Health, HealthMonitor
from enginehouse.servers.records import ServerState
from enginehouse.servers.server import OwnedServer
from enginehouse.servers.sessions import open_session

_MOST_BARREN = 4  # restarts in a row between which nothing was answered


class Supervisor:
    """Watches `owned` inside `supervised`; at most `max_restarts` restarts, with back-off.

    `watching` ends, as `run` does, when the server is given up. `restorations` are awaited after
    each restart, before requests are admitted, and tell the server again what it had been told. An
    EnginehouseError of one is a failed restart. They must not wait for requests that pass through
    `redelivery`, which wait for them.
    """

    watching: asyncio.Task[None]
    restorations: list[Callable[[], Awaitable[object]]]

    def __init__(
        self,
        owned: OwnedServer,
        *,
        monitor: HealthMonitor,
        redelivery: Redelivery,
        max_restarts: int,
        on_incident: Callable[[Incident], None],
    ) -> None:
        self.redelivery = redelivery
        self.restorations = []
        self._owned = owned
        self._monitor = monitor
        self._max_restarts = max_restarts
        self._notify = owned.context.notify
        self._on_incident = on_incident
        self._timings = owned.timings
        self._condemned: Health | None = None
        self._restarts = 0
        self._barren = 0
        redelivery.resume()

    def condemn(self, reason: str) -> None:
        """Start the server again as if it had failed; what is in flight is sent again."""
        self._condemned = self._condemned or Health(state=ServerState.FAILED, reason=reason)

    async def run(self) -> None:
        """Watch and restart until cancelled.

        Raises ServerGoneError when the server is given up, and what `on_incident` raises; requests
        that wait get the same error.
        """
        try:
            while True:
                health = await self._until_failed()
                await self._restart(health)
                self._monitor.restarted()
                self._condemned = None
                self.redelivery.resume()
        except asyncio.CancelledError:
            self.redelivery.close_for_good(ServerGoneError("the server has been stopped"))
            raise
        except Exception as error:
            self.redelivery.close_for_good(error)
            raise

    async def _until_failed(self) -> Health:
        """Wait until the server has failed; changes of its state are noted on the way."""
        timings = self._timings
        next_look = time.monotonic() + timings.look
        before = ServerState.READY
        while self._condemned is None:
            suspects = await self.redelivery.suspects(within=timings.glance)
            if suspects or self._owned.exit_code() is not None:
                health = await self._monitor.glance()
                if health.state is ServerState.READY:
                    self.redelivery.acquit(suspects)
                elif health.state is ServerState.FAILED:
                    return health
                # one that is neither is about to end, or busy: the next looks will tell
            if time.monotonic() >= next_look:
                health = await self._monitor.look()
                if health.state is ServerState.FAILED:
                    return health
                if health.state is not before:
                    before = health.state
                    self._owned.note_state(before)
                    self._notify(f"the server is {before.value}: {health.reason or 'as it was'}")
                next_look = time.monotonic() + timings.look
        return self._condemned

    async def _restart(self, health: Health) -> None:
        error = explained(
            ServerGoneError(
                f"the server {self._owned.server.name} failed: {health.reason}",
                why="its log does not say",
                fix="fix the cause; then serve again, or resume",
            ),
            self._owned.diagnose(),
            log=self._owned.server.log,
        )
        in_flight = self.redelivery.interrupt(error.why or error.message)
        if self.redelivery.answered or self._monitor.has_worked:
            self._barren = 0
        self.redelivery.answered = False
        while True:
            reason = self._reason_to_give_up()
            self._on_incident(
                Incident(
                    moment=datetime.now(UTC),
                    kind=error.kind or "unknown",
                    cause=error.why or error.message,
                    evidence=error.evidence,
                    log=str(error.log) if error.log else None,
                    in_flight=in_flight,
                    consequence=reason or "started again",
                    given_up=reason is not None,
                )
            )
            if reason:
                error.message = f"{error.message}; {reason}"
                error.args = (error.message,)
                raise error
            self._notify(f"{error.message}: {error.why}; restarting it")
            self._owned.hold_port()
            await asyncio.sleep(min(30.0, 2.0**self._barren - 1))
            self._restarts += 1
            self._barren += 1
            try:
                await self._owned.restart()
                for restore in self.restorations:
                    await restore()
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

    def _reason_to_give_up(self) -> str | None:
        if self._owned.is_stopped():
            return "it was stopped by `enginehouse stop`"
        if self._restarts >= self._max_restarts:
            return f"given up after {self._restarts} restarts (max_restarts)"
        if self._barren >= _MOST_BARREN:
            return f"given up: no request was answered between the last {self._barren} restarts"
        return None


@asynccontextmanager
async def supervised(
    owned: OwnedServer,
    *,
    patience: float,
    max_restarts: int,
    on_incident: Callable[[Incident], None] = lambda _: None,
) -> AsyncIterator[Supervisor]:
    """Supervise the server for the length of the block."""
    server = owned.server
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    async with open_session(server.base_url, headers=headers) as session:
        redelivery = Redelivery(admission=Admission(), patience=patience)
        monitor = HealthMonitor(
            session,
            engine=owned.engine,
            model=server.models[0],
            patience=patience,
            process=owned,
            requests=redelivery,
            timings=owned.timings,
        )
        supervisor = Supervisor(
            owned,
            monitor=monitor,
            redelivery=redelivery,
            max_restarts=max_restarts,
            on_incident=on_incident,
        )
        supervisor.watching = watching = asyncio.create_task(supervisor.run())
        try:
            yield supervisor
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
