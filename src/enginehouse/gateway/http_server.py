"""HTTP/1.1 for the gateway: requests are read up to a limit, and answered in their order.

Written on asyncio's transports and httptools, because a web framework would take longer over a
request than everything else that the gateway does with it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol, cast

import httptools

_MAX_HEAD: Final = 64 << 10  # bytes of a request line and its headers
_TOO_LONG: Final = f"its head has more than {_MAX_HEAD >> 10} KiB"
_IDLE: Final = 75.0  # seconds that a connection may be silent between requests
_SLOW: Final = 60.0  # seconds that a request may be silent before its end
_SWEEP: Final = 5.0
_LINGER: Final = 1.0  # seconds in which a client can read the last bytes before the connection ends
_HIGH_WATER: Final = 256 << 10  # bytes that a slow client may leave unread
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
JSON: Final = b"application/json"


class ClientGoneError(Exception):
    """The client has closed the connection: nobody reads the answer."""


@dataclass(slots=True)
class Request:
    """One request. Names of headers are in lower case; `body` is empty until it is complete.

    `in_flight`: the application counts it among those that it has admitted.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    keep_alive: bool
    http_1_0: bool = False
    body: bytes = b""
    in_flight: bool = False


@dataclass(slots=True)
class Refusal:
    """An answer that is given without reading the request's body."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Application(Protocol):
    """What answers requests."""

    max_body: int

    def admit(self, request: Request) -> Refusal | None:
        """Take the request once its headers are known, or return why it is not answered.

        `release` follows for each request that is admitted.
        """
        ...

    def release(self, request: Request) -> None:
        """The request has ended: it was answered or refused, or its client left. Idempotent."""
        ...

    def refuse_size(self) -> Refusal:
        """The answer to a body of more than `max_body` bytes."""
        ...

    def refuse_syntax(self, why: str) -> Refusal:
        """The answer to what is not HTTP, or has too many headers."""
        ...

    def refuse_stopping(self) -> Refusal:
        """The answer to a request that was incomplete, or waiting, when the server stopped."""
        ...

    async def answer(self, request: Request, response: Response) -> None:
        """Answer the request.

        Cancelled if the client leaves (see `response.client_gone`), and when the server stops: the
        answer then has to end without waiting for anything.
        """
        ...


class Response:
    """The answer to one request: whole, or a stream of pieces.

    `complete`: nothing may be sent after what was sent.
    """

    __slots__ = ("_connection", "_request", "begun", "complete", "status")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        self.begun = False
        self.complete = False
        self.status = 0

    @property
    def client_gone(self) -> bool:
        """Whether the connection is closed, so that nothing can be sent."""
        return not self._connection.is_open

    def send(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send a whole answer."""
        self.begun = self.complete = True
        self.status = status
        keep_alive = self._connection.keeps_alive(self._request)
        head = _head(status, content_type, headers, keep_alive=keep_alive)
        shown = b"" if self._request.method == "HEAD" else body
        self._connection.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), shown))

    def begin_stream(
        self, *, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Send the head of an answer in pieces."""
        self.begun = True
        self.status = 200
        keep_alive = self._connection.keeps_alive(self._request)
        head = _head(200, content_type, headers, keep_alive=keep_alive)
        if self._request.http_1_0:  # it ends with the connection
            self._request.keep_alive = False
            self._connection.write(head + b"\r\n")
        else:
            self._connection.write(head + b"transfer-encoding: chunked\r\n\r\n")

    async def send_piece(self, piece: bytes) -> None:
        """Send one piece; waits while the client is slow to read. Raises ClientGoneError."""
        self._write_piece(piece)
        paused = self._connection.paused
        if paused is not None:
            await paused

    def _write_piece(self, piece: bytes) -> None:
        if self._request.http_1_0:
            self._connection.write(piece)
        else:
            self._connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def end_stream(self) -> None:
        """End an answer in pieces, all of which were sent."""
        self.complete = True
        if not self._request.http_1_0:
            self._connection.write(_LAST_CHUNK)

    def break_off(self, piece: bytes) -> None:
        """Send one last piece, and close the connection without the end of HTTP's chunks.

        An HTTP/1.0 client sees no difference from a whole answer, so the piece must say what is
        wrong. Does not wait for a slow client. Raises ClientGoneError.
        """
        self.complete = True
        self._request.keep_alive = False
        self._write_piece(piece)


class Connection(asyncio.Protocol):
    """One client's connection, which may carry one request after another."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._application = server.application
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()  # pipelined
        self._task: asyncio.Task[None] | None = None
        self._answering: Request | None = None  # what the task answers
        self.paused: asyncio.Future[None] | None = None
        self.heard = server.loop.time()
        self._reading = False  # a request has begun and is not complete
        self._refusal: Refusal | None = None  # nothing is read after it
        self.lost: asyncio.Future[None] = server.loop.create_future()
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_size = 0  # bytes that came before the head's end, at most
        self._fields_size = 0
        self._body: list[bytes] = []
        self._body_size = 0
        self._request: Request | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        stream = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._transport = stream
        stream.set_write_buffer_limits(high=_HIGH_WATER)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. Nobody reads an answer any more."""
        del exc
        self._transport = None
        self._forget_unanswered()
        self._server.connections.discard(self)
        self.resume_writing()
        self.lost.set_result(None)
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = self._server.loop.time()
        if self._refusal is not None:
            return
        if self._request is None:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(self._application.refuse_syntax("it asks for another protocol"))
        except httptools.HttpParserError as error:
            self._refuse(self._application.refuse_syntax(str(error)))
        if self._request is None and self._head_size > _MAX_HEAD:
            self._refuse(self._application.refuse_syntax(_TOO_LONG))

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.paused = self._server.loop.create_future()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        paused, self.paused = self.paused, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    # httptools

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        self._reading = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._url += url
        self._fields_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value
        self._fields_size += len(name) + len(value)

    def on_headers_complete(self) -> None:
        """Decide whether to read on."""
        if self._refusal is not None:
            return
        parser, headers = self._parser, self._headers
        url = self._url
        request = self._request = Request(
            method=parser.get_method().decode(),
            path=url.partition(b"?")[0].decode("ascii", "replace"),
            headers=headers,
            keep_alive=parser.should_keep_alive(),
            http_1_0=parser.get_http_version() == "1.0",
        )
        if self._fields_size > _MAX_HEAD:
            refusal: Refusal | None = self._application.refuse_syntax(_TOO_LONG)
        else:
            refusal = self._application.admit(request)
        length = headers.get(b"content-length", b"0")
        if refusal is None and length.isdigit() and int(length) > self._application.max_body:
            refusal = self._application.refuse_size()
        if refusal is not None:
            self._refuse(refusal)
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._refusal is not None:
            return
        self._body_size += len(body)
        if self._body_size > self._application.max_body:
            self._refuse(self._application.refuse_size())
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer the request, or have it wait for the one before it."""
        self._reading = False
        if self._refusal is not None:
            return
        request = self._request
        assert request is not None, "its head is complete"
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._begin()
        if self._task is None:
            self._answer(request)
        else:
            self._waiting.append(request)
            if self._transport is not None:
                self._transport.pause_reading()

    def _answer(self, request: Request) -> None:
        self._answering = request
        task = self._task = self._server.loop.create_task(self._call_application(request))
        self._server.tasks.add(task)
        task.add_done_callback(self._end)

    async def _call_application(self, request: Request) -> None:
        try:
            await self._application.answer(request, Response(self, request))
        except ClientGoneError:
            return

    def _end(self, task: asyncio.Task[None]) -> None:
        """The task has ended. It may have been cancelled before its first step."""
        self._server.tasks.discard(task)
        answered, self._answering, self._task = self._answering, None, None
        assert answered is not None
        self._application.release(answered)
        transport = self._transport
        if transport is None:
            return
        if self._waiting and self._server.stopping:
            self._refusal = self._application.refuse_stopping()
            self._forget_unanswered()
        if not answered.keep_alive:
            transport.close()
        elif self._waiting:
            request = self._waiting.popleft()
            if not self._waiting and self._refusal is None:
                transport.resume_reading()
            self._answer(request)
        elif self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._server.stopping:
            self.stop()

    def _forget_unanswered(self) -> None:
        """Release the requests that have arrived, in full or in part, and will not be answered."""
        if self._request is not None:
            self._application.release(self._request)
        for request in self._waiting:
            self._application.release(request)
        self._waiting.clear()
        self._body.clear()

    # ours

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def keeps_alive(self, request: Request) -> bool:
        """Whether the connection outlives the answer to `request`."""
        return request.keep_alive and not self._server.stopping

    def write(self, data: bytes) -> None:
        """Send bytes. Raises ClientGoneError if the connection is closed."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGoneError
        transport.write(data)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer without the rest of the request, in its turn, and close: the rest is not read."""
        if self._refusal is not None or self._transport is None:
            return
        self._refusal = refusal
        if self._request is not None:
            self._application.release(self._request)
        self._body.clear()
        if self._task is None:
            self._send_refusal(refusal)
        else:
            self._transport.pause_reading()

    def _send_refusal(self, refusal: Refusal) -> None:
        transport = self._transport
        assert transport is not None
        head = _head(refusal.status, JSON, refusal.headers, keep_alive=False)
        transport.write(b"%bcontent-length: %d\r\n\r\n" % (head, len(refusal.body)))
        transport.write(refusal.body)
        self._server.linger(transport)

    def close_if_silent(self, now: float) -> None:
        """Close it if the client has sent nothing for long, and waits for nothing."""
        silent = now - self.heard
        if self._task is not None or self._transport is None:
            return
        if silent > (_SLOW if self._reading else _IDLE):
            self._transport.close()

    def stop(self) -> None:
        """Close the connection unless a request is being answered on it.

        A request that has not arrived in full is refused.
        """
        if self._task is not None or self._transport is None or self._refusal is not None:
            return
        if self._reading:
            self._refuse(self._application.refuse_stopping())
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once; what was not sent yet is lost."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(eq=False)
class HttpServer:
    """All connections of one application."""

    application: Application
    loop: asyncio.AbstractEventLoop
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: bool = False

    def linger(self, transport: asyncio.Transport) -> None:
        """Close after a moment, in which the client can read why it was refused.

        Closing at once, with bytes unread, would make the client's system throw the answer away.
        """
        transport.pause_reading()
        if transport.can_write_eof():
            transport.write_eof()
        self.loop.call_later(_LINGER, transport.close)

    async def sweep(self) -> None:
        """Close connections that have been silent for long, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP)
            now = self.loop.time()
            for connection in tuple(self.connections):
                connection.close_if_silent(now)

    async def stop(self, grace: float) -> None:
        """Let what is being answered end within `grace` seconds, then cancel the rest.

        Clients have a moment to read what was sent to them.
        """
        self.stopping = True
        for connection in tuple(self.connections):
            connection.stop()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace)
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for connection in tuple(self.connections):
            connection.stop()
        if self.connections:
            closing = [connection.lost for connection in self.connections]
            await asyncio.wait(closing, timeout=_LINGER)
        for connection in tuple(self.connections):
            connection.abort()


@asynccontextmanager
async def serving(
    application: Application, listener: socket.socket, *, grace: float = 1.0
) -> AsyncIterator[str]:
    """Answer on `listener` for the length of the block; yields the URL.

    At the end, requests that are being answered have `grace` seconds.
    """
    loop = asyncio.get_running_loop()
    server = HttpServer(application, loop)
    listening = await loop.create_server(lambda: Connection(server), sock=listener)
    sweeping = loop.create_task(server.sweep())
    host, port = listener.getsockname()[:2]
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        sweeping.cancel()
        listening.close()
        await server.stop(grace)
        await asyncio.gather(sweeping, return_exceptions=True)


def _head(
    status: int,
    content_type: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    *,
    keep_alive: bool,
) -> bytes:
    lines = [_status_line(status), b"content-type: ", content_type, b"\r\n"]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    return b"".join(lines)


_STATUS_LINES: dict[int, bytes] = {}


def _status_line(status: int) -> bytes:
    line = _STATUS_LINES.get(status)
    if line is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        line = _STATUS_LINES[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()
    return line
