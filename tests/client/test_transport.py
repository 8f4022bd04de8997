"""One request, one reply, and every way in which that fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec
import pytest

from enginehouse.client.aiohttp_transport import AiohttpTransport
from enginehouse.client.http1 import Http1Transport
from enginehouse.client.transport import Timeouts, WireRequest, normal_base_url
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    EnginehouseError,
    MalformedResponseError,
    RequestTimeoutError,
)

from .conftest import Carrier, ScriptedServer, raw, reply

Start = Callable[..., Awaitable[ScriptedServer]]
ASK = WireRequest("POST", "/v1/x", b'{"a":1}')
KEY = "sk-very-secret"


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        (" https://host/api/v1/ ", "https://host/api"),
    ],
)
def test_addresses_with_and_without_v1(given: str, root: str):
    """Both are what people paste."""
    assert normal_base_url(given) == root


@pytest.mark.parametrize("given", ["localhost:8000", "", "ftp://host", "http://", "http://h?x=1"])
def test_what_is_no_address_is_refused(given: str):
    """With an example of one."""
    with pytest.raises(ConfigurationError):
        normal_base_url(given)


@pytest.mark.parametrize("name", ["connect", "first_byte", "total"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_time_out_is_a_finite_number(name: str, value: float):
    """For none there is None."""
    with pytest.raises(ConfigurationError, match=name):
        Timeouts(**{name: value})


def test_credentials_in_the_address_are_refused_and_not_repeated():
    """Addresses end up in logs and reports."""
    with pytest.raises(ConfigurationError) as caught:
        normal_base_url(f"http://user:{KEY}@host:80")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", "a b", "abc\n", "schlüssel"])
async def test_a_key_that_no_header_can_carry_is_refused(key: str, carrier: Carrier):
    """Without showing it."""
    with pytest.raises(ConfigurationError) as caught:
        carrier("http://127.0.0.1:1", api_key=key)
    assert not key or key not in str(caught.value)


async def test_a_request_and_its_reply(scripted: Start, carrier: Carrier):
    """Body, type and key are sent; status, body and timing come back, whatever the status."""
    server = await scripted(reply(b"no", status=418))
    async with carrier(server.url + "/v1", api_key=KEY) as transport:
        got = await transport.send(ASK)
    assert (got.status, got.body, got.retry_after) == (418, b"no", None)
    assert got.elapsed > 0
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1")
    assert b"Content-Type: application/json" in head
    assert b"Authorization: Bearer " + KEY.encode() in head
    assert body == b'{"a":1}'


async def test_connections_are_reused(scripted: Start, carrier: Carrier):
    """Ten requests in turn, one connection."""
    server = await scripted(reply(b"ok"))
    async with carrier(server.url) as transport:
        for _ in range(10):
            await transport.send(ASK)
    assert server.connections == 1


async def test_a_fresh_connection(scripted: Start, carrier: Carrier):
    """Whoever asks for one gets it, whatever is kept; it is not kept itself."""
    server = await scripted(reply(b"ok"))
    fresh = WireRequest("POST", "/v1/x", b"{}", fresh=True)
    async with carrier(server.url, api_key=KEY) as transport:
        for request in (ASK, fresh, fresh, ASK):
            assert (await transport.send(request)).body == b"ok"
    assert server.connections == 3
    heads = [sent.partition(b"\r\n\r\n")[0] for sent in server.requests]
    assert all(KEY.encode() in head for head in heads)
    assert [b"Connection: close" in head for head in heads] == [False, True, True, False]


async def test_a_large_body_is_sent_whole(scripted: Start, carrier: Carrier):
    """Two megabytes of token ids, for example."""
    server = await scripted(reply(b"ok"))
    body = b"7," * 2**20
    async with carrier(server.url) as transport:
        await transport.send(WireRequest("POST", "/v1/x", body))
    assert server.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("Wed, 21 Oct 2026", None), ("-3", None), ("nan", None)],
)
async def test_retry_after(scripted: Start, header: str, seconds: float | None, carrier: Carrier):
    """Seconds are read; what is none is as if it were not there."""
    server = await scripted(reply(b"", status=503, headers=f"Retry-After: {header}\r\n"))
    async with carrier(server.url) as transport:
        assert (await transport.send(ASK)).retry_after == seconds


async def test_redirects_are_not_followed(scripted: Start, carrier: Carrier):
    """A followed POST would turn into a GET."""
    server = await scripted(reply(b"", status=302, headers="Location: /elsewhere\r\n"))
    async with carrier(server.url) as transport:
        assert (await transport.send(ASK)).status == 302
    assert len(server.requests) == 1


async def test_a_refused_connection(carrier: Carrier):
    """Retryable, and it names the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with carrier(url) as transport:
            with pytest.raises(ConnectionFailedError, match=url):
                await transport.send(ASK)


