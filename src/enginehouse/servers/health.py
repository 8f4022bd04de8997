"""Whether a server works, from every sign at once, since each of them lies at times.

A process can live with a dead engine; /health can say 200 with dead workers, and not answer in time
under a burst; metrics stand still when nobody asks, and during a long prefill, whose tokens are
counted at its end. So: the process has not ended, /health answers, and where that is not enough,
tokens are being counted, the KV cache is being filled, the engine's CPU computes, or a one-token
request is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.client.open_files import no_file_left
from enginehouse.core.errors import WireError
from enginehouse.core.sampler import Load
from enginehouse.engines.base import ServedEngine
from enginehouse.servers.readiness import describe_exit
from enginehouse.servers.records import ServerState
from enginehouse.servers.sessions import below, open_session

DEGRADED_AFTER = 30.0  # seconds without a sign of work
BUSY_CORES = 0.2  # above what a server uses for our own questions while its engine hangs
# A CPU that computes may spin in a deadlock, so that it is believed for so many times the patience.
COMPUTING_FACTOR = 4
# Seconds: a vLLM that was told to stop closes its port, and then waits for its clients for ever.
DEAF_FOR = 15.0
_PROBE = aiohttp.ClientTimeout(total=5)
_CANARY = aiohttp.ClientTimeout(total=10)
_ENGINE_DEAD = 503


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """A state, and why it is not `ready`."""

    state: ServerState
    reason: str | None = None


_READY = Health(state=ServerState.READY)


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine itself counts: a prefill in pieces fills the KV cache before any token."""

    tokens: int
    requests: int
    kv_cache_usage: float | None


class HealthMonitor:
    """Looks at one server again and again; `session` has its base URL and its API key.

    `exit_code` gives None while the process runs. `busy` tells whether we wait for an answer: a
    server that seems idle meanwhile is not. `cores` gives the CPU cores that the server has used
    since the last call, None where they say nothing of its work (on a GPU). `patience`: seconds
    without any sign of work after which a server counts as failed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        engine: ServedEngine,
        model: str,
        exit_code: Callable[[], int | None],
        patience: float,
        busy: Callable[[], bool] = lambda: False,
        cores: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._engine = engine
        self._model = model
        self._exit_code = exit_code
        self._patience = patience
        self._busy = busy
        self._cores = cores
        self._clock = clock
        self._counted: _Counted | None = None
        self._worked = self._computed = clock()
        self._cores()  # counted from here on
        self._deaf_since: float | None = None
        self._blind = False  # we could not look, for a reason of our own
        self.has_worked = False

    @property
    def patience(self) -> float:
        """Seconds without any sign of work after which the server counts as failed."""
        return self._patience

    def note_work(self) -> None:
        """Somebody got an answer: that is a sign of work as well."""
        self._worked = self._clock()

    def restarted(self) -> None:
        """Forget what was seen: the server is a new process."""
        self._counted = None
        self._worked = self._computed = self._clock()
        self._cores()
        self._deaf_since = None
        self.has_worked = False

    async def glance(self) -> Health:
        """Process and /health only: at most 5 s."""
        if (code := self._exit_code()) is not None:
            return Health(state=ServerState.FAILED, reason=f"it ended with {describe_exit(code)}")
        status = await self._get_status(self._engine.endpoints.health)
        if status == _ENGINE_DEAD:
            return Health(
                state=ServerState.FAILED,
                reason=f"{self._engine.endpoints.health} says that its engine is dead",
            )
        if status == 200 or self._blind:
            return _READY
        if self._deaf_since is not None and self._clock() - self._deaf_since > DEAF_FOR:
            return Health(state=ServerState.FAILED, reason="it no longer listens on its port")
        said = "does not answer" if status is None else f"answers {status}"
        return Health(state=ServerState.DEGRADED, reason=f"{self._engine.endpoints.health} {said}")

    async def look(self) -> Health:
        """Every sign: at most 20 s, as a rule milliseconds; a canary only where in doubt."""
        health = await self.glance()
        if health.state is ServerState.FAILED:
            return health
        if self._blind:
            self._worked = self._clock()
            return health
        load = await self._load()
        cores = self._cores()
        computes = cores is not None and cores >= BUSY_CORES
        if computes:
            self._computed = self._clock()
        if self._has_counted(load):
            self.has_worked = True
            self._worked = self._clock()
        elif (health is _READY and self._is_idle(load)) or (not computes and await self._answers()):
            self._worked = self._clock()
        return self._judged(health)

    def _is_idle(self, load: Load | None) -> bool:
        return load is not None and not load.running + load.waiting and not self._busy()

    def _judged(self, health: Health) -> Health:
        now, patience = self._clock(), self._patience
        silent = now - self._worked
        # One look alone proves no idleness: other programs may take the CPU for a while.
        idle = now - max(self._worked, self._computed)
        if idle <= min(DEGRADED_AFTER, patience) and silent <= patience:
            return health
        reason = f"it has not made a token for {silent:.0f} s"
        if idle <= min(DEGRADED_AFTER, patience):
            reason += ", although it computes"
        failed = idle > patience or silent > COMPUTING_FACTOR * patience
        return Health(state=ServerState.FAILED if failed else ServerState.DEGRADED, reason=reason)

    def _has_counted(self, load: Load | None) -> bool:
        """Whether the engine has done something that it counts since the last look."""
        if load is None:
            return False
        tokens = (load.prompt_tokens or 0) + (load.generation_tokens or 0) + (load.steps or 0)
        counted = _Counted(
            tokens=tokens,
            requests=load.running + load.waiting,
            kv_cache_usage=load.kv_cache_usage,
        )
        before, self._counted = self._counted, counted
        return before is not None and (
            counted.tokens > before.tokens
            or (
                counted.requests == before.requests  # or a canary alone would fill the cache
                and counted.kv_cache_usage != before.kv_cache_usage
            )
        )

    async def _get_status(self, path: str) -> int | None:
        self._blind = False
        try:
            async with self._session.get(below(path), timeout=_PROBE) as reply:
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
        try:
            async with self._session.get(below(signal.path), timeout=_PROBE) as reply:
                body = await read_body(reply, limit=MAX_PAGE_BYTES)
                return signal.parse(body.decode(errors="replace")) if reply.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, WireError):
            return None

    async def _answers(self) -> bool:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": "1",
            "max_tokens": 1,
            "temperature": 0.0,
        }
        try:
            async with self._session.post(
                below(self._engine.endpoints.canary), json=body, timeout=_CANARY
            ) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


async def glance(base_url: str, *, engine: ServedEngine) -> Health:
    """/health of a server whose process lives: at most 5 s. Nothing to remember, no canary."""
    async with open_session(base_url) as session:
        return await HealthMonitor(
            session, engine=engine, model="", exit_code=lambda: None, patience=0
        ).glance()
