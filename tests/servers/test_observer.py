from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import Load, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.tree import ProcessIdentity, identify
from enginehouse.results.activity import GpuReading, ServerActivity
from enginehouse.servers import observer as observing
from enginehouse.servers.observer import Observer, figures
from enginehouse.servers.ports import PortLease
from enginehouse.servers.records import ServerRecord, ServerState, write_record
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import running_fake_engine

GPU = GpuReading(index=0, uuid="GPU-0", name="H200", used_bytes=5, total_bytes=9, load=0.5)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A home without servers."""
    return Layout(cache=tmp_path / "c", state=tmp_path / "s", config=tmp_path / "k")


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process in a session of its own, as every server is."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        yield process.pid
        process.kill()


class Clock:
    """Stands still until a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        """As time.monotonic."""
        return self.now


def record(layout: Layout, pid: int, url: str, *, state: ServerState = ServerState.READY) -> None:
    """A detached server called mine, whose process is `pid`."""
    process = identify(pid) or ProcessIdentity(pid=pid, started=0.0)
    folder = layout.servers / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    entry = ServerRecord(
        name="mine",
        process=process,
        starter=process,
        detached=True,
        state=state,
        base_url=url,
        host="127.0.0.1",
        models=("tiny",),
        engine="vllm",
        version="0.32.0",
        environment="fake",
        model="tiny",
        command=("vllm",),
        has_api_key=False,
        lease=PortLease(name="mine", port=1, internal=2, owner=process),
        log=folder / "server.log",
        started=time.time(),
    )
    write_record(layout, entry)


async def generate(url: str, tokens: int) -> None:
    """Have the server make so many tokens."""
    parameters = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    request = SampleRequest(prompt=TextPrompt("Once upon a time"), parameters=parameters)
    async with HTTPSampler(url, capabilities=VllmEngine().capabilities(None)) as sampler:
        await sampler.sample(request)


@pytest.mark.slow
async def test_rates_are_differences_of_counters(layout: Layout, sleeper: int):
    """40 tokens in 4 s are 10 tokens/s; before the second look they are unknown."""
    clock = Clock()
    async with running_fake_engine() as engine:
        record(layout, sleeper, engine.url)
        async with Observer(layout, urls=[engine.url], clock=clock) as observer:
            (first, _) = (await observer.look()).servers
            await generate(engine.url, 40)
            clock.now += 4
            (own, foreign) = (await observer.look()).servers
    assert (first.running, first.output_tokens_per_second, first.cpu) == (0, None, None)
    assert (own.name, own.state, own.problem) == ("mine", "ready", None)
    assert own.output_tokens_per_second == 10.0
    assert own.prompt_tokens_per_second is not None
    assert (own.waiting, own.preemptions, own.kv_cache_usage) == (0, 0, 0.0)
    assert (own.processes, own.gpu_bytes) == (1, None)
    assert own.cpu is not None
    assert own.rss_bytes is not None
    assert own.rss_bytes > 1 << 20
    assert foreign.output_tokens_per_second == own.output_tokens_per_second
    assert (foreign.name, foreign.processes, foreign.rss_bytes) == (None, None, None)


async def test_a_server_dies_between_two_looks(layout: Layout):
    """It is failed, with a reason or without figures; no look raises, and a foreign one is told."""
    async with running_fake_engine() as engine:
        record(layout, engine.pid, engine.url)
        async with Observer(layout, urls=[engine.url]) as observer:
            assert [s.state for s in (await observer.look()).servers] == ["ready", "ready"]
            os.kill(engine.pid, 9)
            while identify(engine.pid):
                pass
            (own, foreign) = (await observer.look()).servers
    assert (own.state, own.running, own.processes, own.rss_bytes) == ("failed", None, 0, 0)
    assert (foreign.state, foreign.running) == ("degraded", None)
    assert foreign.problem == "/health does not answer"


@pytest.mark.slow
async def test_a_server_that_starts_again_begins_anew(layout: Layout):
    """Another process at the same address: no rate from two servers' counters."""
    async with Observer(layout, clock=Clock()) as observer:
        async with running_fake_engine() as old:
            record(layout, old.pid, old.url)
            await observer.look()
        async with running_fake_engine("--port", old.url.rpartition(":")[2]) as new:
            assert new.url == old.url
            record(layout, new.pid, new.url)
            (again,) = (await observer.look()).servers
    assert (again.running, again.output_tokens_per_second, again.cpu) == (0, None, None)


