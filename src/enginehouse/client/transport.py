"""The network below the request layers: one request, one reply."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import msgspec
from yarl import URL

from enginehouse.core.errors import ConfigurationError, WireError

if TYPE_CHECKING:
    from enginehouse.client.aiohttp_transport import AiohttpTransport
    from enginehouse.client.http1 import Http1Transport

# vLLM closes a connection that was idle for 5 s; reusing one it is about to close loses a request
KEEP_ALIVE = 4.0


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


# keeps proxies from compressing what we would only unpack again
HEADERS: Mapping[str, str] = MappingProxyType(
    {"Content-Type": "application/json", "Accept-Encoding": "identity"}
)


def bearer(api_key: str) -> dict[str, str]:
    """The header that carries an API key (RFC 6750)."""
    return {"Authorization": f"Bearer {api_key}"}


def open_transport(
    base_url: str,
    *,
    api_key: str | None = None,
    admin_key: str | None = None,
    authorize: Callable[[str], Mapping[str, str]] = bearer,
    timeouts: Timeouts | None = None,
) -> Http1Transport | AiohttpTransport:
    """Carries requests over pooled keep-alive connections, as many at once as the caller likes.

    `base_url` may end in /v1; `authorize` makes the headers that carry `api_key`, or `admin_key`
    for requests that administer. Create it inside a running loop, and use it as an asynchronous
    context manager, or close it. Its errors never contain a key.
    """
    from enginehouse.client.aiohttp_transport import AiohttpTransport
    from enginehouse.client.http1 import Http1Transport

    encrypted = URL(normal_base_url(base_url)).scheme == "https"
    carrier = AiohttpTransport if encrypted else Http1Transport
    return carrier(
        base_url,
        api_key=api_key,
        admin_key=admin_key,
        authorize=authorize,
        timeouts=timeouts,
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


def checked_key(api_key: str) -> str:
    """An API key that a header can carry. Raises ConfigurationError for another one."""
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key or not api_key:
        raise ConfigurationError(
            "the API key is empty, or contains white space or characters outside ASCII",
            fix="check how it was copied (a trailing newline, often)",
        )
    return api_key
