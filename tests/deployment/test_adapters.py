from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from tests.support.deployments import opened
from tests.support.lora_servers import fake, loaded
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import AdapterError
from enginehouse.deployment.adapters import Adapters, adapters_of, adapters_on
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import attach_server
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine


@pytest.mark.slow
class TestLoad:
    """`Adapters.load` leaves the server as it was where it fails."""

    async def test_a_proof_that_cannot_be_made(self, layout, tmp_path, monkeypatch):
        """The new content is unloaded, and the old one stays."""

        async def impossible(*_: object, **__: object) -> None:
            raise AdapterError("there is no hf environment")

        async with fake() as url, adapters_of(url, Context(layout=layout)) as its:
            before = await its.load("mine", write_adapter(tmp_path / "a"))
            monkeypatch.setattr(Adapters, "_parity", impossible)
            with pytest.raises(AdapterError, match="no hf environment"):
                await its.load("mine", write_adapter(tmp_path / "b", seed=1), proof="peft")
            assert await loaded(url) == [before.adapter.model]
            assert (await its.verify("mine")).adapter.model == before.adapter.model

    async def test_what_was_there_is_not_unloaded(self, layout, tmp_path, monkeypatch):
        """Its content again, whose proof fails this time."""
        folder = write_adapter(tmp_path / "a")
        async with fake() as url, adapters_of(url, Context(layout=layout)) as its:
            before = await its.load("mine", folder)

            async def none(*_: object, **__: object) -> None:
                raise AdapterError("no effect")

            monkeypatch.setattr("enginehouse.deployment.adapters.prove_effect", none)
            with pytest.raises(AdapterError, match="no effect"):
                await its.load("mine", folder)
            assert await loaded(url) == [before.adapter.model]


@pytest.mark.slow
class TestRank:
    """A server of ours says what it takes: more is refused before the server sees it."""

    @pytest.mark.parametrize(
        ("rank", "given", "takes"), [(32, None, 16), (32, 16, 16), (64, 32, 32), (32, 32, None)]
    )
    async def test_of_a_server_of_ours(self, house, layout, tmp_path, rank, given, takes):
        """By its name or any address of it; vLLM's own default counts."""
        folder = write_adapter(tmp_path / "a", rank=rank)
        options = {"enable_lora": True} | ({"max_lora_rank": given} if given else {})
        values = {"model": str(house.model()), "server": options}
        config = parse(ServeConfig, values, origin="test")
        async with opened(config, layout=layout) as ready:
            url = ready.url.replace("127.0.0.1", "localhost")
            for target in (ready.server.name, url):
                async with adapters_of(target, Context(layout=layout)) as its:
                    if takes is None:
                        await its.load("mine", folder)
                        continue
                    with pytest.raises(AdapterError, match=f"{takes} at most"):
                        await its.load("mine", folder)
            server = await attach_server(url, engine=VllmEngine())
            async with adapters_on(server, VllmEngine(), Context(layout=layout)) as its:
                if takes is not None:
                    with pytest.raises(AdapterError, match=f"{takes} at most"):
                        await its.load("other", folder)

    async def test_of_another_server(self, layout, tmp_path):
        """It is asked, and its refusal is told in its words."""
        folder = write_adapter(tmp_path / "a", rank=32)
        async with fake() as url, adapters_of(url, Context(layout=layout)) as its:
            with pytest.raises(AdapterError, match=r"refused.* mine") as caught:
                await its.load("mine", folder)
            assert "LoRA rank 32 is greater than max_lora_rank 16" in caught.value.why
            assert await loaded(url) == []


class TestListed:
    """What a server answers as is no adapter only because it is not the first."""

    async def test_further_names_of_the_model(self, layout, tmp_path):
        """They are not listed, and not unloaded."""
        two = ("--served-model-name", "one", "two")
        async with fake(flags=two) as url, adapters_of(url, Context(layout=layout)) as its:
            done = await its.load("mine", write_adapter(tmp_path / "a"))
            assert [one.model for one in await its.list()] == [done.adapter.model]

    async def test_one_that_others_loaded(self, layout, tmp_path):
        """Without a digest in its name, nothing can be said of its content."""
        folder = write_adapter(tmp_path / "a")
        async with running_fake_engine("--enable-lora") as engine:
            await by_hand(engine, name="theirs", path=folder)
            async with adapters_of(engine.url, Context(layout=layout)) as its:
                (one,) = await its.list()
                assert (one.model, one.digest) == ("theirs", "")
                with pytest.raises(AdapterError, match="theirs"):
                    await its.verify("theirs")


async def by_hand(engine: FakeEngineHandle, *, name: str, path: Path) -> None:
    """Load an adapter as anybody can."""
    body = json.dumps({"lora_name": name, "lora_path": str(path)})
    address = f"{engine.url}/v1/load_lora_adapter"
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(address, data=body) as reply,
    ):
        assert reply.status == 200
