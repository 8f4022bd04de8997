from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import psutil
import pytest

from enginehouse.core.errors import StartError
from enginehouse.engines.base import ServerOptions
from enginehouse.engines.vllm import VllmEngine
from enginehouse.executors.tree import identify
from enginehouse.provisioning.environments import find_environment
from enginehouse.provisioning.models import resolve_model
from enginehouse.servers.records import list_servers
from enginehouse.servers.server import attach_server, start_server
from enginehouse.store.layout import Layout

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
ENGINE = VllmEngine()


@pytest.fixture
async def arguments(layout):
    """Real vLLM and SmolLM2, shared between tests; records and leases of this test's own."""
    shared = Layout.from_environment()
    environment = await find_environment(
        "vllm", python=None, version=None, variant=None, layout=shared, notify=print
    )
    model = await resolve_model(
        "smollm2", fallback_path=None, environment=environment, layout=shared, notify=print
    )
    fixed = {"engine": ENGINE, "environment": environment, "layout": layout, "notify": print}
    return {"model": model, **fixed}


async def seeded(session, *, words, requests):
    """Ask long prompts with seeds, all at once; give the statuses."""

    async def one(seed):
        prompt = f"{seed} " + " ".join(str((seed * 7919 + i * 31) % 1000) for i in range(words))
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": 2, "seed": seed}
        async with session.post("/v1/completions", json=body | {"temperature": 0.8}) as reply:
            return reply.status

    return await asyncio.gather(*(one(seed) for seed in range(requests)))


async def test_a_real_vllm_is_ready_works_and_is_gone(arguments, layout):
    """It is ready with our flags and key, survives long seeded prompts, and is gone after."""
    options = ServerOptions(api_key="s3cret", served_model_name="smollm2")
    async with start_server(**arguments, options=options) as owned:
        server = owned.server
        headers = {"Authorization": "Bearer s3cret"}
        async with aiohttp.ClientSession(server.base_url, headers=headers) as session:
            assert await seeded(session, words=700, requests=4) == [200] * 4
            async with session.get(ENGINE.load_signal.path) as reply:
                load = ENGINE.load_signal.parse(await reply.text())
        assert load is not None
        assert (load.running, load.waiting) == (0, 0)
        assert load.generation_tokens == 9  # the canary's, too
        attached = await attach_server(server.base_url, api_key="s3cret", engine=ENGINE)
        assert attached.version == arguments["environment"].version
        (status,) = list_servers(layout)
    assert not [pid for pid in status.pids if identify(pid)]
    assert list_servers(layout) == []


async def test_a_killed_engine_core_leaves_nothing(arguments, layout):
    """After kill -9 of EngineCore in the block, the rest of vLLM is gone after the block."""
    async with start_server(**arguments, options=ServerOptions()) as owned:
        server = owned.server
        (status,) = list_servers(layout)
        processes = psutil.Process(server.pid).children(recursive=True)
        (core,) = [p for p in processes if "EngineCore" in p.name()]
        os.kill(core.pid, signal.SIGKILL)
    assert not [pid for pid in status.pids if identify(pid)]


async def test_a_start_that_vllm_refuses_gives_its_reason(arguments):
    """The error has vLLM's own first cause, not its closing traceback."""
    options = ServerOptions(max_model_len=1_000_000)
    with pytest.raises(StartError, match="exit code 1") as caught:
        async with start_server(**arguments, options=options):
            pytest.fail("it cannot be ready")
    assert "max_model_len (1000000) is greater than" in caught.value.evidence
