"""What only the transport for plain HTTP has to get right by itself."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing, suppress

import msgspec
import pytest
import uvloop

from enginehouse.client.aiohttp_transport import AiohttpTransport
from enginehouse.client.http1 import Http1Transport
from enginehouse.client.http1_connections import Connection
from enginehouse.client.transport import Timeouts, WireReply, WireRequest, open_transport
from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    RequestTimeoutError,
)
from enginehouse.testing.fake_engine import running_fake_engine

from .conftest import Behaviour, Carrier, ScriptedServer, raw, reply

Start = Callable[..., Awaitable[ScriptedServer]]
ASK = WireRequest("POST", "/v1/x", b"{}")
LOOK = WireRequest("GET", "/v1/x")
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def read(stream: WireReply) -> bytes:
    """All of a stream."""
    assert stream.chunks is not None
    with closing(stream):
        return b"".join([chunk async for chunk in stream.chunks])


def until_closed(closed: asyncio.Event, *, begin: bytes = b"") -> Behaviour:
    """Send these bytes, and note when the client has closed the connection."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        reader = writer.transport.get_protocol()._stream_reader
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        closed.set()
        writer.close()

    return behave


async def test_which_transport_an_address_gets():
    """TLS is aiohttp's."""
    async with open_transport("http://h") as plain, open_transport("https://h/v1") as encrypted:
        assert isinstance(plain, Http1Transport)
        assert isinstance(encrypted, AiohttpTransport)
    with pytest.raises(ValueError, match="https"):
        Http1Transport("https://h")


@pytest.mark.parametrize(
    ("url", "host"), [("http://h", "h"), ("http://h:81", "h:81"), ("http://[::1]:8", "[::1]:8")]
)
async def test_the_host_header(url: str, host: str):
    """With the port where it is not 80, and in brackets for IPv6 (RFC 9110, 7.2)."""
    async with Http1Transport(url) as transport:
        assert f"\r\nHost: {host}\r\n".encode() in transport._head(ASK)


async def test_lengths_of_requests():
    """A GET has no body; a POST without one says so."""
    async with Http1Transport("http://h") as transport:
        assert b"Content-Length" not in transport._head(LOOK)
        assert b"Content-Length: 0\r\n" in transport._head(WireRequest("POST", "/"))
        assert b"Content-Length: 2\r\n" in transport._head(ASK)


async def test_the_administrative_key_replaces_the_other(scripted: Start, carrier: Carrier):
    """Only where it is asked for."""
    server = await scripted(reply(b"{}"))
    async with carrier(server.url, api_key="k", admin_key="a") as transport:
        await transport.send(ASK)
        await transport.send(msgspec.structs.replace(ASK, administers=True))
    keys = [
        [line for line in sent.split(b"\r\n") if line.startswith(b"Authorization")]
        for sent in server.requests
    ]
    assert keys == [[b"Authorization: Bearer k"], [b"Authorization: Bearer a"]]


async def test_headers_in_any_case(scripted: Start, carrier: Carrier):
    """Of several with one name, the first."""
    server = await scripted(reply(b"{}", headers="X-One: 1\r\nx-one: 2\r\n"))
    async with carrier(server.url) as transport:
        headers = (await transport.send(ASK)).headers
    assert headers["x-ONE"] == "1"
    assert headers.get("Content-Type") == "application/json"
    assert headers.get("Absent") is None


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\n\r\nbody",
        b"HTTP/1.0 200 OK\r\n\r\nbody",
        CHUNKED + b"1\r\nb\r\n3;x=1\r\nody\r\n0\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    ],
    ids=["until closed", "1.0", "chunked", "after a 100"],
)
async def test_forms_of_a_body(scripted: Start, carrier: Carrier, sent: bytes, *, streamed: bool):
    """All that HTTP allows."""
    server = await scripted(raw(sent))
    async with carrier(server.url) as transport:
        got = await transport.send(ASK, streamed=streamed)
        assert (await read(got) if streamed else got.body) == b"body"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"bo", mtime=0) + gzip.compress(b"dy", mtime=0)),
        ("deflate", zlib.compress(b"body")),
        ("deflate", zlib.compress(b"body", wbits=-15)),
        ("identity", b"body"),
    ],
)
async def test_compressed_bodies(scripted: Start, carrier: Carrier, coding: str, body: bytes):
    """Also in several parts, and as old servers understood deflate."""
    server = await scripted(reply(body, headers=f"Content-Encoding: {coding}\r\n"))
    async with carrier(server.url) as transport:
        assert (await transport.send(ASK)).body == b"body"
        assert await read(await transport.send(ASK, streamed=True)) == b"body"


@pytest.mark.parametrize(
    ("coding", "body"),
    [("rot13", b"obql"), ("gzip", b"body"), ("gzip", gzip.compress(b"body" * 99, mtime=0)[:-9])],
)
async def test_bodies_that_cannot_be_decompressed(scripted: Start, coding: str, body: bytes):
    """As a reply that is not HTTP, and the connection is not kept."""
    server = await scripted(reply(body, headers=f"Content-Encoding: {coding}\r\n"))
    async with Http1Transport(server.url) as transport:
        with pytest.raises(MalformedResponseError):
            await transport.send(ASK)


