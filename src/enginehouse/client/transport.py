"""The network below the request layers: one request, one reply."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol, Self

import aiohttp
import msgspec
from yarl import URL

from enginehouse.client import open_files
from enginehouse.client.bodies import MAX_REPLY_BYTES, read_body, read_error_body, too_large
from enginehouse.client.rate_limits import retry_after
from enginehouse.client.tls import tls_error
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    MalformedResponseError,
    OpenFilesError,
    RequestTimeoutError,
    WireError,
)

# vLLM closes a connection that was idle for 5 s; reusing one it is about to close loses a request
KEEP_ALIVE = 4.0
_LARGE_BODY = 2**20


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """In seconds; None means no limit. `first_byte` limits every wait for the next bytes.

    Without streaming, the first byte comes when the whole answer is done, so `first_byte` must
    allow for the longest answer, queueing included.
    """

    connect: float = 10.0
    first_byte: float | None = None
    total: float | None = 1200.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(
                    f"the time-out {name!r} must be a finite number above 0, got {value}",
                    fix="leave it out, or give None for no limit",
                )


class WireRequest(msgspec.Struct, frozen=True):
    """One HTTP request; `path` begins with a slash and follows the server's base URL.

    `fresh`: on a new connection, which the server cannot have just closed for being idle.
    `administers`: it changes the server, and carries the administrative key if there is one.
    `timeout` replaces `Timeouts.total`, in seconds.
    """

    method: str
    path: str
    body: bytes | None = None
    fresh: bool = False
    administers: bool = False
    timeout: float | None = None


class WireReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply. `started`: seconds since the epoch; `elapsed`: seconds until its last byte.

    A streamed one has `chunks` instead of a body, `elapsed` counts until it began, and it must be
    closed. Error statuses are never streamed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after: float | None
    started: float
    elapsed: float
    chunks: AsyncIterator[bytes] | None = None
    close: Callable[[], object] = lambda: None


class Transport(Protocol):
    """Carries requests to one server. Failures below HTTP are WireErrors.

    The exception is OpenFilesError, which is not the server's failure.
    """

    async def send(self, request: WireRequest, *, streamed: bool = False) -> WireReply:
        """The reply, whatever its status: whole, or as soon as it begins if `streamed`."""
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        ...


def bearer(api_key: str) -> dict[str, str]:
    """The header that carries an API key (RFC 6750)."""
    return {"Authorization": f"Bearer {api_key}"}


class AiohttpTransport:
    """Carries requests over pooled keep-alive connections, as many at once as the caller likes.

    `base_url` may end in /v1; `authorize` makes the headers that carry `api_key`, or `admin_key`
    for requests that administer. Create it inside a running loop. Its errors never contain a key.
    """

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
        # keeps proxies from compressing what we would only unpack again
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key is not None:
            headers |= authorize(_checked_key(api_key))
        self._admin = authorize(_checked_key(admin_key)) if admin_key is not None else None
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
        for pause in (*open_files.PAUSES, None):
            body: bytes | io.BytesIO | None = request.body
            if request.body is not None and len(request.body) > _LARGE_BODY:
                body = io.BytesIO(request.body)
            try:
                return await session.request(
                    request.method,
                    url,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=self._default_limits if limits is None else limits,
                )
            except OSError as error:
                if not open_files.no_file_left(error):
                    raise
            if pause is not None:  # until another request closes its connection
                await asyncio.sleep(pause)
        raise OpenFilesError(
            f"no connection to {self.base_url}: this process has too many open files",
            why=f"it may open {open_files.open_file_limit()} (ulimit -n), or all processes have "
            "reached the machine's own limit together; the server is not to blame",
            fix="raise the limit (ulimit -n 65536), or lower --concurrency; then resume",
        )

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
        why = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientPayloadError):
            why = "the connection ended before the whole announced body had arrived"
        if answered or isinstance(error, aiohttp.ClientResponseError):
            return MalformedResponseError(
                f"the reply from {self.base_url} broke off or is not HTTP",
                why=why,
                fix="read the server's log; a server that died while answering looks like this",
            )
        return ConnectionFailedError(
            f"no reply from {self.base_url}",
            why=why,
            fix="check that the server is running and listens there",
        )

    def _timeout(
        self, error: Exception, *, answered: bool, waited: float, total: float | None
    ) -> WireError:
        timeouts = self.timeouts
        spent = total is not None and waited >= total
        if isinstance(error, aiohttp.ConnectionTimeoutError) and not spent:
            return RequestTimeoutError(
                f"connecting to {self.base_url} took longer than {timeouts.connect:g} s",
                fix="check the address and that the server accepts connections",
            )
        if isinstance(error, aiohttp.SocketTimeoutError):
            awaited = "the next bytes of the reply" if answered else "the first byte of the reply"
            return RequestTimeoutError(
                f"waiting for {awaited} took longer than {timeouts.first_byte:g} s",
                why=f"{self.base_url} was silent; {waited:.1f} s had passed since the start",
                fix="raise Timeouts.first_byte, lower max_tokens, or ask less at once",
            )
        return RequestTimeoutError(
            f"the whole request took longer than {total or waited:g} s",
            why="the reply had begun" if answered else "not a byte of the reply had arrived",
            fix="lower max_tokens or the concurrency; the server may be overloaded",
        )


def normal_base_url(base_url: str) -> str:
    """The server's root, without a trailing slash or /v1. Raises ConfigurationError."""
    text = base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        url = URL(text)
        wrong = url.scheme not in ("http", "https") or not url.host or bool(url.query_string)
    except ValueError:
        wrong = True
    if wrong:
        raise ConfigurationError(
            f"{base_url!r} is not a server's address",
            fix="give one such as http://127.0.0.1:8000 or https://host/v1",
        )
    if url.user is not None or url.password is not None:
        raise ConfigurationError(
            f"the address of {url.host} contains credentials",
            why="addresses end up in logs and reports",
            fix="give the API key separately",
        )
    return text


def redacted(error: WireError, *, api_key: str | None) -> WireError:
    """The same error without the key, which some servers quote when they reject it."""
    if api_key:
        error.message = error.message.replace(api_key, "***")
        error.args = (error.message,)
        error.why = error.why and error.why.replace(api_key, "***")
        error.body = error.body.replace(api_key.encode(), b"***")
    return error


def _checked_key(api_key: str) -> str:
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise ConfigurationError(
            "the API key is empty, or contains white space or characters outside ASCII",
            fix="check how it was copied (a trailing newline, often)",
        )
    return api_key
