from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import psutil
import pytest
from tests.support.command_line import SMALL_VLLM

from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.tree import identify
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import attach_server
from enginehouse.servers.records import list_servers
from enginehouse.servers.server import OwnedServer, start_server

pytestmark = pytest.mark.engine
ENGINE = VllmEngine()


@pytest.fixture
def arguments(layout, vllm_environment, smollm2):
    """Real vLLM and SmolLM2, shared between tests; records and leases of this test's own."""
    fixed = {
        "engine": ENGINE,
        "environment": vllm_environment,
        "context": Context(layout=layout, notify=print),
    }
    return {"model": smollm2, **fixed}


async def seeded(session, *, words, requests):
    """Ask long prompts with seeds, all at once; give the statuses."""

    async def one(seed):
        prompt = f"{seed} " + " ".join(str((seed * 7919 + i * 31) % 1000) for i in range(words))
        body = {"model": "smollm2", "prompt": prompt, "max_tokens": 2, "seed": seed}
        async with session.post("/v1/completions", json=body | {"temperature": 0.8}) as reply:
            return reply.status

    return await asyncio.gather(*(one(seed) for seed in range(requests)))


GUARDED = (
    *(("GET", path) for path in ("/v1/models", "/metrics", "/version", "/ping", "/load", "/docs")),
    *(("POST", path) for path in ("/invocations", "/tokenize", "/detokenize", "/v1/messages")),
)


async def statuses(url: str, key: str | None) -> dict[str, int]:
    """Of what vLLM answers everyone, key or no key, asked with an empty body."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    found = {}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for method, path in GUARDED:
            async with session.request(method, path, json={}) as reply:
                found[path] = reply.status
    return found


async def test_a_real_vllm_is_ready_works_and_leaves_nothing_when_its_core_is_killed(
    arguments, layout
):
    """It is ready with our flags and key, and survives long seeded prompts.

    After kill -9 of EngineCore in the block, the rest of vLLM is gone after the block.
    """
    options = ServerOptions(api_key="s3cret", served_model_name="smollm2", env_vars=SMALL_VLLM)
    async with start_server(OwnedServer(**arguments, options=options)) as owned:
        server = owned.server
        headers = {"Authorization": "Bearer s3cret"}
        async with aiohttp.ClientSession(server.base_url, headers=headers) as session:
            # 2,332 tokens: without the avoidance, one of the prompts would not fit into a step
            assert await seeded(session, words=150, requests=4) == [200] * 4
            async with session.get(ENGINE.load_signal.path) as reply:
                load = ENGINE.load_signal.parse(await reply.text())
        assert await statuses(server.base_url, None) == {path: 401 for _, path in GUARDED}
        assert 401 not in (await statuses(server.base_url, "s3cret")).values()
        assert load is not None
        assert (load.running, load.waiting) == (0, 0)
        assert load.generation_tokens == 9  # the canary's, too
        attached = await attach_server(server.base_url, api_key="s3cret", engine=ENGINE)
        assert attached.version == arguments["environment"].version
        (status,) = list_servers(layout)
        processes = psutil.Process(server.pid).children(recursive=True)
        (core,) = [p for p in processes if "EngineCore" in p.name()]
        os.kill(core.pid, signal.SIGKILL)
    assert not [pid for pid in status.pids if identify(pid)]
    assert list_servers(layout) == []
