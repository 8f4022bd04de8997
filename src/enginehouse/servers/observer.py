"""`enginehouse top`: what all servers of this machine are doing. Read-only."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
import msgspec

from enginehouse.client.bodies import MAX_PAGE_BYTES, read_body
from enginehouse.client.transport import normal_base_url
from enginehouse.core.errors import WireError
from enginehouse.core.sampler import Load
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import load_served_engine
from enginehouse.processes.gpus import memory_by_pid, read_gpus
from enginehouse.processes.usage import UsageMeter
from enginehouse.results.activity import Activity, ServerActivity
from enginehouse.servers.endpoint import API_KEY_VARIABLE
from enginehouse.servers.health import glance
from enginehouse.servers.records import ServerState, ServerStatus, list_servers, read_key
from enginehouse.store.layout import Layout

_PATIENCE = aiohttp.ClientTimeout(total=5)
_ANSWERING = (ServerState.READY, ServerState.DEGRADED)
_Place = tuple[str, int | None]


@dataclass
class _Memory:
    """What is remembered of a server from one look to the next."""

    usage: UsageMeter = field(default_factory=UsageMeter)
    load: Load | None = None
    moment: float = 0.0


class Observer:
    """Looks at every server with a record, and at those of `urls`; an async context manager.

    What needs two looks (rates, CPU) is None at the first look at a server, and at the first one
    after a restart.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        urls: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._urls = tuple(normal_base_url(url) for url in urls)
        self._clock = clock
        self._key = os.environ.get(API_KEY_VARIABLE)
        self._memories: dict[_Place, _Memory] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(headers=headers, timeout=_PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def look(self) -> Activity:
        """One look at everything: milliseconds, or 5 s if a server does not answer."""
        statuses, gpus, held = await asyncio.gather(
            asyncio.to_thread(list_servers, self._layout),
            asyncio.to_thread(read_gpus),
            asyncio.to_thread(memory_by_pid),
        )
        places: list[_Place] = [(s.record.base_url, s.record.process.pid) for s in statuses]
        places += [(url, None) for url in self._urls]
        self._memories = {place: self._memories.get(place) or _Memory() for place in places}
        servers = await asyncio.gather(
            *(self._look_at_own(status, held if gpus else None) for status in statuses),
            *(self._look_at_url(url) for url in self._urls),
        )
        return Activity(at=time.time(), servers=tuple(servers), gpus=gpus)

    async def _look_at_own(
        self, status: ServerStatus, held: Mapping[int, int] | None
    ) -> ServerActivity:
        record = status.record
        memory = self._memories[record.base_url, record.process.pid]
        used = memory.usage.read(status.pids)
        activity = ServerActivity(
            name=record.name,
            url=record.base_url,
            state=status.state,
            problem="abandoned by the process that started it" if status.abandoned else None,
            processes=used.processes,
            cpu=used.cpu,
            rss_bytes=used.rss_bytes,
            gpu_bytes=None if held is None else sum(held.get(pid, 0) for pid in status.pids),
        )
        if status.state not in _ANSWERING:
            return activity
        engine = load_served_engine(record.engine)
        key = read_key(record) if record.has_api_key else None
        return await self._with_figures(activity, memory, engine, key=key)

    async def _look_at_url(self, url: str) -> ServerActivity:
        activity = ServerActivity(name=None, url=url, state=ServerState.READY)
        return await self._with_figures(activity, self._memories[url, None], load_served_engine())

    async def _with_figures(
        self,
        activity: ServerActivity,
        memory: _Memory,
        engine: ServedEngine,
        *,
        key: str | None = None,
    ) -> ServerActivity:
        """The activity with state, problem and rates as the server reports them."""
        health, load = await asyncio.gather(
            glance(activity.url, engine=engine), self._load(activity.url, engine, key=key)
        )
        problem = health.reason or activity.problem
        if isinstance(load, str):
            memory.load = None
            return msgspec.structs.replace(activity, state=health.state, problem=problem or load)
        now = self._clock()
        before, seconds = memory.load or Load(running=0, waiting=0), now - memory.moment
        memory.load, memory.moment = load, now
        return msgspec.structs.replace(
            activity, state=health.state, problem=problem, **figures(before, load, seconds=seconds)
        )

    async def _load(self, url: str, engine: ServedEngine, *, key: str | None) -> Load | str:
        """The server's queue, or the reason why it is not known."""
        assert self._session is not None, "use the observer inside `async with`"
        signal = engine.load_signal
        if signal is None:
            return f"{engine.name} does not show its queue"
        path = signal.path
        headers = {"Authorization": f"Bearer {key}"} if key else None
        try:
            async with self._session.get(
                url + path, headers=headers, allow_redirects=False
            ) as reply:
                status = reply.status
                body = (await read_body(reply, limit=MAX_PAGE_BYTES)).decode(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError, WireError) as error:
            return f"{path} does not answer ({type(error).__name__})"
        if status in {401, 403}:
            refused = f"it refused the key in {API_KEY_VARIABLE}"
            return refused if self._key else f"it requires an API key: set {API_KEY_VARIABLE}"
        if status != 200:
            return f"{path} answered {status}"
        return signal.parse(body) or f"{path} shows no queue"


def figures(before: Load, now: Load, *, seconds: float) -> dict[str, Any]:
    """The fields of a ServerActivity that two looks at its queue give, `seconds` apart."""

    def growth(counter: str) -> int | None:
        early, late = getattr(before, counter), getattr(now, counter)
        # A smaller one was reset.
        return None if early is None or late is None or late < early else late - early

    def rate(counter: str) -> float | None:
        grown = growth(counter)
        return None if grown is None or seconds <= 0 else grown / seconds

    hits, queries = growth("prefix_cache_hits"), growth("prefix_cache_queries")
    return {
        "running": now.running,
        "waiting": now.waiting,
        "kv_cache_usage": now.kv_cache_usage,
        "prompt_tokens_per_second": rate("prompt_tokens"),
        "output_tokens_per_second": rate("generation_tokens"),
        "preemptions": growth("preemptions"),
        "prefix_cache_hits": hits / queries if hits is not None and queries else None,
    }
