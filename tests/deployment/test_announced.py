"""Servers that announce themselves in a folder, and those who find them there."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.command_line import House, Running
from tests.support.deployments import opened
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse import ChatPrompt, Message, SampleRequest, SamplingParameters
from enginehouse.core.errors import ConfigurationError, ServerGoneError, UnsupportedError
from enginehouse.core.incidents import Incident
from enginehouse.deployment.announced import announced_deployment
from enginehouse.deployment.announcement import Announcement, read_announcements
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.deployment.several import SeveralDeployment
from enginehouse.engines.base import configured
from enginehouse.engines.registry import load_engine
from enginehouse.runtime.context import Context
from enginehouse.servers.records import list_servers
from enginehouse.store.layout import Layout

SLOW = ("--env", "VLLM_FAKE_TOKEN_LATENCY=0.02")


def asking(text: str, *, tokens: int = 16) -> SampleRequest:
    """A request that takes a third of a second."""
    return SampleRequest(
        prompt=ChatPrompt((Message("user", text),)),
        parameters=SamplingParameters(max_tokens=tokens, temperature=0.0),
    )


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


@pytest.fixture
def folder(house: House) -> Path:
    """Where servers announce themselves."""
    return house.work / "servers"


def start(house: House, model: Path, *words: str) -> Running:
    """A server that announces itself."""
    return house.start("serve", str(model), "--announce", "servers", *SLOW, *words)


@asynccontextmanager
async def asked(
    folder: Path, *, incidents: list[Incident] | None = None, servers: int = 1, **values: Any
) -> AsyncIterator[SeveralDeployment]:
    """The deployment, once so many servers have joined; it looks ten times a second."""
    plan = parse(AskConfig, {"addresses": str(folder)} | values, origin="test")
    engine = configured(load_engine(plan.engine), plan.server)
    async with announced_deployment(
        plan, engine, Context(), prepared=None, concurrency=8, look_every=0.1
    ) as ready:
        assert isinstance(ready, SeveralDeployment)
        await until(lambda: len(ready.instances) == servers)
        with ready.incidents.subscribe([].append if incidents is None else incidents.append):
            yield ready


async def texts(deployment: Deployment, folder: Path | None, *, requests: int = 8) -> set[str]:
    """The answers of a target to the same question."""
    async with deployment.target(folder) as target:
        asking_all = [target.sampler.sample(asking("x", tokens=8)) for _ in range(requests)]
        responses = await asyncio.gather(*asking_all)
        return {response.completions[0].text for response in responses}


def forget_killed() -> None:
    """The record of a server whose command was killed goes when servers are next listed."""
    list_servers(Layout.from_environment())


@pytest.mark.slow
async def test_servers_come_and_go_and_die(house: House, folder: Path):
    """One leaves, one is killed, one joins: each of the requests is answered, once."""
    model = house.model()
    leaving, dying = start(house, model), start(house, model)
    incidents: list[Incident] = []
    async with asked(folder, servers=2, incidents=incidents) as ready:
        tasks = [asyncio.create_task(ready.sampler.sample(asking(f"{n}"))) for n in range(64)]
        await until(lambda: ready.sampler.in_flight == 8)
        assert [one.in_flight.total() for one in ready.instances] == [4, 4]
        leaving.interrupt(signal.SIGTERM)
        await until(lambda: len(ready.instances) == 1)
        joining = start(house, model)
        await until(lambda: len(ready.instances) == 2)
        for process in psutil.Process(dying.pid).children(recursive=True):
            process.kill()
        dying.kill()
        await until(lambda: incidents)
        assert len(ready.instances) == 1
        responses = await asyncio.gather(*tasks)
        assert len({response.completions[0].text for response in responses}) > 1
        leaving.end()
        assert len(read_announcements(folder)) == 2  # the killed one could not take its own back
    assert [incident.kind for incident in incidents] == ["unreachable"]
    joining.interrupt()
    joining.end()
    forget_killed()


@pytest.mark.slow
async def test_one_that_joins_has_the_adapter(house: House, folder: Path, tmp_path: Path):
    """A request is never answered by the base because its server was late, or started again."""
    model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    adapter = write_adapter(tmp_path / "step-1", seed=1)
    servers = [start(house, model, "--enable-lora")]
    async with asked(folder) as ready:
        base = await texts(ready, None)
        async with ready.target(adapter) as target:
            servers.append(start(house, model, "--enable-lora"))
            await until(lambda: len(ready.instances) == 2)
            asking_all = [target.sampler.sample(asking("x", tokens=8)) for _ in range(8)]
            answers = {r.completions[0].text for r in await asyncio.gather(*asking_all)}
            assert all(one.asked for one in ready.instances)
        assert len(answers) == 1
        assert answers != base
        assert await texts(ready, None) == base
    for server in servers:
        server.interrupt()
    for server in servers:
        server.end()


@pytest.mark.slow
async def test_another_model_is_not_asked(house: House, folder: Path):
    """Nor what is no announcement: it is said, and the others answer."""
    house.write("servers/notes.json", "{}")
    server = start(house, house.model())
    notes: list[str] = []
    await until(lambda: len(read_announcements(folder)) == 2)
    (one,) = (o for o in read_announcements(folder).values() if isinstance(o, Announcement))
    other = {
        "url": "http://127.0.0.1:9",
        "models": ["other"],
        "engine": "vllm",
        "version": "1",
        "weights_digest": "abc",
    }
    plan = parse(AskConfig, {"addresses": str(folder)}, origin="test")
    async with opened(plan, notify=notes.append) as ready:
        (folder / "other.json").write_text(json.dumps(other))
        await until(lambda: any("http://127.0.0.1:9" in note for note in notes))
        assert (await ready.sampler.sample(asking("x"))).completions
        assert ready.url == one.url
    assert sum("notes.json" in note for note in notes) == 1
    server.interrupt()
    server.end()


@pytest.mark.slow
async def test_all_are_gone(house: House, folder: Path):
    """Requests wait for `progress_timeout`, then fail with what is known."""
    server = start(house, house.model())
    async with asked(folder, progress_timeout=1.0) as ready:
        request = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        await until(lambda: ready.sampler.in_flight)
        for process in psutil.Process(server.pid).children(recursive=True):
            process.kill()
        server.kill()
        with pytest.raises(ServerGoneError, match="servers"):
            await request
    forget_killed()


async def test_none_is_there(folder: Path):
    """It is waited for, but not for ever."""
    with pytest.raises(ServerGoneError, match="announced"):
        async with asked(folder, start_timeout=0.3):
            pass


async def test_a_hosted_engine_announces_nothing(folder: Path):
    """It is refused before anything is waited for."""
    with pytest.raises(UnsupportedError):
        async with asked(folder, engine="openai", model="m"):
            pass


def test_a_detached_server_is_not_announced(call: Callable[..., Any], house: House, folder: Path):
    """Nobody would take the announcement back."""
    finished = call("serve", str(house.model()), "--announce", str(folder), "--detach")
    assert finished.code == 2
    assert not folder.exists()


async def test_a_folder_that_is_none(house: House, folder: Path):
    """It is said at once, by its name."""
    with pytest.raises(ConfigurationError, match="notes"):
        async with asked(house.write("notes.txt", "")):
            pass
