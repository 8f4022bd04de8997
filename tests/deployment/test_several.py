"""Several servers behind one sampler: any of them may die, and every request has one answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_adapters import write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse import ChatPrompt, Message, SampleRequest, SampleResponse, SamplingParameters
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    EngineKilledError,
    ServerGoneError,
    StartError,
    UnknownNameError,
    UnsupportedError,
)
from enginehouse.core.incidents import Incident
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.deployment.several import SeveralDeployment
from enginehouse.servers.records import list_servers
from enginehouse.store.layout import Layout

SLOW = {"VLLM_FAKE_TOKEN_LATENCY": "0.02"}


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


def plan(house: House, *, instances: int = 3, **values: object) -> AskConfig:
    """Servers of the tiny model, each token of which takes a while."""
    server = {"env_vars": SLOW} | dict(values.pop("server", {}))  # type: ignore[call-overload]
    given = {"model": str(house.model()), "instances": instances, "server": server} | values
    return parse(AskConfig, given, origin="test")


def pids() -> dict[str, int]:
    """Of the servers that run, by name."""
    return {
        one.record.base_url: one.record.process.pid
        for one in list_servers(Layout.from_environment())
    }


@pytest.mark.slow
async def test_one_of_three_is_killed_under_load(house: House):
    """Every request has one answer, the same as from one server, while the others take over."""
    incidents: list[Incident] = []
    async with opened(plan(house, instances=1), concurrency=12) as one:
        asked = [one.sampler.sample(asking(f"{n}")) for n in range(48)]
        alone = [response.completions[0].text for response in await asyncio.gather(*asked)]
    async with opened(plan(house), concurrency=12, incidents=incidents) as ready:
        assert isinstance(ready, SeveralDeployment)
        before = pids()
        tasks = [asyncio.create_task(ready.sampler.sample(asking(f"{n}"))) for n in range(48)]
        await until(lambda: ready.sampler.in_flight == 12)
        shares = [instance.in_flight.total() for instance in ready.instances]
        assert shares == [4, 4, 4]
        victim, pid = next(iter(before.items()))
        os.kill(pid, signal.SIGKILL)
        responses = await asyncio.gather(*tasks)
        assert [response.completions[0].text for response in responses] == alone
        asked_of = {one.base_url: one.asked for one in ready.instances}
        assert sum(asked_of.values()) == 48 + incidents[0].in_flight
        await until(lambda: pids()[victim] != pid)
        await until(lambda: all(one.redelivery.is_open for one in ready.instances))
        more = [ready.sampler.sample(asking(f"{n}")) for n in range(12)]
        assert len(await asyncio.gather(*more)) == 12
        assert {one.base_url: one.asked for one in ready.instances}[victim] > asked_of[victim]
    assert [incident.consequence for incident in incidents] == ["started again"]
    assert incidents[0].in_flight == 4
    house.nothing_left()


@pytest.mark.slow
async def test_all_are_killed(house: House):
    """The requests wait for whichever is back first; each is answered once."""
    incidents: list[Incident] = []
    async with opened(plan(house, instances=2), concurrency=8, incidents=incidents) as ready:
        tasks = [asyncio.create_task(ready.sampler.sample(asking(f"{n}"))) for n in range(24)]
        await until(lambda: ready.sampler.in_flight == 8)
        for pid in pids().values():
            os.kill(pid, signal.SIGKILL)
        responses = await asyncio.gather(*tasks)
        assert all(response.completions[0].finish_reason for response in responses)
    assert len(incidents) == 2
    house.nothing_left()


@pytest.mark.slow
async def test_given_up_one_by_one(house: House):
    """One that is not started again leaves its work to the other; then the error is the last's."""
    incidents: list[Incident] = []
    values = plan(house, instances=2, max_restarts=0)
    async with opened(values, incidents=incidents) as ready:
        first, second = pids().values()
        asked = [asyncio.create_task(ready.sampler.sample(asking(f"{n}"))) for n in range(4)]
        await until(lambda: ready.sampler.in_flight == 4)
        os.kill(first, signal.SIGKILL)
        assert all(response.completions for response in await asyncio.gather(*asked))
        await until(lambda: incidents)
        late = asyncio.create_task(ready.sampler.sample(asking("x", tokens=400)))
        await until(lambda: ready.sampler.in_flight)
        os.kill(second, signal.SIGKILL)
        with pytest.raises(ServerGoneError, match="max_restarts"):
            await late
        with pytest.raises(ServerGoneError, match="max_restarts"):
            async with ready.target():
                pass
    house.nothing_left()


