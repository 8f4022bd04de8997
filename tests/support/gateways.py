"""Gateways before a fake engine, and clients that speak to them byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.gateway.configuration import GatewayLimits, GatewayOptions, GatewaySettings
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.runtime.context import Context
from tests.support.deployments import opened

CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def gateway_to(url: str, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway before the server at `url`."""
    plan = parse(AskConfig, {"url": url}, origin="test")
    async with opened(plan) as deployment, gateway_before(deployment, **options) as gateway:
        yield gateway


@asynccontextmanager
async def gateway_before(deployment: Deployment, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway before an open deployment."""
    async with open_gateway(deployment, gateway_options(**options), Context()) as gateway:
        yield gateway


def gateway_options(**values: Any) -> GatewayOptions:
    """Options, with the keys of their parts side by side."""
    for part, kind in (("settings", GatewaySettings), ("limits", GatewayLimits)):
        own = {name: values.pop(name) for name in kind.model_fields if name in values}
        values[part] = kind(**own)
    return GatewayOptions(**values)


async def running_requests(url: str) -> float:
    """How many requests the engine at `url` is working on."""
    async with aiohttp.ClientSession() as client, client.get(f"{url}/metrics") as reply:
        found = re.search(r"^vllm:num_requests_running\S* (\S+)$", await reply.text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it is true, or its coroutine returns something true; at most half a minute."""
    async with asyncio.timeout(30):
        while True:
            value = condition()
            if await value if asyncio.iscoroutine(value) else value:
                return
            await asyncio.sleep(0.02)


async def spoken(url: str, *pieces: bytes) -> bytes:
    """What comes back for these bytes until the other side closes."""
    async with connected(url) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 20)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def events_in(text: str) -> list[str]:
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def text_of(events: list[str]) -> str:
    """The text of a streamed chat completion."""
    choices = [choice for event in events if event != "[DONE]" for choice in _choices(event)]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def _choices(event: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(event).get("choices", [])
    return found
