"""Connections that speak HTTP/1.1, and the pool that keeps them for the next request."""

from __future__ import annotations

import asyncio
import math
import socket
import zlib
from collections.abc import Iterator, Mapping
from typing import Final, cast

import httptools

from enginehouse.client.bodies import MAX_ERROR_BYTES, MAX_REPLY_BYTES, too_large
from enginehouse.client.failures import Failures
from enginehouse.core.errors import WireError

_MAX_HEAD: Final = 64 << 10  # bytes of a status line and its headers
_HIGH_WATER: Final = 128 << 10  # bytes of a stream that its reader may leave unread
_JOINED: Final = 64 << 10  # bytes of a request's body that are copied to send it in one piece
_WITHOUT_BODY: Final = (204, 304)
_NO_HEADERS: Final[Mapping[bytes, bytes]] = {}


class Headers(Mapping[str, str]):
    """A reply's headers, by name in any case; of several with one name the first."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[bytes, bytes]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower().encode()].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("ascii", "replace") for name in self._fields)

    def __len__(self) -> int:
        return len(self._fields)


class Incoming:
    """One reply as it arrives. `status` is 0 until its head is complete.

    `total` and `silence` are limits in seconds, since `begun` (by the loop's clock) and between
    two arrivals. If it is `streamed`, and not an error, its bytes are taken while it arrives, and
    the connection is not read while too many of them wait.
    """

    __slots__ = (
        "_decoder",
        "_failures",
        "_limit",
        "_loop",
        "_pieces",
        "_size",
        "_waiter",
        "begun",
        "complete",
        "connection",
        "deadline",
        "error",
        "fields",
        "silence",
        "status",
        "streamed",
        "total",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        failures: Failures,
        *,
        begun: float,
        total: float | None,
        silence: float | None,
        streamed: bool,
    ) -> None:
        self._loop = loop
        self._failures = failures
        self.begun = begun
        self.total = total
        self.silence = silence
        self.deadline = math.inf if total is None else begun + total
        self.streamed = streamed
        self.status = 0
        self.fields: Mapping[bytes, bytes] = _NO_HEADERS
        self.complete = False
        self.error: WireError | None = None
        self.connection: Connection | None = None
        self._decoder: _Decoder | None = None
        self._limit = MAX_REPLY_BYTES
        self._pieces: list[bytes] = []
        self._size = 0  # of the pieces
        self._waiter: asyncio.Future[None] | None = None

    # for the caller

    async def progress(self) -> None:
        """Wait until there is more of it, or it failed."""
        self._waiter = self._loop.create_future()
        await self._waiter

    @property
    def has_begun(self) -> bool:
        """Whether there is as much of it as was asked for: all, or the head of a stream."""
        return self.complete or (self.streamed and self.status > 0)

    @property
    def has_pieces(self) -> bool:
        """Whether bytes of its body wait to be taken."""
        return self._size > 0

    def take(self) -> bytes:
        """The bytes of its body that have arrived since the last call."""
        pieces = self._pieces
        self._pieces = []
        self._size = 0
        if self.connection is not None:
            self.connection.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the connection, unless the reply is complete. Idempotent."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()

    # for its connection

    def wake(self) -> None:
        """There is news."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def begin(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        """Its head is complete."""
        self.status = status
        self.fields = fields
        if status != 200:
            self.streamed = False
            self._limit = MAX_ERROR_BYTES
        encoding = fields.get(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            self._decoder = _Decoder(encoding)
        if self.streamed:
            self.wake()

    def add(self, piece: bytes) -> bool:
        """Add bytes as they arrived; false if there are enough, and the rest is not wanted.

        Raises ValueError for bytes that cannot be decompressed.
        """
        if self._decoder is not None:
            piece = self._decoder.decode(piece, most=self._limit + 1)
        if not piece:
            return True
        self._pieces.append(piece)
        self._size += len(piece)
        if self.streamed:
            self.wake()
            return True
        return self._size <= self._limit

    @property
    def is_backed_up(self) -> bool:
        """Whether its reader is slower than the server."""
        return self.streamed and self._size > _HIGH_WATER

    def cut(self) -> None:
        """End it at its limit, which is an error unless the reply reports one."""
        if self.status == 200:
            self.fail(too_large(self._failures.base_url, self._limit))
            return
        self._pieces = [b"".join(self._pieces)[: self._limit]]
        self.end()

    def end(self) -> None:
        """It is complete."""
        self.connection = None
        if self._decoder is not None and not self._decoder.is_complete:
            self.fail(self._failures.broken_off())
            return
        self.complete = True
        self.wake()

    def fail(self, error: WireError) -> None:
        """It will never be complete."""
        self.connection = None
        self.error = error
        self.wake()

    def lose(self, exc: Exception | None) -> None:
        """Its connection has ended."""
        why = "Server disconnected" if exc is None else str(exc) or type(exc).__name__
        if not self.status:
            self.fail(self._failures.no_reply(why))
        else:
            self.fail(self._failures.broken_off())

    def reject(self, why: str) -> None:
        """It is not HTTP."""
        self.fail(self._failures.broken_reply(why))

    def expire(self, now: float) -> None:
        """One of its limits is over."""
        answered = self.status > 0
        if self.total is not None and now >= self.deadline:
            self.fail(self._failures.overtime(answered=answered, total=self.total))
        else:
            self.fail(self._failures.silence(answered=answered, waited=now - self.begun))


class _Decoder:
    """Decompresses a body. Nobody asks for compression, but some proxies compress nevertheless."""

    def __init__(self, encoding: bytes) -> None:
        self._name = encoding.decode("ascii", "replace").lower()
        self._inflate = zlib.decompressobj(31)
        self._begun = False

    @property
    def is_complete(self) -> bool:
        """Whether the end of the compressed data was reached."""
        return self._inflate.eof or not self._begun

    def decode(self, data: bytes, *, most: int) -> bytes:
        """The first `most` bytes of what `data` stands for, at least. Raises ValueError."""
        if not self._begun:
            self._inflate = zlib.decompressobj(self._window(data))
            self._begun = True
        decoded: list[bytes] = []
        try:
            while data and most > 0:
                if self._inflate.eof:  # gzip allows one after another
                    self._inflate = zlib.decompressobj(31)
                decoded.append(self._inflate.decompress(data, most))
                most -= len(decoded[-1])
                data = self._inflate.unused_data
        except zlib.error as error:
            raise ValueError(f"its body cannot be decompressed: {error}") from None
        return b"".join(decoded)

    def _window(self, data: bytes) -> int:
        if self._name in ("gzip", "x-gzip"):
            return 31
        if self._name == "deflate":  # with zlib's header (RFC 9110, 8.4.1.2), or without
            return 15 if data[0] & 0xF == zlib.DEFLATED else -15
        raise ValueError(f"its content coding is {self._name!r}, which was not asked for")


class Connection(asyncio.Protocol):
    """One connection, which carries one request after another."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        # what aiohttp tolerates, too
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._reply: Incoming | None = None
        self._fields: dict[bytes, bytes] = {}
        self._head_size = 0
        self._until_closed = False
        self._interim = False  # a 1xx, which precedes the reply
        self._unasked = False  # the server has sent what nobody waits for
        self._paused = False
        self._quiet_at = math.inf  # when the server will have been silent for too long
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @property
    def is_open(self) -> bool:
        """Whether its end is still to come."""
        return self._transport is not None

    @property
    def is_usable(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes | None, reply: Incoming) -> None:
        """Send a request, whose reply this is."""
        transport = self._transport
        if transport is None or transport.is_closing():
            reply.lose(None)
            return
        self._reply = reply
        reply.connection = self
        if reply.silence is not None:
            self._quiet_at = self._loop.time() + reply.silence
        self._watch(reply)
        if body is None:
            transport.write(head)
        elif len(body) <= _JOINED:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    def resume(self) -> None:
        """Read on, if reading was paused."""
        if not self._paused:
            return
        self._paused = False
        reply = self._reply
        if reply is not None and reply.silence is not None:
            self._quiet_at = self._loop.time() + reply.silence
            self._watch(reply)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close it at once; its reply fails."""
        if self._transport is not None:
            self._transport.abort()

    def abort(self) -> None:
        """Close it at once; nobody waits for its reply any more."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        stream = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._transport = stream
        # a host that has vanished says nothing, and there may be no other limit
        stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._pool.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reply, self._reply = self._reply, None
        del self._parser  # which refers to this
        if reply is None:
            return
        if reply.status and self._until_closed and exc is None:
            reply.end()
        else:
            reply.lose(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        reply = self._reply
        if reply is None:
            self.abort()
            return
        if not reply.status:
            self._head_size += len(data)
        if reply.silence is not None:
            self._quiet_at = self._loop.time() + reply.silence
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up(str(error.__context__ or error) or "it asks for another protocol")
            return
        if self._unasked:
            self.abort()
        elif self._reply is reply:
            if not reply.status and self._head_size > _MAX_HEAD:
                self._give_up(f"its head has more than {_MAX_HEAD >> 10} KiB")
            elif reply.is_backed_up and not self._paused and self._transport is not None:
                self._paused = True
                self._quiet_at = math.inf
                self._transport.pause_reading()

    # httptools

    def on_message_begin(self) -> None:
        """Begin a reply, or what follows a 1xx."""
        if self._reply is None or self._reply.status:
            self._unasked = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or one that follows the body."""
        self._head_size += len(name) + len(value)
        if self._head_size > 2 * _MAX_HEAD:
            raise ValueError(f"its head has more than {_MAX_HEAD >> 10} KiB")
        self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Begin the reply that was asked for."""
        reply = self._reply
        if reply is None:
            return
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, {}
        if status < 200 and status != 101:
            self._interim = True
            return
        coding = fields.get(b"transfer-encoding")
        if coding is None:
            self._until_closed = b"content-length" not in fields and status not in _WITHOUT_BODY
        else:
            self._until_closed = not coding.lower().rstrip().endswith(b"chunked")
        reply.begin(status, fields)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body. Raises ValueError for one that cannot be decompressed."""
        reply = self._reply
        if reply is not None and not reply.add(body):
            self.abort()
            reply.cut()

    def on_message_complete(self) -> None:
        """End the reply, and keep the connection for the next one if it can be."""
        if self._interim:
            self._interim = False
            return
        reply, self._reply = self._reply, None
        transport = self._transport
        if reply is None or transport is None:
            return
        self._quiet_at = math.inf
        self._head_size = 0
        self._fields = {}
        reply.end()
        if not self._parser.should_keep_alive() or transport.get_write_buffer_size():
            transport.close()
            return
        if self._paused:
            self._paused = False
            transport.resume_reading()
        self._pool.give_back(self)

    # ours

    def _give_up(self, why: str) -> None:
        reply = self._reply
        self.abort()
        if reply is not None:
            reply.reject(why)

    def _watch(self, reply: Incoming) -> None:
        """Look again when the next limit is over; limits that only move back need no new timer."""
        ends = min(reply.deadline, self._quiet_at)
        if ends == math.inf or (self._timer is not None and self._timer_at <= ends):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = ends
        self._timer = self._loop.call_at(ends, self._look)

    def _look(self) -> None:
        self._timer = None
        reply = self._reply
        if reply is None:
            return
        now = self._loop.time()
        if now >= min(reply.deadline, self._quiet_at):
            self.abort()
            reply.expire(now)
        else:
            self._watch(reply)


class Pool:
    """All connections of a transport; those without a request are kept for `keep_alive` seconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, keep_alive: float) -> None:
        self.loop = loop
        self.is_closed = False
        self._keep_alive = keep_alive
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when, in this order
        self._sweeping: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None

    def take(self) -> Connection | None:
        """The kept connection that was used last, which the server is the least likely to close."""
        idle = self._idle
        while idle:
            connection, since = idle.popitem()
            if connection.is_usable and self.loop.time() - since < self._keep_alive:
                return connection
            connection.abort()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        self._idle[connection] = self.loop.time()
        if self._sweeping is None:
            self._sweeping = self.loop.call_later(self._keep_alive, self._sweep)

    def join(self, connection: Connection) -> None:
        """The connection belongs to the pool until its end, if that has not come already.

        Not before its opener has it: one that is cancelled in the moment when it is made
        is closed by uvloop without a word, and would be waited for in vain.
        """
        if connection.is_open:
            self._connections.add(connection)

    def leave(self, connection: Connection) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if self._emptied is not None and not self._connections and not self._emptied.done():
            self._emptied.set_result(None)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self.is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for connection in tuple(self._connections):
            connection.close()
        if self._connections:
            if self._emptied is None:
                self._emptied = self.loop.create_future()
            await asyncio.shield(self._emptied)

    def _sweep(self) -> None:
        self._sweeping = None
        oldest = self.loop.time() - self._keep_alive
        for connection, since in tuple(self._idle.items()):
            if since > oldest:
                self._sweeping = self.loop.call_at(since + self._keep_alive, self._sweep)
                return
            del self._idle[connection]
            connection.abort()
