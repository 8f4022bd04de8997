"""Who answers for an experiment's models: one deployment for each distinct server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import House
from tests.support.leased_ports import free_port
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.commands.experiment_configuration import LOCAL_URL, ProviderConfig
from enginehouse.commands.experiment_models import OpenModels, ask_plan, open_models
from enginehouse.core.errors import ConfigurationError, ConnectionFailedError
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import SampleRequest
from enginehouse.deployment.configuration import parse
from enginehouse.engines.base import RemoteEngine
from enginehouse.engines.registry import ENGINES, load_engine
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine
from enginehouse.testing.fake_vendors import FakeOpenAI, running_fake_vendor

ASK = SampleRequest(prompt=ChatPrompt((Message("user", "RED or BLACK?"),)))


@asynccontextmanager
async def opened(**providers: dict[str, Any]) -> AsyncIterator[OpenModels]:
    """The models of these providers."""
    parsed = {
        name: parse(ProviderConfig, values, origin=name) for name, values in providers.items()
    }
    async with open_models(parsed, Context(), concurrency=None) as models:
        yield models


async def answered_by(models: OpenModels) -> dict[str, str]:
    """The model that each one's server says has answered."""
    names = list(models.models)
    asked = (models.models[name].sampler.sample(ASK) for name in names)
    replies = await asyncio.gather(*asked)
    return {name: reply.model for name, reply in zip(names, replies, strict=True)}


async def load(engine: FakeEngineHandle, name: str, folder: Path) -> None:
    """Give a running server an adapter, as its owner would."""
    async with opened(base={"type": "vllm", "model": "base", "base_url": engine.url}) as models:
        await models.deployments[0].sampler.load_adapter(name, path=str(folder))


async def test_a_base_and_an_adapter_by_name_share_a_running_server(tmp_path: Path):
    """As in RedBlackBench's vllm_base_vs_lora: both are models that the server lists."""
    adapter = write_adapter(tmp_path / "lora")
    async with running_fake_engine("--enable-lora", model="base") as engine:
        await load(engine, "qwen3-14b-v2", adapter)
        server = {"type": "vllm", "base_url": f"{engine.url}/v1"}
        async with opened(
            base={**server, "model": "base"}, lora={**server, "model": "qwen3-14b-v2"}
        ) as models:
            assert len(models.deployments) == 1
            assert await answered_by(models) == {"base": "base", "lora": "qwen3-14b-v2"}
            named = {name: model.provenance.model for name, model in models.models.items()}
            assert named == {"base": "base", "lora": "qwen3-14b-v2"}


async def test_a_hosted_api_and_a_local_server_mix(monkeypatch: pytest.MonkeyPatch):
    """Each is asked with its own key."""
    async with (
        running_fake_engine(model="base") as engine,
        running_fake_vendor(FakeOpenAI(key="sk-1")) as vendor,
    ):
        monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
        local = {"type": "vllm", "model": "base", "base_url": engine.url}
        hosted = {"type": "openai", "model": "fake-model", "base_url": vendor.url}
        async with opened(local=local, hosted=hosted) as models:
            assert len(models.deployments) == 2
            assert (await answered_by(models))["local"] == "base"
            assert models.models["hosted"].provenance.engine == "openai"


@pytest.mark.parametrize("position", ["first", "second"])
async def test_a_model_that_the_server_does_not_list_is_refused(position: str):
    """Before anything is asked; the error says what the server has."""
    async with running_fake_engine(model="base") as engine:
        server = {"type": "vllm", "base_url": engine.url}
        names = {"first": ["other"], "second": ["base", "other"]}[position]
        with pytest.raises(ConfigurationError, match="other") as error:
            async with opened(**{name: {**server, "model": name} for name in names}):
                pass
        assert "base" in (error.value.fix or "")


async def test_a_missing_key_is_found_before_a_server_is_started(house: House):
    """Though the model to serve comes first in the file."""
    with pytest.raises(ConfigurationError, match=r"key .*openai"):
        async with opened(
            own={"type": "vllm", "model": str(house.model()), "serve": True},
            hosted={"type": "openai", "model": "gpt"},
        ):
            pass
    assert not list((house.home / "state").glob("servers/*"))


async def test_a_server_that_does_not_run_is_an_error_without_serve():
    """It names the address."""
    with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1"):
        async with opened(m={"type": "vllm", "model": "m", "base_url": address()}):
            pass


@pytest.mark.parametrize("change", [{"serve": True}, {"adapter": "/x"}])
async def test_a_hosted_api_is_neither_served_nor_given_adapters(change: dict[str, Any]):
    """It runs elsewhere."""
    with pytest.raises(ConfigurationError, match="runs elsewhere"):
        async with opened(gpt={"type": "openai", "model": "gpt", **change}):
            pass


@pytest.mark.parametrize("engine", ENGINES.names())
def test_every_engine_can_answer(engine: str):
    """One that runs here at RedBlackBench's address by default, or started; others at their own."""
    values = {"type": engine, "model": "m"}
    hosted = isinstance(load_engine(engine), RemoteEngine)
    plan = ask_plan(parse(ProviderConfig, values, origin="m"), name="m")
    assert (plan.engine, plan.url) == (engine, None if hosted else LOCAL_URL)
    if not hosted:
        served = ask_plan(parse(ProviderConfig, values | {"serve": True}, origin="m"), name="m")
        assert (served.model, served.url) == ("m", None)


@pytest.mark.slow
async def test_a_base_and_its_adapters_share_a_server_that_is_started(house: House):
    """Loaded side by side; each model's records name its adapter, and the server ends."""
    model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    folders = [write_adapter(house.work / name, seed=n) for n, name in enumerate(("one", "two"))]
    own = {"type": "vllm", "model": str(model), "serve": True, "base_url": address()}
    adapters = {folder.name: {**own, "adapter": str(folder)} for folder in folders}
    warm = {**own, "temperature": 1.5}
    async with opened(base=own, warm=warm, **adapters) as models:
        assert len(models.deployments) == 1
        names = await answered_by(models)
        assert names["base"] == names["warm"]
        assert len(set(names.values())) == 3
        digests = {name: m.provenance.adapter_digest for name, m in models.models.items()}
        assert digests["base"] is None
        assert len({digests["one"], digests["two"], None}) == 3
    house.nothing_left()


@pytest.mark.slow
async def test_serve_uses_a_server_that_runs_already(house: House):
    """At the address that is named; nothing is started."""
    async with (
        running_fake_engine(model="m") as engine,
        opened(m={"type": "vllm", "model": "m", "serve": True, "base_url": engine.url}) as models,
    ):
        assert models.deployments[0].url == engine.url
    assert not list((house.home / "state").glob("servers/*"))


def address() -> str:
    """One at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}/v1"
