"""Targets that are open at the same time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import House, SharedServer
from tests.support.deployments import opened
from tests.support.derived_adapters import scaled
from tests.support.lora_servers import fake, loaded
from tests.support.tiny_adapters import BASE, write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import AdapterError, UnknownNameError, WeightsError
from enginehouse.core.incidents import Incident
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.adapters import adapters_of
from enginehouse.deployment.base import Deployment, Target
from enginehouse.deployment.configuration import AskConfig, ServeConfig, parse
from enginehouse.deployment.preparation import with_adapters, with_weight_swap
from enginehouse.runtime.context import Context

VOTE = "In this round the red team votes first: "


async def ask(target: Target, text: str = "x") -> str:
    """A greedy answer."""
    request = SampleRequest(prompt=TextPrompt(text), parameters=SamplingParameters(max_tokens=16))
    return (await target.sampler.sample(request)).completions[0].text


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Three that differ, two of which have the same folder name."""
    names = ("one/step-1", "two/step-1", "one/step-2")
    return [write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(names)]


def plan_for(house: House, adapters: list[Path], **server: Any) -> ServeConfig:
    """A model, with room for the adapters."""
    model = write_checkpoint(house.work / "tiny", shapes=dict(BASE))
    values = {"model": str(model), "server": server}
    plan = parse(ServeConfig, values, origin="test")
    return with_adapters(plan, adapters, max_loras=len(adapters))


@asynccontextmanager
async def targets(
    deployment: Deployment, folders: list[Path | None], *, at_once: bool = False
) -> AsyncIterator[list[Target]]:
    """All of them, open for the block; opened one by one, or at once."""
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(deployment.target(folder)) for folder in folders]
        if at_once:
            yield await asyncio.gather(*opening)
        else:
            yield [await one for one in opening]


@pytest.mark.slow
class TestServed:
    """On a server of our own."""

    @pytest.mark.parametrize("at_once", [False, True])
    async def test_the_model_and_adapters(self, house: House, adapters, at_once):
        """Each answers as itself, however often and in whatever order they are asked."""
        async with opened(plan_for(house, adapters)) as deployment:
            async with targets(deployment, [None, *adapters], at_once=at_once) as all_four:
                first = await asyncio.gather(*map(ask, all_four))
                again = await asyncio.gather(*(ask(one) for one in reversed(all_four)))
                assert len(set(first)) == 4
                assert again == first[::-1]
            digests = [one.provenance.adapter_digest for one in all_four]
            assert digests[0] is None
            assert len(set(digests)) == 4

    async def test_a_restart(self, house: House, adapters):
        """All of them are back, and the requests that waited are answered."""
        incidents: list[Incident] = []
        async with (
            opened(plan_for(house, adapters), incidents=incidents) as deployment,
            targets(deployment, [None, *adapters]) as all_four,
        ):
            before = await asyncio.gather(*map(ask, all_four))
            os.kill(deployment.server.pid or 0, signal.SIGKILL)
            assert await asyncio.gather(*map(ask, all_four)) == before
        assert len(incidents) == 1

    async def test_places(self, house: House, adapters):
        """An open target keeps its adapter loaded; one more than max_loras is refused."""
        one, two, other = adapters
        async with opened(plan_for(house, adapters, max_loras=2)) as deployment:
            async with targets(deployment, [one, two, one]) as (first, _, same):
                with pytest.raises(AdapterError):
                    await deployment.target(other).__aenter__()
                assert await ask(first) == await ask(same)
            async with targets(deployment, [other, two]) as (last, _):
                assert await ask(last)

    async def test_a_checkpoint_is_alone(self, house: House, adapters, tmp_path: Path):
        """Neither does it replace the weights of open targets, nor the other way round."""
        checkpoint = write_checkpoint(tmp_path / "other", seed=7, shapes=dict(BASE))
        plan = with_weight_swap(plan_for(house, adapters))
        async with opened(plan) as deployment:
            for folder in (None, adapters[0]):
                async with deployment.target(folder) as target:
                    answer = await ask(target)
                    with pytest.raises(WeightsError) as caught:
                        await deployment.target(checkpoint).__aenter__()
                    assert caught.value.kind == "taken"
                    assert caught.value.restored
                    assert await ask(target) == answer
            async with deployment.target(checkpoint) as target:
                swapped = await ask(target)
                for folder in (None, adapters[0], checkpoint):
                    with pytest.raises(WeightsError) as caught:
                        await deployment.target(folder).__aenter__()
                    assert caught.value.kind == "taken"
                assert await ask(target) == swapped
            async with targets(deployment, [None, *adapters], at_once=True) as (base, *_):
                assert base.provenance.weights_digest != target.provenance.weights_digest
                assert await ask(base) != swapped


class TestAttached:
    """On a server that somebody else runs."""

    @pytest.mark.slow
    @pytest.mark.parametrize("at_once", [False, True])
    async def test_the_model_and_adapters(self, layout, adapters, at_once):
        """Loaded for the length of the block, those of one name too."""
        async with fake() as url:
            async with (
                opened(AskConfig(url=url), layout=layout) as deployment,
                targets(deployment, [None, *adapters], at_once=at_once) as all_four,
            ):
                assert len(set(await asyncio.gather(*map(ask, all_four)))) == 4
                assert len(await loaded(url)) == 3
                assert len({one.provenance.adapter_digest for one in all_four}) == 4
            assert await loaded(url) == []

    async def test_one_that_is_loaded_already(self, layout, adapters):
        """It is asked by its name, beside others, and stays."""
        async with fake() as url, adapters_of(url, Context(layout=layout)) as theirs:
            name = (await theirs.load("theirs", adapters[0])).adapter.model
            async with (
                opened(AskConfig(url=url), layout=layout) as deployment,
                targets(deployment, [None, adapters[1]]) as (base, other),
                deployment.target_named(name) as target,
            ):
                assert len({await ask(one) for one in (base, other, target)}) == 3
                assert target.provenance.model == name
                with pytest.raises(UnknownNameError):
                    await deployment.target_named("nobody's").__aenter__()
            assert await loaded(url) == [name]


@pytest.mark.engine
async def test_on_a_real_vllm(lora_vllm: SharedServer, vote_adapter, tmp_path, monkeypatch):
    """The base, an adapter and a weaker one: three answers, which do not depend on one another."""
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(lora_vllm.house.home))
    folders = [None, vote_adapter, scaled(vote_adapter, tmp_path / "weaker", 0.25)]
    async with (
        opened(AskConfig(url=lora_vllm.url)) as deployment,
        targets(deployment, folders, at_once=True) as three,
    ):
        alone = [await ask(target, VOTE) for target in three]
        assert len(set(alone)) == 3
        for _ in range(3):
            assert await asyncio.gather(*(ask(target, VOTE) for target in three)) == alone
