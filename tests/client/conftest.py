"""Servers to test the client against: one whose every byte a test chooses, and the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from enginehouse.client.aiohttp_transport import AiohttpTransport
from enginehouse.client.http1 import Http1Transport
from enginehouse.core.sampler import Capabilities, Capability, Load
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

CAPABILITIES = Capabilities(
    supports=frozenset(Capability) - {Capability.REGEX, Capability.GRAMMAR},
    ignored={"guided_json": "structured.json_schema"},
)
CARRIERS = (Http1Transport, AiohttpTransport)
Carrier = type[Http1Transport] | type[AiohttpTransport]
Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedServer:
    """Plays one behaviour per request, the last one again and again; keeps what it was sent."""

    behaviours: list[Behaviour]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it is closed."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.requests.append(head + await reader.readexactly(length))
                self.asked.set()
                place = min(len(self.requests), len(self.behaviours)) - 1
                await self.behaviours[place](writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(
    body: bytes, *, status: int = 200, headers: str = "", kind: str = "application/json"
) -> Behaviour:
    """Answer with a whole reply."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}{headers}\r\n".encode() + body)

    return behave


def raw(data: bytes, *, close: bool = True) -> Behaviour:
    """Send these bytes; then close the connection, or stay silent."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return behave


@pytest.fixture(params=CARRIERS, ids=["http1", "aiohttp"])
def carrier(request: pytest.FixtureRequest) -> Carrier:
    """Each transport in turn: they fail alike."""
    made: Carrier = request.param
    return made


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[..., Awaitable[ScriptedServer]]]:
    """Start scripted servers; all end with the test."""
    servers: list[asyncio.Server] = []

    async def start(*behaviours: Behaviour) -> ScriptedServer:
        script = ScriptedServer(list(behaviours))
        server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
        servers.append(server)
        script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return script

    yield start
    for server in servers:
        server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    """One fake engine for a module's tests."""
    arguments = ("--max-model-len", "2048", "--served-model-name", "tiny", "alias")
    async with running_fake_engine(*arguments) as handle:
        yield handle


class QueueSignal:
    """Reads the fake's queue out of its metrics."""

    path = "/metrics"

    def parse(self, body: str) -> Load | None:
        """The queue, None if the page is not the metrics."""
        values = {
            line.partition("{")[0]: float(line.rpartition(" ")[2])
            for line in body.splitlines()
            if line.startswith("vllm:")
        }
        try:
            return Load(
                running=int(values["vllm:num_requests_running"]),
                waiting=int(values["vllm:num_requests_waiting"]),
            )
        except KeyError:
            return None