async def test_a_connection_closed_before_the_first_byte(scripted: Start, carrier: Carrier):
    """What a keep-alive race looks like: nothing was received, so it may be asked again."""
    server = await scripted(raw(b""))
    async with carrier(server.url) as transport:
        with pytest.raises(ConnectionFailedError) as caught:
            await transport.send(ASK)
    assert caught.value.retryable


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"\x00\x01garbage\r\n\r\n",
        b"SSH-2.0\r\n",
    ],
)
async def test_a_reply_that_breaks_off_or_is_no_http(
    scripted: Start, data: bytes, carrier: Carrier
):
    """Something was received, so it is not asked again; the key is nowhere in the error."""
    server = await scripted(raw(data))
    async with carrier(server.url, api_key=KEY) as transport:
        with pytest.raises(MalformedResponseError) as caught:
            await transport.send(ASK)
    assert not caught.value.retryable
    assert caught.value.__cause__ is None
    assert KEY not in str(caught.value)


async def test_a_silent_server_and_the_first_byte(scripted: Start, carrier: Carrier):
    """The message says that it was the first byte, and how long we waited."""
    server = await scripted(raw(b"", close=False))
    async with carrier(server.url, timeouts=Timeouts(first_byte=0.05)) as transport:
        with pytest.raises(RequestTimeoutError, match=r"first byte.*0\.05 s"):
            await transport.send(ASK)


async def test_a_server_that_falls_silent_midway(scripted: Start, carrier: Carrier):
    """The next bytes, then, not the first."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    server = await scripted(raw(head, close=False))
    async with carrier(server.url, timeouts=Timeouts(first_byte=0.05)) as transport:
        with pytest.raises(RequestTimeoutError, match=r"next bytes.*0\.05 s"):
            await transport.send(ASK)


async def test_the_whole_request(scripted: Start, carrier: Carrier):
    """Named as such; and it is not retried."""
    server = await scripted(raw(b"", close=False))
    async with carrier(server.url, timeouts=Timeouts(total=0.05)) as transport:
        with pytest.raises(RequestTimeoutError, match=r"whole request.*0\.05 s") as caught:
            await transport.send(ASK)
    assert not caught.value.retryable


async def test_a_request_may_have_a_limit_of_its_own(scripted: Start, carrier: Carrier):
    """Shorter or longer than the transport's, and named in the error."""
    silent = raw(b"", close=False)
    server = await scripted(silent)
    async with carrier(server.url) as transport:
        with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
            await transport.send(msgspec.structs.replace(ASK, timeout=0.05))
    server = await scripted(reply(b"ok"))
    async with carrier(server.url, timeouts=Timeouts(total=1e-6)) as transport:
        with pytest.raises(RequestTimeoutError):
            await transport.send(ASK)
        assert (await transport.send(msgspec.structs.replace(ASK, timeout=30.0))).body == b"ok"


async def test_connecting_too_long(monkeypatch: pytest.MonkeyPatch):
    """The limit is named."""

    async def connect(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
    timeouts = Timeouts(connect=0.05)
    async with Http1Transport("http://127.0.0.1:1", timeouts=timeouts) as transport:
        with pytest.raises(RequestTimeoutError, match=r"connecting .*0\.05 s"):
            await transport.send(ASK)
        with pytest.raises(RequestTimeoutError, match=r"whole request.*0\.01 s"):
            await transport.send(msgspec.structs.replace(ASK, timeout=0.01))


async def test_connecting_too_long_with_aiohttp():
    """A full backlog cannot be made on loopback reliably, so the translation is tested alone."""
    async with AiohttpTransport("http://127.0.0.1:1", timeouts=Timeouts(connect=3)) as transport:
        late = aiohttp.ConnectionTimeoutError("connect")
        error: EnginehouseError = transport._failure(late, answered=False, waited=3.0, total=None)
    assert isinstance(error, RequestTimeoutError)
    assert "connecting to http://127.0.0.1:1 took longer than 3 s" in str(error)


async def test_closing_twice(carrier: Carrier):
    """Is as good as once."""
    transport = carrier("http://127.0.0.1:1")
    await transport.close()
    await transport.close()
    with pytest.raises(RuntimeError, match="closed"):
        await transport.send(ASK)
