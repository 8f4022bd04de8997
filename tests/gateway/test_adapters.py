"""Adapters that requests name, loaded on demand from a folder, into the fake engine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.gateways import gateway_options
from tests.support.leased_ports import leased_port
from tests.support.lora_servers import fake, loaded
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    UnsupportedError,
)
from enginehouse.deployment.configuration import AskConfig, ServeConfig, parse
from enginehouse.deployment.preparation import with_adapters
from enginehouse.deployment.several import SeveralDeployment
from enginehouse.gateway.service import open_gateway
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import running_fake_engine

QUESTION = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
NAMES = ("one", "two", "three")


class Client:
    """Asks a gateway's models."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, model: str | None, **fields: Any) -> tuple[int, dict[str, Any]]:
        """The status and the reply."""
        body = QUESTION | fields | ({"model": model} if model is not None else {})
        async with self._session.post("/v1/completions", json=body) as reply:
            return reply.status, await reply.json()

    async def text(self, model: str | None, **fields: Any) -> str:
        """What a model says."""
        status, reply = await self.post(model, **fields)
        assert status == 200, reply
        text: str = reply["choices"][0]["text"]
        return text

    async def stream(self, model: str) -> str:
        """What a model says, piece by piece."""
        body = QUESTION | {"model": model, "stream": True}
        async with self._session.post("/v1/completions", json=body) as reply:
            lines = (await reply.text()).splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return "".join(event["choices"][0]["text"] for event in events if event["choices"])

    async def models(self) -> list[str]:
        """The names that are listed."""
        async with self._session.get("/v1/models") as reply:
            return [model["id"] for model in (await reply.json())["data"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three adapters, and of what is none."""
    folder = tmp_path / "adapters"
    for seed, name in enumerate(NAMES):
        age(write_adapter(folder / name, seed=seed))
    (folder / "notes").mkdir()
    (folder / "README.md").write_text("adapters")
    return folder


def age(adapter: Path) -> None:
    """Make it a minute old, as adapters are that nobody is writing."""
    for file in adapter.iterdir():
        os.utime(file, (time.time() - 60, time.time() - 60))


@asynccontextmanager
async def at(url: str, **options: Any) -> AsyncIterator[Client]:
    """A client of a gateway before a running server."""
    plan = parse(AskConfig, {"url": url}, origin="test")
    async with opened(plan) as deployment, before(deployment, **options) as client:
        yield client


@asynccontextmanager
async def before(deployment, **options: Any) -> AsyncIterator[Client]:
    """A client of a gateway before a deployment."""
    async with (
        open_gateway(deployment, gateway_options(**options), Context()) as gateway,
        aiohttp.ClientSession(gateway.url) as session,
    ):
        yield Client(session)


def serving(house: House, *, max_loras: int, **server: Any) -> ServeConfig:
    """A server of our own, with places for adapters."""
    model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    plan = parse(ServeConfig, {"model": str(model), "server": server}, origin="test")
    return with_adapters(plan, max_loras=max_loras)


@pytest.fixture
async def engine(house: House) -> AsyncIterator[str]:
    """The address of an engine that takes adapters."""
    del house  # a home of its own
    async with fake() as url:
        yield url


async def test_a_model_may_be_an_adapter(engine, folder):
    """It is loaded when it is named, one at a time; each answers as itself."""
    async with at(engine, adapters=folder) as client:
        assert await loaded(engine) == []
        texts = [await client.text(name) for name in (None, *NAMES)]
        assert len(set(texts)) == 4
        assert [await client.text(name) for name in (None, *NAMES)] == texts
        assert [await client.stream(name) for name in NAMES] == texts[1:]
        (last,) = await loaded(engine)
        assert last.startswith("three@")
    assert await loaded(engine) == []


async def test_the_adapters_are_listed_as_models(engine, folder):
    """By the names that requests give, loaded or not."""
    async with at(engine, adapters=folder) as client:
        assert await client.models() == ["fake-model", "one", "three", "two"]
        await client.text("two")
        assert await client.models() == ["fake-model", "one", "three", "two"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tow", "notes", "../adapters/two", "two/", ".", "", "two@12"])
async def test_an_unknown_adapter(engine, folder, name):
    """A 404 that names the ones there are."""
    async with at(engine, adapters=folder) as client:
        status, reply = await client.post(name)
        assert status == 404
        assert reply["error"]["code"] == "model_not_found"
        for known in (*NAMES, "fake-model"):
            assert known in reply["error"]["message"]
        if name == "tow":
            assert "did you mean 'two'?" in reply["error"]["message"]
        assert await client.text("one")


async def test_an_adapter_that_is_added_later(engine, folder):
    """It is there from the next request on."""
    async with at(engine, adapters=folder) as client:
        assert (await client.post("four"))[0] == 404
        write_adapter(folder / "four", seed=4)
        assert await client.text("four")
        shutil.rmtree(folder / "four")
        assert (await client.post("four"))[0] == 404
        assert "four" not in await client.models()


@pytest.mark.slow
async def test_changed_content(engine, folder, tmp_path):
    """However it was changed, and however often: the next request gets it, and no stale answer."""
    options = {"adapters": folder, "record": tmp_path / "journal", "replay": True}
    async with at(engine, **options) as client:
        old = await client.text("one")
        assert await client.text("one") == old
        texts = [old]
        for seed in range(10, 16):  # in place, at once: sizes and clocks may not tell
            write_adapter(folder / "one", seed=seed)
            texts.append(await client.text("one"))
            assert await client.text("one") == texts[-1]
        assert len(set(texts)) == len(texts)
        write_adapter(folder / "new", seed=0)
        shutil.rmtree(folder / "one")
        (folder / "new").rename(folder / "one")
        assert await client.text("one") == old


async def test_what_is_no_adapter(engine, folder):
    """It is refused with the reason, and used as soon as it is one."""
    tensors = folder / "one" / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    async with at(engine, adapters=folder) as client:
        status, reply = await client.post("one")
        assert status == 400
        assert "adapter_model.safetensors" in reply["error"]["message"]
        tensors.write_bytes(whole)
        assert await client.text("one")


@pytest.mark.slow
async def test_an_adapter_that_the_server_refuses(house: House, folder):
    """Its rank is too large: a 400, and the others go on."""
    write_adapter(folder / "large", rank=16)
    async with (
        fake(flags=("--max-lora-rank", "8")) as engine,
        at(engine, adapters=folder) as client,
    ):
        status, _ = await client.post("large")
        assert status == 400
        assert await client.text("one")


@pytest.mark.slow
async def test_many_requests_for_many_adapters(engine, folder):
    """More adapters than places: each request is answered by the adapter that it names."""
    async with at(engine, adapters=folder, max_loras=2) as client:
        right = {name: await client.text(name) for name in (None, *NAMES)}
        asked = [name for _ in range(10) for name in (None, *NAMES)]
        answers = await asyncio.gather(*(client.text(name) for name in asked))
        assert answers == [right[name] for name in asked]
        assert len(await loaded(engine)) <= 2


@pytest.mark.slow
async def test_streams_keep_their_adapter(house: House, folder):
    """It is not evicted before a stream has ended."""
    async with (
        running_fake_engine("--enable-lora", token_latency=0.05) as engine,
        at(engine.url, adapters=folder) as client,
    ):
        alone = [await client.stream(name) for name in NAMES]
        assert await asyncio.gather(*map(client.stream, NAMES)) == alone


async def test_a_recorded_answer_needs_no_adapter(engine, folder, tmp_path):
    """It is told apart by content, and nothing is loaded for it."""
    options = {"adapters": folder, "record": tmp_path / "journal", "replay": True}
    async with at(engine, **options) as client:
        texts = {name: await client.text(name) for name in (None, *NAMES)}
    async with at(engine, **options) as client:
        assert {name: await client.text(name) for name in (None, *NAMES)} == texts
        assert await loaded(engine) == []


async def nothing_loaded(url: str) -> None:
    """The gateway has unloaded what it had loaded."""
    assert await loaded(url) == []


@pytest.mark.slow
class TestOwnServer:
    """On a server of our own."""

    async def test_eviction(self, house: House, folder):
        """One place for three."""
        async with AsyncExitStack() as stack:
            deployment = await stack.enter_async_context(opened(serving(house, max_loras=1)))
            stack.push_async_callback(nothing_loaded, deployment.url)
            client = await stack.enter_async_context(before(deployment, adapters=folder))
            alone = [await client.text(name) for name in NAMES]
            assert len(set(alone)) == 3
            asked = await asyncio.gather(*(client.text(name) for name in NAMES * 3))
            assert asked == alone * 3
            assert len(await loaded(deployment.url)) == 1

    async def test_a_restart(self, house: House, folder):
        """What was loaded is back before requests are answered."""
        incidents: list[Any] = []
        async with (
            opened(serving(house, max_loras=2), incidents=incidents) as deployment,
            before(deployment, adapters=folder) as client,
        ):
            alone = [await client.text(name) for name in NAMES]
            assert deployment.server.pid is not None
            os.kill(deployment.server.pid, signal.SIGKILL)
            assert await asyncio.gather(*map(client.text, NAMES)) == alone
        assert len(incidents) == 1

    async def test_a_server_without_places(self, house: House, folder):
        """It is said before anything is answered."""
        model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
        plan = parse(ServeConfig, {"model": str(model)}, origin="test")
        async with opened(plan) as deployment:
            with pytest.raises(AdapterError) as refused:
                async with before(deployment, adapters=folder):
                    pass
        assert "--enable-lora" in str(refused.value)

    async def test_beside_an_adapter_of_the_plan(self, house: House, folder):
        """They would compete for the places."""
        plan = serving(house, max_loras=2).model_copy(update={"adapter": folder / "one"})
        async with opened(plan) as deployment:
            with pytest.raises(ConfigurationError, match="together"):
                async with before(deployment, adapters=folder):
                    pass


@pytest.mark.slow
async def test_several_servers(house: House, folder):
    """All of them have an adapter that is asked for; one that is killed gets it back."""
    model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    plan = parse(AskConfig, {"model": str(model), "instances": 2}, origin="test")
    async with (
        opened(with_adapters(plan, max_loras=1)) as deployment,
        before(deployment, adapters=folder) as client,
    ):
        assert isinstance(deployment, SeveralDeployment)
        alone = [await client.text(name) for name in (None, *NAMES)]
        assert len(set(alone)) == 4
        asked = (None, *NAMES) * 6
        assert await asyncio.gather(*map(client.text, asked)) == alone * 6
        assert all(one.asked >= len(asked) / 3 for one in deployment.instances)
        victim = deployment.server.pid
        assert victim is not None
        asking = [asyncio.create_task(client.text(name)) for name in asked]
        os.kill(victim, signal.SIGKILL)
        assert await asyncio.gather(*asking) == alone * 6


@pytest.mark.slow
async def test_a_restarted_foreign_server(house: House, folder, tmp_path):
    """Its adapters are gone; only its refusal says so, and they are loaded again."""
    with leased_port() as port:
        flags = ("--enable-lora", "--port", str(port))
        async with running_fake_engine(*flags) as first:
            plan = parse(AskConfig, {"url": first.url}, origin="test")
            async with opened(plan) as deployment, before(deployment, adapters=folder) as client:
                text = await client.text("one")
                os.kill(first.pid, signal.SIGKILL)
                async with running_fake_engine(*flags) as second:
                    assert second.url == first.url
                    assert await client.text("one") == text
                    assert await client.stream("one") == text


@pytest.mark.slow
async def test_a_folder_that_is_none(engine, tmp_path):
    """It is said at the start."""
    with pytest.raises(ConfigurationError, match="nowhere"):
        async with at(engine, adapters=tmp_path / "nowhere"):
            pass


async def test_an_engine_without_adapters(house: House, folder):
    """It is said at the start."""
    async with running_fake_engine() as engine:
        plan = parse(AskConfig, {"url": engine.url, "engine": "llamacpp"}, origin="test")
        async with opened(plan) as deployment:
            with pytest.raises(UnsupportedError):
                async with before(deployment, adapters=folder):
                    pass