def test_a_counter_that_was_reset():
    """A foreign server that was restarted: unknown, never negative."""
    before = Load(running=0, waiting=0, generation_tokens=50, prefix_cache_hits=4)
    after = Load(running=1, waiting=2, generation_tokens=7, prefix_cache_hits=1)
    seen = figures(before, after, seconds=1)
    assert (seen["running"], seen["waiting"]) == (1, 2)
    assert (seen["output_tokens_per_second"], seen["prefix_cache_hits"]) == (None, None)


def test_the_share_of_the_prefix_cache():
    """Of what was looked up since the last look, not since the start."""
    before = Load(running=0, waiting=0, prefix_cache_queries=1000, prefix_cache_hits=0)
    after = Load(running=0, waiting=0, prefix_cache_queries=1200, prefix_cache_hits=50)
    assert figures(before, after, seconds=1)["prefix_cache_hits"] == 0.25
    assert figures(after, after, seconds=1)["prefix_cache_hits"] is None


@pytest.mark.parametrize(
    ("fault", "key", "said"),
    [
        ({"status": 401}, None, "it wants an API key: set ENGINEHOUSE_API_KEY"),
        ({"status": 401}, "wrong", "it refused the key in ENGINEHOUSE_API_KEY"),
        ({"status": 404}, None, "/metrics answered 404"),
    ],
)
async def test_why_the_queue_is_not_known(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fault: dict[str, int], key, said: str
):
    """A guarded /metrics, and a server without one: the server is there all the same."""
    if key:
        monkeypatch.setenv("ENGINEHOUSE_API_KEY", key)
    faults = [{"fault": "status", "path": "/metrics"} | fault]
    async with (
        running_fake_engine(faults=faults) as engine,
        Observer(layout, urls=[engine.url + "/v1/"]) as observer,
    ):
        (server,) = (await observer.look()).servers
    assert (server.state, server.running, server.problem) == ("ready", None, said)


async def test_gpu_memory_is_that_of_the_servers_processes(
    layout: Layout, sleeper: int, monkeypatch: pytest.MonkeyPatch
):
    """Of all that NVML lists only what belongs to the server; a foreign one's is unknown."""
    async with running_fake_engine() as engine:
        record(layout, sleeper, engine.url)
        monkeypatch.setattr(observing, "read_gpus", lambda: (GPU,))
        monkeypatch.setattr(observing, "memory_by_pid", lambda: {sleeper: 3, 1: 4})
        async with Observer(layout, urls=[engine.url]) as observer:
            activity = await observer.look()
    assert activity.gpus == (GPU,)
    assert [server.gpu_bytes for server in activity.servers] == [3, None]


async def test_a_server_that_starts_is_not_asked(layout: Layout, sleeper: int):
    """Its processes are shown; nothing listens yet, and that is no problem."""
    record(layout, sleeper, "http://127.0.0.1:1", state=ServerState.STARTING)
    async with Observer(layout) as observer:
        (server,) = (await observer.look()).servers
    assert isinstance(server, ServerActivity)
    assert (server.state, server.problem, server.processes) == ("starting", None, 1)


@pytest.mark.slow
async def test_an_address_with_a_path(layout: Layout):
    """A server behind a proxy, at http://host/prefix: everything is asked below the prefix."""
    async with running_fake_engine() as server, aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            async with session.get(f"{server.url}/{request.match_info['rest']}") as reply:
                return web.Response(status=reply.status, body=await reply.read())

        application = web.Application()
        application.router.add_get("/team/vllm/{rest:.*}", forward)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            port = runner.addresses[0][1]
            url = f"http://127.0.0.1:{port}/team/vllm"
            async with Observer(layout, urls=[url, f"{url}/v1/"]) as observer:
                for found in (await observer.look()).servers:
                    assert (found.state, found.problem) == (ServerState.READY, None)
                    assert found.running == 0
            async with Observer(layout, urls=[f"http://127.0.0.1:{port}/other"]) as observer:
                (found,) = (await observer.look()).servers
                assert found.state is ServerState.DEGRADED
        finally:
            await runner.cleanup()
