"""A proxy that passes requests on, and loses the first answer to some of them on the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

_HOP_BY_HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}


class DroppingProxy:
    """Forwards to `target`; `dropped` counts by path the answers that were lost."""

    def __init__(self, target: str, *, paths: Collection[str]) -> None:
        self._target = target
        self._paths = paths
        self._seen: set[bytes] = set()
        self.dropped: Counter[str] = Counter()
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[DroppingProxy]:
        """Listen on a free port of loopback."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._forward)
        runner = web.AppRunner(app)
        await runner.setup()
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as self._session:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        url = f"{self._target}{request.path_qs}"
        async with self._session.request(request.method, url, data=body, headers=headers) as reply:
            answer = await reply.read()
        if request.path in self._paths and body not in self._seen:
            self._seen.add(body)
            self.dropped[request.path] += 1
            assert request.transport is not None
            request.transport.abort()
        kept = {k: v for k, v in reply.headers.items() if k.lower() not in _HOP_BY_HOP}
        if encoding := reply.headers.get("Content-Encoding"):
            kept["Content-Encoding"] = encoding
        return web.Response(body=answer, status=reply.status, headers=kept)
