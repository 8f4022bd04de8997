"""A transport on aiohttp: for https, and for whatever else HTTP allows."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Self

import aiohttp
from yarl import URL

from enginehouse.client import open_files
from enginehouse.client.bodies import MAX_REPLY_BYTES, read_body, read_error_body, too_large
from enginehouse.client.failures import Failures
from enginehouse.client.rate_limits import retry_after
from enginehouse.client.tls import tls_error
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
from enginehouse.core.errors import WireError

_LARGE_BODY = 2**20


class AiohttpTransport:
    """Carries requests to http and https addresses. Arguments: see `transport.open_transport`."""

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
        self._urls: dict[str, URL] = {}
        self._failures = Failures(self.base_url, timeouts=self.timeouts)
        headers = dict(HEADERS)
        if api_key is not None:
            headers |= authorize(checked_key(api_key))
        self._admin = authorize(checked_key(admin_key)) if admin_key is not None else None
        self._default_limits = self._limits(self.timeouts.total)
        self._pooled, self._fresh = (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                timeout=self._default_limits,
            )
            for connector in (
                aiohttp.TCPConnector(limit=0, keepalive_timeout=keep_alive),
                aiohttp.TCPConnector(limit=0, force_close=True),
            )
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        try:
            await self._pooled.close()
        finally:  # cancelled meanwhile, too
            await self._fresh.close()

    async def send(self, request: WireRequest, *, streamed: bool = False) -> WireReply:
        """The reply, whatever its status: whole, or as soon as it begins if `streamed`.

        Raises WireError for failures below HTTP.
        """
        started = time.time()
        begun = time.perf_counter()
        response: aiohttp.ClientResponse | None = None
        chunks: AsyncIterator[bytes] | None = None
        body = b""
        try:
            response = await self._request(request)
            if response.status != 200:
                body = await read_error_body(response)
            elif streamed:
                chunks = self._chunks(response, begun, self._total(request))
            else:
                body = await read_body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failure(
                error,
                answered=response is not None,
                waited=time.perf_counter() - begun,
                total=self._total(request),
            ) from None
        finally:
            if response is not None and chunks is None:
                response.release()
        return WireReply(
            status=response.status,
            headers=response.headers,
            body=body,
            retry_after=None if response.status < 400 else retry_after(response.headers),
            started=started,
            elapsed=time.perf_counter() - begun,
            chunks=chunks,
            # closing, not releasing, tells the server to stop generating for nobody
            close=response.close,
        )

    async def _chunks(
        self, response: aiohttp.ClientResponse, begun: float, total: float | None
    ) -> AsyncIterator[bytes]:
        size = 0
        while True:
            try:
                chunk = await response.content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                waited = time.perf_counter() - begun
                raise self._failure(error, answered=True, waited=waited, total=total) from None
            if not chunk:
                return
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise too_large(self.base_url, MAX_REPLY_BYTES)
            yield chunk

    async def _request(self, request: WireRequest) -> aiohttp.ClientResponse:
        url = self._urls.get(request.path)
        if url is None:
            url = self._urls[request.path] = URL(self.base_url + request.path)
        session = self._fresh if request.fresh else self._pooled
        headers = self._admin if request.administers else None
        limits = None if request.timeout is None else self._limits(request.timeout)

        async def ask() -> aiohttp.ClientResponse:
            body: bytes | io.BytesIO | None = request.body
            if request.body is not None and len(request.body) > _LARGE_BODY:
                body = io.BytesIO(request.body)
            return await session.request(
                request.method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=self._default_limits if limits is None else limits,
            )

        return await open_files.with_patience(ask, base_url=self.base_url)

    def _limits(self, total: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=total,
            sock_connect=self.timeouts.connect,
            sock_read=self.timeouts.first_byte,
        )

    def _total(self, request: WireRequest) -> float | None:
        return self.timeouts.total if request.timeout is None else request.timeout

    def _failure(
        self, error: Exception, *, answered: bool, waited: float, total: float | None
    ) -> WireError:
        """`answered`: the reply had begun. The cause is not chained: its repr may show headers."""
        if isinstance(error, TimeoutError):
            return self._timeout(error, answered=answered, waited=waited, total=total)
        if (failed := tls_error(error, base_url=self.base_url)) is not None:
            return failed
        if isinstance(error, aiohttp.ClientPayloadError):
            return self._failures.broken_off()
        why = str(error) or type(error).__name__
        if answered or isinstance(error, aiohttp.ClientResponseError):
            return self._failures.broken_reply(why)
        return self._failures.no_reply(why)

    def _timeout(
        self, error: Exception, *, answered: bool, waited: float, total: float | None
    ) -> WireError:
        spent = total is not None and waited >= total
        if isinstance(error, aiohttp.ConnectionTimeoutError) and not spent:
            return self._failures.slow_connection()
        if isinstance(error, aiohttp.SocketTimeoutError):
            return self._failures.silence(answered=answered, waited=waited)
        return self._failures.overtime(answered=answered, total=total or waited)