async def test_bytes_that_nobody_asked_for(scripted: Start):
    """A second reply is never taken for that of the next request."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    server = await scripted(raw(answer + b"1" + answer + b"2", close=False), reply(b"3"))
    async with Http1Transport(server.url) as transport:
        assert (await transport.send(ASK)).body == b"1"
        assert (await transport.send(ASK)).body == b"3"
    assert server.connections == 2


async def test_a_connection_that_was_idle_for_too_long(scripted: Start, carrier: Carrier):
    """It is not used again."""
    server = await scripted(reply(b"{}"))
    async with carrier(server.url, keep_alive=1e-9) as transport:
        await transport.send(ASK)
        await asyncio.sleep(0.01)
        await transport.send(ASK)
    assert server.connections == 2


async def test_a_kept_connection_that_the_server_closes(scripted: Start, carrier: Carrier):
    """A GET is sent again; anything else may have been read, and is not."""
    server = await scripted(reply(b"1"), raw(b""), reply(b"2"), raw(b""))
    async with carrier(server.url) as transport:
        assert (await transport.send(LOOK)).body == b"1"
        assert (await transport.send(LOOK)).body == b"2"
        with pytest.raises(ConnectionFailedError):
            await transport.send(ASK)
    assert len(server.requests) == 4


async def test_a_slow_reader_slows_the_server(scripted: Start):
    """What waits for the reader is bounded, and silence that he causes is nobody's fault."""
    sent = 0
    full = asyncio.Event()

    async def behave(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(512):  # 32 MB
            writer.write(CHUNK)
            sent += len(CHUNK)
            try:
                async with asyncio.timeout(0.2):
                    await writer.drain()
            except TimeoutError:
                full.set()
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    server = await scripted(behave)
    async with Http1Transport(server.url, timeouts=Timeouts(first_byte=0.1)) as transport:
        stream = await transport.send(ASK, streamed=True)
        async with asyncio.timeout(20):
            await full.wait()
        assert sent < 512 * len(CHUNK)
        assert len(await read(stream)) == 512 * 0x10000


@pytest.mark.parametrize("first", [None, 0.05])
async def test_each_request_has_its_own_limits(scripted: Start, first: float | None):
    """On one connection; the timer of an earlier request does not count."""
    server = await scripted(reply(b"{}"), raw(b"", close=False))
    async with Http1Transport(server.url, timeouts=Timeouts(total=60)) as transport:
        await transport.send(msgspec.structs.replace(ASK, timeout=first))
        with pytest.raises(RequestTimeoutError, match=r"0\.1 s"):
            await transport.send(msgspec.structs.replace(ASK, timeout=0.1))
    assert server.connections == 1


async def test_closing_a_stream_closes_its_connection(scripted: Start, carrier: Carrier):
    """So that the server stops generating for nobody."""
    closed = asyncio.Event()
    server = await scripted(until_closed(closed, begin=CHUNKED + CHUNK), reply(b"{}"))
    async with carrier(server.url) as transport:
        stream = await transport.send(ASK, streamed=True)
        stream.close()
        stream.close()
        async with asyncio.timeout(10):
            await closed.wait()
        assert (await transport.send(ASK)).body == b"{}"


async def test_closing_a_stream_that_was_read(scripted: Start):
    """Its connection may be another request's by then, and stays open."""
    server = await scripted(reply(b"{}"))
    async with Http1Transport(server.url) as transport:
        stream = await transport.send(ASK, streamed=True)
        assert await read(stream) == b"{}"
        await transport.send(ASK)
        stream.close()
        await transport.send(ASK)
    assert server.connections == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_caller_that_leaves(scripted: Start, carrier: Carrier, *, streamed: bool):
    """Its connection is closed, also if the reply arrives at that moment."""
    closed = asyncio.Event()
    server = await scripted(until_closed(closed))
    async with carrier(server.url) as transport:
        sending = asyncio.create_task(transport.send(ASK, streamed=streamed))
        await server.asked.wait()
        sending.cancel()
        async with asyncio.timeout(10):
            await closed.wait()
        assert await asyncio.gather(sending, return_exceptions=True)
        assert sending.cancelled()


async def test_closing_the_transport_ends_what_is_in_flight(scripted: Start):
    """At once, whatever the server does."""
    server = await scripted(raw(b"", close=False))
    transport = Http1Transport(server.url)
    sending = asyncio.create_task(transport.send(ASK))
    await server.asked.wait()
    await transport.close()
    with pytest.raises(ConnectionFailedError):
        await sending


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_caller_that_leaves_when_its_connection_is_made(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Coroutine[None, None, None]], None]
):
    """Its transport can be closed all the same: uvloop never says that such a connection ended."""

    async def leave() -> None:
        async with running_fake_engine() as engine, Http1Transport(engine.url) as transport:
            asking = asyncio.create_task(transport.send(LOOK))
            made = Connection.connection_made

            def make_and_leave(self: Connection, to: asyncio.BaseTransport) -> None:
                made(self, to)
                asking.cancel()

            monkeypatch.setattr(Connection, "connection_made", make_and_leave)
            with pytest.raises(asyncio.CancelledError):
                await asking
            monkeypatch.undo()
            assert (await transport.send(WireRequest("GET", "/health"))).status == 200
            async with asyncio.timeout(10):
                await transport.close()

    run(leave())
