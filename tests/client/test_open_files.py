"""A small limit of open files: raised, kept to, and never taken for a server's failure."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from enginehouse.client import open_files
from enginehouse.client.concurrency import Adaptive
from enginehouse.client.open_files import most_connections, no_file_left, with_patience
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import WireRequest
from enginehouse.core.errors import ConnectionFailedError, OpenFilesError, WireError
from enginehouse.engines.vllm.engine import VllmEngine

from .conftest import Carrier, ScriptedServer, reply

Start = Callable[..., Awaitable[ScriptedServer]]
ASK = WireRequest("POST", "/v1/x", b'{"a":1}')
RAISE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from enginehouse.client.open_files import raise_open_file_limit
raise_open_file_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(128, 512, 512), (256, 256, 256)])
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int, after: int):
    """As far as the system lets a user."""
    code = RAISE.format(soft=soft, hard=hard)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == after


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that leaves 100 connections."""
    limit = open_files._open_now() + open_files._RESERVE + 100
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    return 100


def test_connections_are_what_the_limit_leaves(few: int):
    """Beside what is open and a reserve."""
    assert most_connections() == few


def test_there_is_always_one(monkeypatch: pytest.MonkeyPatch):
    """And without a limit no bound."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8, 8))
    assert most_connections() == 1
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert most_connections() is None


@pytest.mark.parametrize(
    ("wanted", "bound"),
    [(400, 100), (Adaptive(minimum=200, start=300, maximum=400), 100), (None, 100)],
)
def test_a_sampler_asks_no_more_at_a_time(few: int, wanted: Any, bound: int):
    """Whether the number is given or follows the queue."""
    made = HTTPSampler(
        "http://127.0.0.1:9",
        capabilities=VllmEngine().capabilities(None),
        concurrency=wanted,
        load_signal=VllmEngine.load_signal,
    )
    assert made.bounded_to == bound
    made._limit.resize(made.concurrency)
    assert made.concurrency <= bound
    if made._adaptive:
        assert made._adaptive.maximum == bound


def test_a_number_that_fits_is_kept(few: int):
    """Nothing is said then."""
    made = HTTPSampler(
        "http://127.0.0.1:9", capabilities=VllmEngine().capabilities(None), concurrency=few
    )
    assert (made.bounded_to, made.concurrency) == (None, few)


def refused(number: int) -> aiohttp.ClientConnectorError:
    """How aiohttp reports that a socket could not be made or connected."""
    key = ConnectionKey("h", 1, False, True, None, None, None)
    return aiohttp.ClientConnectorError(key, OSError(number, "it"))


def test_which_failures_are_local():
    """Also those that do not say so, while no file can be opened."""
    assert no_file_left(refused(errno.EMFILE))
    assert no_file_left(refused(errno.ENFILE))
    assert not no_file_left(refused(errno.ECONNREFUSED))


def test_a_name_that_cannot_be_looked_up_for_want_of_files(monkeypatch: pytest.MonkeyPatch):
    """The resolver says no more than that it failed."""

    def none_left(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    unknown = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert not no_file_left(unknown)
    monkeypatch.setattr(open_files.os, "open", none_left)
    assert no_file_left(unknown)


def failing_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the next connection fail so."""
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    errors = [error]

    async def fail(*words: Any, **named: Any) -> Any:
        if errors:
            if (connected := named.get("sock")) is not None:
                connected.close()
            raise errors.pop()
        return await connect(*words, **named)

    monkeypatch.setattr(loop, "create_connection", fail)


async def test_a_request_waits_for_a_file(
    scripted: Start, monkeypatch: pytest.MonkeyPatch, carrier: Carrier
):
    """One of the others will give its own back."""
    server = await scripted(reply(b"{}"))
    async with carrier(server.url) as transport:
        failing_once(monkeypatch, OSError(errno.EMFILE, "it"))
        assert (await transport.send(ASK)).status == 200


@pytest.mark.parametrize("failures", [3, 4])
async def test_no_file_at_all_is_nobody_else_s_fault(failures: int):
    """No WireError: those are journaled as failures of the request."""
    errors = [OSError(errno.ENFILE, "it")] * failures

    async def connect() -> str:
        if errors:
            raise errors.pop()
        return "connected"

    connecting = with_patience(connect, base_url="http://one", pauses=(0, 0, 0))
    if failures == 3:
        assert await connecting == "connected"
        return
    with pytest.raises(OpenFilesError, match="http://one") as caught:
        await connecting
    assert not isinstance(caught.value, WireError)
    assert caught.value.stage == "machine"
    assert "ulimit -n" in str(caught.value)


async def test_the_transports_pass_it_on(
    scripted: Start, monkeypatch: pytest.MonkeyPatch, carrier: Carrier
):
    """Not as an error of the server's."""
    server = await scripted(reply(b"{}"))
    async with carrier(server.url) as transport:
        failing_once(monkeypatch, OpenFilesError("none left"))
        with pytest.raises(OpenFilesError):
            await transport.send(ASK)


async def test_a_server_that_refuses_is_not_waited_for(
    scripted: Start, monkeypatch: pytest.MonkeyPatch, carrier: Carrier
):
    """That is its own failure, at once."""
    server = await scripted(reply(b"{}"))
    async with carrier(server.url) as transport:
        failing_once(monkeypatch, OSError(errno.ECONNREFUSED, "it"))
        with pytest.raises(ConnectionFailedError):
            await transport.send(ASK)
