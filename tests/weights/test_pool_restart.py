"""A supervised server with adapters dies under work: what it had is there before anybody asks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.store.layout import Layout
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.residence import State
from enginehouse.weights.store import AdapterStore


async def until(condition) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("places", [1, 4])
async def test_killed_under_requests_for_adapters(house: House, tmp_path: Path, places: int):
    """Four adapters, with places for all or for one: every answer is the right one all the same."""
    options = {"enable_lora": True, "env_vars": {"VLLM_FAKE_TOKEN_LATENCY": "0.02"}}
    config = parse(ServeConfig, {"model": str(house.model()), "server": options}, origin="test")
    layout = Layout.from_environment()
    incidents: list = []
    async with opened(
        config, layout=layout, notify=print, concurrency=8, incidents=incidents
    ) as ready:
        pool = AdapterPool(ready.sampler, max_loras=places, store=AdapterStore(layout))
        ready.after_restart(pool.restore)
        aliases = ("a", "b", "c", "d")

        async def answer(alias: str, number: int = 0) -> str:
            request = SampleRequest(
                prompt=TextPrompt(f"Question {number}"),
                model=alias,
                parameters=SamplingParameters(max_tokens=12),
            )
            return (await pool.sample(request)).completions[0].text

        for seed, alias in enumerate(aliases):
            await pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
        questions = [(alias, number) for alias in aliases for number in range(6)]
        expected = [await answer(*question) for question in questions]
        asked = [asyncio.create_task(answer(*question)) for question in questions]
        await until(lambda: ready.sampler.in_flight >= 4)
        os.kill(ready.server.pid, signal.SIGKILL)
        assert await asyncio.gather(*asked) == expected
        assert len(incidents) == 1
        assert sum(adapter.state is State.IN for adapter in pool.adapters()) <= places
        assert all(adapter.held == 0 for adapter in pool.adapters())
