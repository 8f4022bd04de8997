"""Whether a server works, judged from every sign at once, since each of them can mislead.

A process can live with a dead engine; /health can say 200 with dead workers, or time out under a
burst; metrics stand still when there are no requests, and during a long prefill, whose tokens are
counted at its end. So the process must be alive and /health must answer; if that does not settle
it, one of these must hold: tokens are being counted, the KV cache is filling, the engine's CPU is
busy, or a one-token request is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.client.open_files import no_file_left
from enginehouse.core.errors import WireError
from enginehouse.core.sampler import Load
from enginehouse.engines.base import ServedEngine
from enginehouse.servers.readiness import describe_exit
from enginehouse.servers.records import ServerState
from enginehouse.servers.sessions import below, one_token_request, open_session
from enginehouse.servers.timings import TIMINGS, Timings

BUSY_CORES = 0.2  # above what a server uses for our own requests while its engine hangs
# A busy CPU may be spinning in a deadlock, so it counts for this many times the patience at most.
COMPUTING_FACTOR = 4
_ENGINE_DEAD = 503


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """A state, and the reason if it is not `ready`."""

    state: ServerState
    reason: str | None = None


_READY = Health(state=ServerState.READY)


class _Counters(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own counters; a chunked prefill fills the KV cache before any token."""

    tokens: int
    requests: int
    kv_cache_usage: float | None


class ProcessSigns(Protocol):
    """What a server's processes say of themselves; an OwnedServer, as a rule."""

    def exit_code(self) -> int | None:
        """None while it runs."""

    def cores(self) -> float | None:
        """CPU cores used since the last call; None if they say nothing of its work (on a GPU)."""


class RequestSigns(Protocol):
    """What our own requests to a server say of it; a Redelivery, as a rule."""

    last_answer: float
    """When one of them was last answered, by the monitor's clock: a sign of work as well."""

    @property
    def is_busy(self) -> bool:
        """Whether some of them wait for an answer, so that a server that seems idle is not."""


class HealthMonitor:
    """Watches one server; `session` has its base URL and its API key.

    `process` and `requests` are None where only /health and the engine's own figures are known.
    `patience`: seconds without any sign of work after which a server counts as failed. `path` is
    that of its /health, if it is not its engine's.
    """

    def __init__(  # noqa: PLR0913 (most are optional, and independent of one another)
        self,
        session: aiohttp.ClientSession,
        *,
        engine: ServedEngine,
        model: str,
        patience: float,
        path: str | None = None,
        process: ProcessSigns | None = None,
        requests: RequestSigns | None = None,
        clock: Callable[[], float] = time.monotonic,
        timings: Timings = TIMINGS,
    ) -> None:
        self._session = session
        self._engine = engine
        self._path = path or engine.endpoints.health
        self._model = model
        self._patience = patience
        self._process = process
        self._requests = requests
        self._clock = clock
        self._timings = timings
        self._probe = aiohttp.ClientTimeout(total=timings.probe)
        self._blind = False  # this process has no file descriptor left to look with
        self.restarted()

    def restarted(self) -> None:
        """Forget what was seen: the server is a new process."""
        self._counters: _Counters | None = None
        self._worked = self._computed = self._clock()
        if self._process:
            self._process.cores()  # which are counted from here on
        self._deaf_since: float | None = None
        self.has_worked = False

    async def glance(self) -> Health:
        """Check the process and /health only: at most 5 s."""
        if self._process and (code := self._process.exit_code()) is not None:
            return Health(state=ServerState.FAILED, reason=f"it ended with {describe_exit(code)}")
        status = await self._get_status(self._path)
        if status == _ENGINE_DEAD:
            return Health(
                state=ServerState.FAILED,
                reason=f"{self._path} reports that its engine is dead",
            )
        if status == 200 or self._blind:
            return _READY
        if self._deaf_since is not None and (
            self._clock() - self._deaf_since > self._timings.deaf_after
        ):
            return Health(state=ServerState.FAILED, reason="it no longer listens on its port")
        said = "does not answer" if status is None else f"answers {status}"
        return Health(state=ServerState.DEGRADED, reason=f"{self._path} {said}")

    async def look(self) -> Health:
        """Check every sign: milliseconds as a rule, at most 20 s; a canary only if in doubt."""
        health = await self.glance()
        if health.state is ServerState.FAILED:
            return health
        if self._blind:
            self._worked = self._clock()
            return health
        load = await self._load()
        cores = self._process.cores() if self._process else None
        busy = self._requests is not None and self._requests.is_busy
        computes = cores is not None and cores >= BUSY_CORES
        if computes:
            self._computed = self._clock()
        is_idle = load is not None and not load.running + load.waiting and not busy
        if self._has_progressed(load):
            self.has_worked = True
            self._worked = self._clock()
        elif (health is _READY and is_idle) or (not computes and await self._answers()):
            self._worked = self._clock()
        now = self._clock()
        if self._requests:
            self._worked = max(self._worked, self._requests.last_answer)
        silent = now - self._worked
        # A single look without CPU use proves nothing: other programs may take the CPU for a while.
        idle = now - max(self._worked, self._computed)
        degraded_after = min(self._timings.degraded_after, self._patience)
        if idle <= degraded_after and silent <= self._patience:
            return health
        reason = f"it has not generated a token for {silent:.0f} s"
        if idle <= degraded_after:
            reason += ", although it computes"
        failed = idle > self._patience or silent > COMPUTING_FACTOR * self._patience
        return Health(state=ServerState.FAILED if failed else ServerState.DEGRADED, reason=reason)

    def _has_progressed(self, load: Load | None) -> bool:
        """Whether the engine has done something that it counts since the last look."""
        if load is None:
            return False
        counters = _Counters(
            tokens=(load.prompt_tokens or 0) + (load.generation_tokens or 0) + (load.steps or 0),
            requests=load.running + load.waiting,
            kv_cache_usage=load.kv_cache_usage,
        )
        before, self._counters = self._counters, counters
        return before is not None and (
            counters.tokens > before.tokens
            or (
                counters.requests == before.requests  # otherwise our canary may have filled it
                and counters.kv_cache_usage != before.kv_cache_usage
            )
        )

    async def _get_status(self, path: str) -> int | None:
        self._blind = False
        try:
            async with self._session.get(below(path), timeout=self._probe) as reply:
                self._deaf_since = None
                return reply.status
        except aiohttp.ClientConnectorError as error:
            if no_file_left(error):
                self._blind = True
                return None
            self._deaf_since = self._clock() if self._deaf_since is None else self._deaf_since
            return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _load(self) -> Load | None:
        signal = self._engine.load_signal
        if signal is None:
            return None
        try:
            async with self._session.get(below(signal.path), timeout=self._probe) as reply:
                body = await read_body(reply, limit=MAX_PAGE_BYTES)
                return signal.parse(body.decode(errors="replace")) if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, WireError):
            return None

    async def _answers(self) -> bool:
        """Whether a one-token request is answered in time."""
        request = one_token_request(self._engine, self._model)
        try:
            async with self._session.post(
                below(request.path),
                data=request.body,
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._timings.canary),
            ) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


async def glance(
    base_url: str, *, engine: ServedEngine, path: str | None = None, timings: Timings = TIMINGS
) -> Health:
    """/health of a server whose process lives: at most 5 s. Stateless, without a canary.

    `path` is where the server says that it is well, if it is not where its engine does.
    """
    async with open_session(base_url) as session:
        monitor = HealthMonitor(
            session,
            engine=engine,
            model="",
            patience=0,
            path=path,
            timings=timings,
        )
        return await monitor.glance()
