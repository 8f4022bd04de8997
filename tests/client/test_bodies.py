"""Replies without an end, compressed bombs, and errors as long as a book."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from enginehouse.client.bodies import MAX_ERROR_BYTES, MAX_REPLY_BYTES
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import Timeouts, Transport, WireRequest
from enginehouse.core.errors import (
    BadRequestError,
    MalformedResponseError,
    ReplyTooLargeError,
    RequestTimeoutError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters

from .conftest import CAPABILITIES, Behaviour, Carrier, ScriptedServer, raw, reply

Start = Callable[..., Awaitable[ScriptedServer]]
ASK = WireRequest("POST", "/v1/x", b"{}")
CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"


def endless(status: int = 200, *, sent: list[int]) -> Behaviour:
    """A chunked body that goes on until the connection is closed; `sent` counts its bytes."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        while not writer.is_closing():
            writer.write(CHUNK)
            sent.append(len(CHUNK))
            await writer.drain()

    return behave


async def test_an_endless_reply_ends_at_the_limit(scripted: Start, carrier: Carrier):
    """The connection is closed then, and the error is not one to try again."""
    sent: list[int] = []
    server = await scripted(endless(sent=sent))
    async with carrier(server.url) as transport:
        with pytest.raises(ReplyTooLargeError) as caught:
            await transport.send(ASK)
    assert not caught.value.retryable
    assert server.url in caught.value.message
    assert MAX_REPLY_BYTES < sum(sent) < 1.5 * MAX_REPLY_BYTES


async def test_an_endless_stream_ends_at_the_limit(scripted: Start, carrier: Carrier):
    """Chunks are handed on until then, and none is kept."""
    server = await scripted(endless(sent=[]))
    received = 0

    async def ask(transport: Transport) -> None:
        nonlocal received
        stream = await transport.send(ASK, streamed=True)
        assert stream.chunks is not None
        with closing(stream):
            async for chunk in stream.chunks:
                received += len(chunk)

    async with carrier(server.url) as transport:
        with pytest.raises(ReplyTooLargeError):
            await ask(transport)
    assert MAX_REPLY_BYTES / 2 < received <= MAX_REPLY_BYTES


async def test_a_compressed_bomb_is_counted_as_what_it_unpacks_to(
    scripted: Start, carrier: Carrier
):
    """A megabyte that becomes a gigabyte; little more than the limit is ever in memory."""
    bomb = gzip.compress(bytes(1 << 20)) * 1024
    server = await scripted(reply(bomb, headers="Content-Encoding: gzip\r\n"))
    tracemalloc.start()
    try:
        async with carrier(server.url) as transport:
            with pytest.raises(ReplyTooLargeError):
                await transport.send(ASK)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_REPLY_BYTES


async def test_a_compressed_reply_is_read(scripted: Start, carrier: Carrier):
    """Some proxies compress although nobody asked them to."""
    body = gzip.compress(b'{"choices": []}')
    server = await scripted(reply(body, headers="Content-Encoding: gzip\r\n"))
    async with carrier(server.url) as transport:
        assert (await transport.send(ASK)).body == b'{"choices": []}'


@pytest.mark.parametrize("stream", [False, True])
async def test_of_an_endless_error_the_beginning_is_read(
    scripted: Start, carrier: Carrier, *, stream: bool
):
    """Its status is what counts."""
    server = await scripted(endless(500, sent=[]))
    async with carrier(server.url) as transport:
        read = await transport.send(ASK, streamed=stream)
    assert (read.status, len(read.body), read.chunks) == (500, MAX_ERROR_BYTES, None)


@pytest.mark.parametrize("repeats", [100_000, 3_000_000], ids=["600 kB", "18 MB"])
async def test_a_long_error_text_is_cut(scripted: Start, repeats: int):
    """It would go into the journal whole."""
    text = b'{"error": {"message": "no ' + b"never " * repeats + b'"}}'
    server = await scripted(reply(text, status=400))
    request = SampleRequest(
        prompt=TextPrompt("1"), parameters=SamplingParameters(max_tokens=1, temperature=0.0)
    )
    sampler = HTTPSampler(server.url, model="m", capabilities=CAPABILITIES, concurrency=1)
    async with sampler:
        with pytest.raises(BadRequestError) as caught:
            await sampler.sample(request)
    assert "never" in caught.value.message
    assert len(caught.value.message) < 5000
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(10_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nH: " + b"x" * 10_000_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 " + b"x" * 10_000_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["many headers", "a long header", "a long reason"],
)
async def test_endless_headers_are_refused(scripted: Start, head: bytes, carrier: Carrier):
    """As a reply that is not HTTP."""
    server = await scripted(raw(head))
    async with carrier(server.url) as transport:
        with pytest.raises(MalformedResponseError):
            await transport.send(ASK)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_drips_ends_with_the_total_time(
    scripted: Start, carrier: Carrier, *, stream: bool
):
    """A byte every few milliseconds is not silence, so only the total time can end it."""

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)

    server = await scripted(drip)
    timeouts = Timeouts(first_byte=5.0, total=0.3)

    async def ask(transport: Transport) -> None:
        reply = await transport.send(ASK, streamed=stream)
        assert reply.chunks is not None
        with closing(reply):
            async for _ in reply.chunks:
                pass

    async with carrier(server.url, timeouts=timeouts) as transport:
        with pytest.raises(RequestTimeoutError):
            await ask(transport)
