"""Engines that die under a gateway: what its clients see."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.gateways import events_in, gateway_before, text_of, until

from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.gateway.service import Gateway

PATH = "/v1/chat/completions"


@asynccontextmanager
async def served(house: House, **values: Any) -> AsyncIterator[tuple[Deployment, Gateway]]:
    """A gateway before a server of our own."""
    env = values.pop("env", {})
    given = {"model": str(house.model()), "server": {"env_vars": env}, **values}
    async with (
        opened(parse(ServeConfig, given, origin="test"), concurrency=16) as deployment,
        gateway_before(deployment) as gateway,
    ):
        yield deployment, gateway


def chat(words: str = "hello", **fields: Any) -> dict[str, Any]:
    """A request that takes a while."""
    messages = [{"role": "user", "content": words}]
    return {"messages": messages, "max_tokens": 20, "ignore_eos": True, **fields}


@pytest.mark.slow
async def test_a_killed_engine_costs_whole_answers_only_time(house: House) -> None:
    """Kill -9 with eight requests in flight: each has its one answer, the same as undisturbed."""
    env = {"VLLM_FAKE_TOKEN_LATENCY": "0.03"}

    async def ask(client: aiohttp.ClientSession, number: int) -> str:
        body = chat(f"number {number}", temperature=0)
        async with client.post(PATH, json=body) as reply:
            assert reply.status == 200, await reply.text()
            answer: str = (await reply.json())["choices"][0]["message"]["content"]
            return answer

    async with (
        served(house, env=env) as (deployment, gateway),
        aiohttp.ClientSession(gateway.url) as client,
    ):
        undisturbed = await asyncio.gather(*(ask(client, number) for number in range(8)))
        tasks = [asyncio.create_task(ask(client, number)) for number in range(8)]
        await until(lambda: deployment.sampler.in_flight == 8)
        os.kill(deployment.server.pid or 0, signal.SIGKILL)
        assert await asyncio.gather(*tasks) == undisturbed
    house.nothing_left()


@pytest.mark.slow
async def test_a_stream_is_delivered_again_before_its_first_byte(house: House, tmp_path) -> None:
    """The engine dies when the request arrives; the client sees one whole stream."""
    die = {"fault": "die", "match": "hello", "nth": [1], "signal": signal.SIGKILL}
    env = {"VLLM_FAKE_FAULTS": json.dumps([die]), "VLLM_FAKE_STATE": str(tmp_path / "counts")}
    async with (
        served(house, env=env) as (_, gateway),
        aiohttp.ClientSession(gateway.url) as client,
        client.post(PATH, json=chat(stream=True)) as reply,
    ):
        events = events_in(await reply.text())
    assert events[-1] == "[DONE]"
    assert text_of(events)
    house.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "core"])
async def test_a_stream_that_breaks_after_its_first_byte_ends_with_an_error(
    house: House, how: str, tmp_path
) -> None:
    """Never with the end mark, nor as if it were whole; the next request is answered."""
    env = {"VLLM_FAKE_TOKEN_LATENCY": "0.1"}
    if how == "core":
        die = {"fault": "die", "match": "poison", "nth": [1], "linger": 1}
        env |= {"VLLM_FAKE_FAULTS": json.dumps([die]), "VLLM_FAKE_STATE": str(tmp_path / "counts")}
    async with (
        served(house, env=env) as (deployment, gateway),
        aiohttp.ClientSession(gateway.url) as client,
    ):
        body = chat(stream=True, max_tokens=200)
        async with client.post(PATH, json=body) as reply:
            received = [await reply.content.readany()]

            async def read_on() -> None:
                while True:
                    received.append(await reply.content.readany())

            if how == "killed":
                os.kill(deployment.server.pid or 0, signal.SIGKILL)
            else:
                poisoned = asyncio.create_task(client.post(PATH, json=chat("poison")))
            with pytest.raises(aiohttp.ClientPayloadError):
                await read_on()
        events = events_in(b"".join(received).decode())
        error = json.loads(events[-1])["error"]
        assert error["message"]
        assert error["code"]
        assert "[DONE]" not in events
        assert gateway.figures().broken == 1
        if how == "core":
            (await poisoned).close()
        async with client.post(PATH, json=chat(max_tokens=2)) as reply:
            assert reply.status == 200
    house.nothing_left()


@pytest.mark.slow
async def test_a_request_that_kills_the_engine_is_refused_for_good(house: House) -> None:
    """With a status at which clients do not ask again; others are answered."""
    die = {"fault": "die", "match": "poison", "signal": signal.SIGKILL}
    async with (
        served(house, env={"VLLM_FAKE_FAULTS": json.dumps([die])}) as (_, gateway),
        aiohttp.ClientSession(gateway.url) as client,
    ):
        async with client.post(PATH, json=chat("poison")) as reply:
            assert reply.status == 422
            assert (await reply.json())["error"]["code"] == "engine_killed"
        async with client.post(PATH, json=chat()) as reply:
            assert reply.status == 200
    house.nothing_left()


@pytest.mark.slow
async def test_a_server_that_is_given_up_ends_the_gateway(house: House) -> None:
    """The request says so, and so does `ended`."""
    async with (
        served(house, max_restarts=0) as (deployment, gateway),
        aiohttp.ClientSession(gateway.url) as client,
    ):
        os.kill(deployment.server.pid or 0, signal.SIGKILL)
        async with client.post(PATH, json=chat()) as reply:
            assert reply.status == 503
            assert (await reply.json())["error"]["code"] == "engine_gone"
        with pytest.raises(Exception, match="server"):
            await asyncio.wait_for(gateway.ended(), 10)
    house.nothing_left()