@pytest.mark.slow
async def test_the_killer_is_found(house: House, tmp_path: Path):
    """It takes two servers, and one of them twice; only it fails."""
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"fault": "die", "match": "KILL", "reply": "reset"}]))
    env = SLOW | {"VLLM_FAKE_FAULTS": str(faults)}
    incidents: list[Incident] = []
    values = plan(house, instances=2, server={"env_vars": env})
    texts = [f"{n}" for n in range(10)]
    texts.insert(4, "KILL")
    async with opened(values, concurrency=8, incidents=incidents) as ready:
        results = await asyncio.gather(
            *(ready.sampler.sample(asking(text)) for text in texts), return_exceptions=True
        )
        assert isinstance(results.pop(4), EngineKilledError)
        assert all(isinstance(result, SampleResponse) for result in results)
        await until(lambda: len(incidents) == 3)
    house.nothing_left()


@pytest.mark.slow
async def test_an_adapter_is_on_all_of_them(house: House, tmp_path: Path):
    """Whoever answers, and after a restart too, it is the adapter that does."""
    folder = write_adapter(tmp_path / "step-1", seed=1)
    values = plan(house, instances=2, server={"enable_lora": True})
    async with opened(values, concurrency=4) as ready:
        assert isinstance(ready, SeveralDeployment)

        async def answers(deployment: Deployment, adapter: Path | None) -> set[str]:
            async with deployment.target(adapter) as target:
                asked = [target.sampler.sample(asking("x", tokens=8)) for _ in range(8)]
                responses = await asyncio.gather(*asked)
                return {response.completions[0].text for response in responses}

        base, adapted = await answers(ready, None), await answers(ready, folder)
        assert (len(base), len(adapted)) == (1, 1)
        assert base != adapted
        async with ready.target(folder) as target:
            assert target.adapter is not None
            victim = next(iter(ready.instances))
            os.kill(pids()[victim.base_url], signal.SIGKILL)
            before = victim.asked
            while victim.asked == before:
                assert await answers(ready, folder) == adapted
            async with ready.target_named(target.sampler.model) as named:
                assert (await named.sampler.sample(asking("x", tokens=8))).completions
        with pytest.raises(UnknownNameError):
            async with ready.target_named("nobody"):
                pass
        with pytest.raises(UnsupportedError):
            ready.adapters()
        with pytest.raises(UnsupportedError):
            await ready.sampler.load_adapter("x", path=str(folder))
        (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
        with pytest.raises(AdapterError):
            async with ready.target(folder):
                pass
        assert await answers(ready, None) == base
    house.nothing_left()


@pytest.mark.slow
async def test_a_checkpoint_is_swapped_into_all_of_them(house: House, tmp_path: Path):
    """And every answer names the weights that it is from."""
    step = write_checkpoint(tmp_path / "step-1", seed=1)
    model = write_checkpoint(tmp_path / "start")
    values = plan(house, instances=2, model=str(model), server={"enable_weight_swap": True})
    async with opened(values, concurrency=4) as ready:
        async with ready.target(step) as target:
            asked = [target.sampler.sample(asking("x")) for _ in range(8)]
            digests = {response.weights_digest for response in await asyncio.gather(*asked)}
            assert digests == {target.provenance.weights_digest}
        async with ready.target() as target:
            asked = [target.sampler.sample(asking("x")) for _ in range(8)]
            digests = {response.weights_digest for response in await asyncio.gather(*asked)}
            assert digests == {target.provenance.weights_digest}
    house.nothing_left()


@pytest.mark.slow
async def test_one_does_not_start(house: House, tmp_path: Path):
    """The others are stopped, and the cause is told."""
    fault = {"fault": "no_start", "cause": "RuntimeError: no", "nth": [2]}
    env = {"VLLM_FAKE_FAULTS": json.dumps([fault]), "VLLM_FAKE_STATE": str(tmp_path / "counts")}
    with pytest.raises(StartError):
        async with opened(plan(house, server={"env_vars": env})):
            pass
    house.nothing_left()


@pytest.mark.parametrize(
    "values",
    [
        {"instances": 0},
        {"instances": 2, "url": "http://127.0.0.1:8000"},
        {"instances": 2, "server": {"port": 8000}},
        {"url": "http://127.0.0.1:8000", "addresses": "servers"},
    ],
)
def test_plans_that_contradict_themselves(values: dict[str, object]):
    """They are refused before anything is started."""
    with pytest.raises(ConfigurationError):
        parse(AskConfig, {"model": "m"} | values, origin="test")
