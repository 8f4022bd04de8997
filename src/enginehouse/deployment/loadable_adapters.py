"""Adapters that come and go as requests name them, on one server or several that answer alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.spread import Instance
from enginehouse.core.errors import EnginehouseError
from enginehouse.weights.pool import AdapterPool

_FAREWELL = 10.0  # seconds


@dataclass(frozen=True, kw_only=True)
class ServerAdapters:
    """The adapters of one server; `instance` is its place among several, None if it is alone."""

    pool: AdapterPool
    instance: Instance | None = None

    @property
    def given_up(self) -> bool:
        """Whether the server will not come back."""
        return self.instance is not None and self.instance.redelivery.error is not None

    @contextmanager
    def offered(self, model: str) -> Iterator[None]:
        """Have requests for the model prefer this server for the length of the block."""
        if self.instance is None:
            yield
            return
        self.instance.models[model] += 1
        try:
            yield
        finally:
            self.instance.models[model] -= 1


class LoadableAdapters:
    """An adapter that is held is loaded into every server, so that any of them can answer.

    A server that was given up is left out; if all were, requests themselves say so.
    """

    def __init__(self, servers: Sequence[ServerAdapters]) -> None:
        self._servers = tuple(servers)

    def served_names(self) -> frozenset[str]:
        """What the servers call the adapters that can be held."""
        return frozenset(
            adapter.model for server in self._servers for adapter in server.pool.adapters()
        )

    async def load(self, alias: str, folder: Path, *, prove: bool) -> None:
        """Load it everywhere; `alias` stands for it from now on. Raises as AdapterPool.load."""

        async def into(server: ServerAdapters) -> None:
            try:
                await server.pool.load(alias, folder, prove=prove)
            except EnginehouseError:
                if not server.given_up:
                    raise

        outcomes = await asyncio.gather(*map(into, self._servers), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    @asynccontextmanager
    async def held(self, alias: str) -> AsyncIterator[str]:
        """Keep it loaded for the length of the block; yields the model that requests name.

        Raises as AdapterPool.held.
        """
        async with AsyncExitStack() as stack:
            model = alias
            # always in the same order: no two requests wait for a place that the other one has
            for server in self._servers:
                if not server.given_up:
                    model = await stack.enter_async_context(server.pool.held(alias))
                    stack.enter_context(server.offered(model))
            yield model

    async def unload(self, alias: str) -> None:
        """Forget an alias. What cannot be unloaded is left to the server."""
        for server in self._servers:
            with suppress(EnginehouseError):
                await server.pool.unload(alias)

    async def unload_all(self) -> None:
        """Forget every alias, as far as the servers answer within a few seconds."""
        aliases = {adapter.alias for server in self._servers for adapter in server.pool.adapters()}
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                for alias in sorted(aliases):
                    await self.unload(alias)

    async def restore(self) -> None:
        """Load again what a server has lost, where only a refused request has told so."""
        for server in self._servers:
            if not server.given_up:
                await server.pool.restore_unannounced()
