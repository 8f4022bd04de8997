"""A transport for HTTP/1.1 without TLS, on asyncio's transports and httptools.

A general HTTP client takes longer over a request than everything else that we do with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Self

from yarl import URL

from enginehouse.client import open_files
from enginehouse.client.bodies import MAX_REPLY_BYTES, too_large
from enginehouse.client.failures import Failures
from enginehouse.client.http1_connections import Connection, Headers, Incoming, Pool
from enginehouse.client.rate_limits import retry_after
from enginehouse.client.transport import (
    HEADERS,
    KEEP_ALIVE,
    Timeouts,
    WireReply,
    WireRequest,
    bearer,
    checked_key,
    normal_base_url,
)
from enginehouse.core.errors import ConnectionFailedError


class Http1Transport:
    """Carries requests to http addresses. Arguments: see `transport.open_transport`."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        admin_key: str | None = None,
        authorize: Callable[[str], Mapping[str, str]] = bearer,
        timeouts: Timeouts | None = None,
        keep_alive: float = KEEP_ALIVE,
    ) -> None:
        self.base_url = normal_base_url(base_url)
        self.timeouts = timeouts or Timeouts()
        url = URL(self.base_url)
        host, port = url.raw_host, url.port
        if url.scheme != "http" or host is None or port is None:
            raise ValueError(f"{self.base_url} is not an http address")
        self._host, self._port = host, port
        shown = f"[{host}]" if ":" in host else host
        headers = {
            "Host": shown if port == 80 else f"{shown}:{port}",
            "User-Agent": "enginehouse",
            "Accept": "*/*",
            **HEADERS,
        }
        if api_key is not None:
            headers = _replaced(headers, authorize(checked_key(api_key)))
        self._headers = self._admin_headers = headers
        if admin_key is not None:
            self._admin_headers = _replaced(headers, authorize(checked_key(admin_key)))
        self._heads: dict[tuple[str, str, bool, bool], bytes] = {}
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(self._loop, keep_alive=keep_alive)
        self._failures = Failures(self.base_url, timeouts=self.timeouts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        await self._pool.close()

    async def send(self, request: WireRequest, *, streamed: bool = False) -> WireReply:
        """The reply, whatever its status: whole, or as soon as it begins if `streamed`.

        Raises WireError for failures below HTTP.
        """
        started = time.time()
        begun = time.perf_counter()
        reply = await self._reply(request, streamed=streamed)
        elapsed = time.perf_counter() - begun
        headers = Headers(reply.fields)
        after = None if reply.status < 400 else retry_after(headers)
        if reply.streamed:
            return WireReply(
                status=200,
                headers=headers,
                body=b"",
                retry_after=after,
                started=started,
                elapsed=elapsed,
                chunks=self._chunks(reply),
                # closing tells the server to stop generating for nobody
                close=reply.close,
            )
        return WireReply(
            status=reply.status,
            headers=headers,
            body=reply.take(),
            retry_after=after,
            started=started,
            elapsed=elapsed,
        )

    async def _chunks(self, reply: Incoming) -> AsyncIterator[bytes]:
        size = 0
        while True:
            if reply.error is not None:
                raise reply.error
            if reply.has_pieces:
                chunk = reply.take()
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    raise too_large(self.base_url, MAX_REPLY_BYTES)
                yield chunk
            elif reply.complete:
                return
            else:
                await reply.progress()

    async def _reply(self, request: WireRequest, *, streamed: bool) -> Incoming:
        """The reply: whole, or with its head if it is `streamed` and no error."""
        if self._pool.is_closed:
            raise RuntimeError("the transport is closed")
        total = self.timeouts.total if request.timeout is None else request.timeout
        begun = self._loop.time()
        connection = None if request.fresh else self._pool.take()
        kept = connection is not None
        while True:
            reply = Incoming(
                self._loop,
                self._failures,
                begun=begun,
                total=total,
                silence=self.timeouts.first_byte,
                streamed=streamed,
            )
            if connection is None:
                connection = await self._connect(total)
            connection.ask(self._head(request), request.body, reply)
            try:
                while reply.error is None and not reply.has_begun:
                    await reply.progress()
            except BaseException:
                reply.close()
                raise
            if reply.error is None:
                return reply
            closed = isinstance(reply.error, ConnectionFailedError)
            if not (kept and closed and request.method == "GET"):
                raise reply.error
            # the server was free to close a kept connection, and only a GET is safe to ask twice
            connection, kept = None, False

    def _head(self, request: WireRequest) -> bytes:
        key = request.method, request.path, request.administers, request.fresh
        head = self._heads.get(key)
        if head is None:
            target = URL(self.base_url + request.path).raw_path_qs
            headers = self._admin_headers if request.administers else self._headers
            lines = [f"{request.method} {target} HTTP/1.1"]
            lines += (f"{name}: {value}" for name, value in headers.items())
            if request.fresh:
                lines.append("Connection: close")
            head = self._heads[key] = ("\r\n".join(lines) + "\r\n").encode()
        if request.body is None and request.method == "GET":
            return head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n" % (head, len(request.body or b""))

    async def _connect(self, total: float | None) -> Connection:
        connect = partial(self._opened, total)
        try:
            return await open_files.with_patience(connect, base_url=self.base_url)
        except OSError as error:
            raise self._failures.no_reply(str(error) or type(error).__name__) from None

    async def _opened(self, total: float | None) -> Connection:
        limit = self.timeouts.connect
        spent = total is not None and total <= limit
        try:
            async with asyncio.timeout(total if spent else limit) as waiting:
                _, connection = await self._loop.create_connection(
                    partial(Connection, self._pool), self._host, self._port
                )
        except TimeoutError:
            if not waiting.expired():  # the system's own
                raise
            if total is not None and spent:
                raise self._failures.overtime(answered=False, total=total) from None
            raise self._failures.slow_connection() from None
        if self._pool.is_closed:
            connection.abort()
            raise self._failures.no_reply("the transport was closed meanwhile")
        self._pool.join(connection)
        return connection


def _replaced(headers: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """Both, where `others` win; names are compared in any case."""
    names = {name.lower() for name in others}
    return {name: value for name, value in headers.items() if name.lower() not in names} | dict(
        others
    )
