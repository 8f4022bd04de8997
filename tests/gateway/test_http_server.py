"""HTTP itself: limits, keys, pipelining, clients that misbehave."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import AsyncExitStack, suppress

import aiohttp
import pytest
from tests.support.gateways import CHAT, connected, gateway_to, post, spoken, until

from enginehouse.testing.fake_engine.process import running_fake_engine

BODY = json.dumps(CHAT).encode()
PATH = "/v1/chat/completions"


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [
        post(PATH, b"x" * 100)[:-100].replace(b"Content-Length: 100", b"Content-Length: 104857600"),
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"600\r\n" + b"x" * 0x600 + b"\r\n",
    ],
)
async def test_a_large_body_is_refused_without_being_read(request_: bytes) -> None:
    """By its announced length before a byte of it is sent; without one, at the limit."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url, max_body=1024) as gateway,
    ):
        said = await spoken(gateway.url, request_)
        assert said.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"body_too_large"' in said
        assert b"connection: close" in said


@pytest.mark.slow
async def test_a_body_of_100_mb_is_refused_while_it_is_sent() -> None:
    """A client that reads while it sends gets the answer, and most of the body is never read."""
    size, block = 100_000_000, b"x" * 100_000
    sent = 0

    async def send(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(post(PATH, b"").replace(b"Length: 0", b"Length: %d" % size))
        with suppress(ConnectionError):
            while sent < size:
                writer.write(block)
                await writer.drain()
                sent += len(block)

    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        connected(gateway.url) as (reader, writer),
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(send(writer))
        said = await reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 413 ")
    assert sent < size / 2
    assert gateway.figures().refused == 1


@pytest.mark.slow
async def test_a_body_of_100_mb_is_refused_before_it_is_sent() -> None:
    """A client that asks first sees the answer, and the next request is answered."""
    body = io.BytesIO(b"x" * 100_000_000)
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        async with client.post(PATH, data=body, expect100=True) as reply:
            assert reply.status == 413
        async with client.post(PATH, data=BODY) as reply:
            assert reply.status == 200


async def test_a_client_is_asked_for_its_body_only_if_it_is_wanted() -> None:
    """Expect: 100-continue, as curl sends it."""
    head = post(PATH, BODY, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")[0]
    async with running_fake_engine() as engine, gateway_to(engine.url) as gateway:
        said = await spoken(gateway.url, head + b"\r\n\r\n", BODY)
        assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic s3cret", 401),
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
    ],
)
async def test_every_request_needs_the_key(header: str | None, status: int) -> None:
    """All but /health; no reply shows a key."""
    headers = {"Authorization": header} if header else {}
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url, api_key="s3cret") as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        for path in ("/v1/models", "/metrics"):
            async with client.get(path, headers=headers) as reply:
                assert reply.status == status
                assert "s3cret" not in await reply.text()
        async with client.post(PATH, data=BODY, headers=headers) as reply:
            assert reply.status == status
        async with client.get("/health") as reply:
            assert reply.status == 200
        assert gateway.api_key == "s3cret"
        assert "s3cret" not in repr(gateway.figures())


