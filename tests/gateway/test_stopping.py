"""A gateway that stops while its clients wait: each is told so."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.support.gateways import CHAT, connected, events_in, gateway_to, post, spoken, until

from enginehouse.testing.fake_engine.process import running_fake_engine

PATH = "/v1/chat/completions"
LONG = CHAT | {"max_tokens": 500, "ignore_eos": True}
WHOLE = post(PATH, json.dumps(LONG).encode())
STREAM = post(PATH, json.dumps(LONG | {"stream": True}).encode())


def error_in(body: str) -> dict[str, Any]:
    """The error that a body or an event consists of."""
    error: dict[str, Any] = json.loads(body)["error"]
    return error


@pytest.mark.slow
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_an_open_stream_ends_with_an_error(version: bytes) -> None:
    """The end of the connection alone would look like the end of the answer to HTTP/1.0."""
    async with running_fake_engine(token_latency=0.1) as engine, AsyncExitStack() as stack:
        async with gateway_to(engine.url) as gateway:
            reader, writer = await stack.enter_async_context(connected(gateway.url))
            writer.write(STREAM.replace(b"HTTP/1.1", version))
            received = await reader.readuntil(b"data: ")
        received += await reader.read()
    error = error_in(events_in(received.decode())[-1])
    assert error["code"] == "gateway_stopping"
    assert "stopping" in error["message"]
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")
    assert (gateway.figures().broken, gateway.figures().abandoned) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [WHOLE, WHOLE[:-10], WHOLE[:20]],
    ids=["being answered", "half a body", "half a head"],
)
async def test_a_request_without_an_answer_is_refused(request_: bytes) -> None:
    """With 503 and the reason."""
    async with running_fake_engine(token_latency=0.1) as engine, AsyncExitStack() as stack:
        async with gateway_to(engine.url) as gateway:
            reader, writer = await stack.enter_async_context(connected(gateway.url))
            writer.write(request_)
            await writer.drain()
            await spoken(gateway.url, b"GET /health HTTP/1.0\r\n\r\n")  # it has read the other, too
        said = await reader.read()
    head, _, body = said.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert "connection: close" in head
    assert error_in(body)["code"] == "gateway_stopping"


@pytest.mark.slow
async def test_a_request_that_waits_for_its_turn_is_refused() -> None:
    """The one before it on the connection was answered in time."""
    quick = post(PATH, json.dumps(CHAT | {"max_tokens": 8, "ignore_eos": True}).encode())
    async with running_fake_engine(token_latency=0.05) as engine, AsyncExitStack() as stack:
        async with gateway_to(engine.url) as gateway:
            reader, writer = await stack.enter_async_context(connected(gateway.url))
            writer.write(quick + WHOLE)
            await until(lambda: gateway.figures().in_flight)
        said = await reader.read()
    first, second = said.split(b"HTTP/1.1 ")[1:]
    assert (first[:3], second[:3]) == (b"200", b"503")
    assert b'"code":"gateway_stopping"' in second