@pytest.mark.slow
async def test_beyond_loopback_there_is_always_a_key() -> None:
    """One is made if none is given."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url, host="0.0.0.0") as gateway,
        gateway_to(engine.url) as local,
    ):
        assert local.api_key is None
        assert gateway.api_key is not None
        assert len(gateway.api_key) > 30


@pytest.mark.slow
async def test_more_requests_than_allowed_are_told_to_come_back() -> None:
    """503 with Retry-After, at once."""
    slow = CHAT | {"max_tokens": 500, "ignore_eos": True}
    async with (
        running_fake_engine(token_latency=0.1) as engine,
        gateway_to(engine.url, max_in_flight=2) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        tasks = [asyncio.create_task(client.post(PATH, json=slow)) for _ in range(2)]
        await until(lambda: gateway.figures().in_flight == 2)
        async with client.post(PATH, data=BODY) as reply:
            assert reply.status == 503
            assert reply.headers["Retry-After"] == "1"
        async with client.get("/metrics") as reply:
            text = await reply.text()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert "enginehouse_gateway_in_flight 2" in text  # without the GET that asks
    assert 'enginehouse_gateway_refused_total{status="503"} 1' in text


@pytest.mark.slow
async def test_bodies_that_arrive_slowly_are_in_flight() -> None:
    """Otherwise any number of them could be held in memory; a client that leaves makes room."""
    half = post(PATH, BODY)[:-10]
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url, max_in_flight=2) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        AsyncExitStack() as stack,
    ):
        uploads = [await stack.enter_async_context(connected(gateway.url)) for _ in range(2)]
        for _, writer in uploads:
            writer.write(half)
        await until(lambda: gateway.figures().in_flight == 2)
        async with client.post(PATH, data=BODY) as reply:
            assert reply.status == 503
        async with client.get("/v1/models") as reply:
            assert reply.status == 200
        uploads[0][1].close()
        await until(lambda: gateway.figures().in_flight == 1)
        async with client.post(PATH, data=BODY) as reply:
            assert reply.status == 200
        reader, writer = uploads[1]
        writer.write(BODY[-10:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await until(lambda: gateway.figures().in_flight == 0)


@pytest.mark.slow
async def test_a_request_that_is_refused_is_no_longer_in_flight() -> None:
    """By its announced length, at the limit of its body, or because it is not HTTP."""
    head = b"POST " + PATH.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url, max_body=1024, max_in_flight=1) as gateway,
    ):
        for request, status in (
            (post(PATH, b"x" * 2048)[:-2048], b"413"),
            (head + b"600\r\n" + b"x" * 0x600 + b"\r\n", b"413"),
            (head + b"no number\r\n", b"400"),
            (post(PATH, BODY, "Connection: close"), b"200"),
        ):
            assert (await spoken(gateway.url, request))[9:12] == status
        await until(lambda: gateway.figures().in_flight == 0)


@pytest.mark.slow
async def test_a_pipelined_request_is_refused_in_its_turn() -> None:
    """The answer to the one before it is not cut off."""
    async with (
        running_fake_engine(token_latency=0.02) as engine,
        gateway_to(engine.url, max_in_flight=1) as gateway,
    ):
        said = await spoken(gateway.url, post(PATH, BODY) * 3)
        first, second = said.split(b"HTTP/1.1 ")[1:]
        assert (first[:3], second[:3]) == (b"200", b"503")
        assert gateway.figures().in_flight == 0


async def test_names_that_clients_invent_are_one_line_of_the_metrics() -> None:
    """Their number has no bound, and a quotation mark would break the format."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        for name in ("a", "b"):
            async with client.get(f"/v1/models/{name}") as reply:
                assert reply.status == 404
        async with client.get("/metrics") as reply:
            text = await reply.text()
    name = "enginehouse_gateway_requests_total"
    assert f'{name}{{path="/v1/models/NAME",status="404"}} 2' in text


async def test_requests_on_one_connection_are_answered_in_their_order() -> None:
    """Pipelined, with the last one closing it."""
    first = post(PATH, BODY)
    last = post("/v1/completions", b'{"prompt": "last"}', "Connection: close")
    async with (
        running_fake_engine(answers={"hello": "one", "last": "two"}) as engine,
        gateway_to(engine.url) as gateway,
    ):
        said = await spoken(gateway.url, first + first + last)
    assert said.count(b"HTTP/1.1 200 ") == 3
    assert said.index(b'"one"') < said.rindex(b'"one"') < said.index(b'"two"')


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused(line: bytes) -> None:
    """And the gateway goes on."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        assert (await spoken(gateway.url, line)).startswith(b"HTTP/1.1 400 ")
        async with client.get("/health") as reply:
            assert reply.status == 200


@pytest.mark.slow
async def test_an_old_client_gets_a_stream_that_ends_with_the_connection() -> None:
    """HTTP/1.0 knows no chunks."""
    body = json.dumps(CHAT | {"stream": True}).encode()
    request = post(PATH, body).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with running_fake_engine() as engine, gateway_to(engine.url) as gateway:
        said = await spoken(gateway.url, request)
    assert b"transfer-encoding" not in said
    assert said.endswith(b"data: [DONE]\n\n")
