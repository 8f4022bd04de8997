from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from filelock import FileLock
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse import SampleRequest, SampleResponse, SamplingParameters, TextPrompt
from enginehouse.client.sampler import HTTPSampler
from enginehouse.commands.serve import serve_until_stopped
from enginehouse.core.errors import (
    ModelError,
    ServerGoneError,
    UnknownNameError,
    WeightsError,
    WireError,
)
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.deployment.running_servers import canonical_address
from enginehouse.deployment.swapping import swapper_of, weights_info
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.servers.records import list_servers, weights_file
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.weights.checkpoint import digest_of

ASKED = SampleRequest(
    prompt=TextPrompt("x"), parameters=SamplingParameters(max_tokens=8, ignore_eos=True)
)


@pytest.fixture
def layout(house: House) -> Layout:
    """The machine's."""
    return Layout.from_environment()


@pytest.fixture
def served(house: House, tmp_path: Path, layout: Layout):
    """Serve checkpoint `a` with these faults, whose counts outlive the process."""

    def make(*faults: dict, **settings: object):
        env = {
            "VLLM_FAKE_FAULTS": json.dumps(list(faults)),
            "VLLM_FAKE_STATE": str(tmp_path / "counts"),
        }
        server = {"env_vars": env, "enable_weight_swap": True} | settings
        values = {"model": str(tmp_path / "a"), "server": server}
        return parse(ServeConfig, values, origin="test")

    write_checkpoint(tmp_path / "a", seed=1)
    write_checkpoint(tmp_path / "b", seed=2)
    return make


async def ask(ready: Deployment) -> SampleResponse:
    """One answer."""
    return await ready.sampler.sample(ASKED)


async def asked_past_us(url: str, model: str) -> str:
    """What the server answers somebody else."""
    body = {"model": model, "prompt": "x", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
    path = "/v1/completions"
    async with aiohttp.ClientSession(url) as session, session.post(path, json=body) as reply:
        return (await reply.json())["choices"][0]["text"]


async def until(condition) -> None:
    """Wait for a condition, at most half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes bring it about
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_restart_after_a_swap_brings_the_new_weights(served, layout, tmp_path):
    """Requests wait for them; every sample says which weights answered."""
    incidents: list = []
    config = served()
    async with opened(config, layout=layout, incidents=incidents) as ready:
        old = await ask(ready)
        assert old.weights_digest == ready.provenance.weights_digest
        assert ready.weights is not None
        await ready.weights.swap(tmp_path / "b")
        new = await ask(ready)
        assert new.weights_digest == digest_of(tmp_path / "b", layout=layout)
        assert new.completions != old.completions
        for deaths in (1, 2):
            os.kill(ready.server.pid, signal.SIGKILL)
            await until(lambda deaths=deaths: len(incidents) == deaths)
            again = await ask(ready)
            assert again.completions == new.completions
            assert again.weights_digest == new.weights_digest
        await ready.weights.swap(tmp_path / "a")
        assert (await ask(ready)).completions == old.completions


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"])
async def test_killed_during_a_swap(served, layout, tmp_path, path):
    """The old weights come back, by the restart; who asks meanwhile is answered by them."""
    die = {"fault": "die", "path": path, "nth": [1], "signal": signal.SIGKILL}
    async with opened(served(die), layout=layout) as ready:
        old, pid = await ask(ready), ready.server.pid
        swap = asyncio.create_task(ready.weights.swap(tmp_path / "b"))
        await asyncio.sleep(0)
        meanwhile = asyncio.create_task(ask(ready))
        with pytest.raises(WeightsError) as caught:
            await swap
        assert "started again with the old ones" in caught.value.message
        answers = [await meanwhile, await ask(ready)]
        assert [a.completions for a in answers] == [old.completions] * 2
        assert {a.weights_digest for a in answers} == {old.weights_digest}
        assert ready.server.pid != pid
        await ready.weights.swap(tmp_path / "b")
        assert (await ask(ready)).completions != old.completions


@pytest.mark.slow
async def test_killed_while_it_is_restored(served, layout, tmp_path):
    """A death during the restoration is one more restart; then the declared weights are there."""
    die = {"fault": "die", "path": "/collective_rpc", "nth": [2], "signal": signal.SIGKILL}
    incidents: list = []
    async with opened(served(die), layout=layout, incidents=incidents) as ready:
        await ready.weights.swap(tmp_path / "b")
        new = await ask(ready)
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: incidents)
        assert (await ask(ready)).completions == new.completions
    assert len(incidents) == 2


@pytest.mark.slow
async def test_a_reload_that_hangs_for_good_ends_in_a_restart(served, layout, tmp_path):
    """The engine cannot take the old weights back, so it is started again with them."""
    hang = {"fault": "hang", "path": "/collective_rpc", "nth": [1, 2]}
    async with opened(served(hang), layout=layout) as ready:
        old, pid = await ask(ready), ready.server.pid
        with pytest.raises(WeightsError, match="started again"):
            await ready.weights.swap(tmp_path / "b", deadline=0.5)
        assert (await ask(ready)).completions == old.completions
        assert ready.server.pid != pid


@pytest.mark.slow
async def test_a_swap_while_the_server_is_started_again(served, layout, tmp_path):
    """It waits for the restart as requests do; what restores goes past the layers that wait."""
    incidents: list = []
    async with opened(served(), layout=layout, incidents=incidents) as ready:
        restored: list[tuple[str, ...]] = []

        async def restore(direct: HTTPSampler) -> None:
            restored.append(await direct.models())

        ready.after_restart(restore)
        old = await ask(ready)
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: incidents)
        waiting = asyncio.create_task(ask(ready))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await ready.weights.swap(tmp_path / "b")
            assert (await waiting).completions == old.completions
            assert (await ask(ready)).completions != old.completions
        assert len(restored) == 1


@pytest.mark.slow
async def test_declared_weights_that_are_gone_end_the_server(served, layout, tmp_path):
    """It never answers with others; whoever asks is told why."""
    incidents: list = []
    config = served().model_copy(update={"max_restarts": 1})
    async with opened(config, layout=layout, incidents=incidents) as ready:
        await ready.weights.swap(tmp_path / "b")
        write_checkpoint(tmp_path / "b", seed=7)
        os.kill(ready.server.pid, signal.SIGKILL)
        await until(lambda: len(incidents) == 2)
        with pytest.raises(ServerGoneError, match="not with") as caught:
            await ask(ready)
        assert "no longer holds" in caught.value.why


async def until_it(look, expected: object, **first: object) -> None:
    """Wait until a look gives what is expected, having given `first` before."""
    async with asyncio.timeout(30):
        for wanted in (*first.values(), expected):
            while await look() != wanted:  # noqa: ASYNC110 - other processes bring it about
                await asyncio.sleep(0.02)


@asynccontextmanager
async def kept(config: ServeConfig, layout: Layout) -> AsyncIterator[Server]:
    """What `enginehouse serve --name mine` does."""
    found: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
    work = serve_until_stopped(config, Context(layout=layout), name="mine", ready=found.set_result)
    task = asyncio.create_task(work)
    try:
        yield await found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def named(layout: Layout) -> str | None:
    """What the server calls its weights; None while it does not answer."""
    try:
        return (await weights_info("mine", layout=layout)).named
    except WireError:
        return None


@pytest.mark.slow
async def test_a_server_of_another_process(served, layout, tmp_path):
    """`serve` restores what was swapped in past it; a new server of that name starts anew."""
    async with kept(served(), layout) as server:
        model = server.models[0]
        old = await asked_past_us(server.base_url, model)
        url = server.base_url.replace("127.0.0.1", "localhost")
        async with swapper_of(url, layout=layout) as swapper:
            await swapper.swap(tmp_path / "b")
        assert (await weights_info("mine", layout=layout)).agrees
        new = await asked_past_us(server.base_url, model)
        assert new != old
        by_url = await weights_info(server.base_url + "/v1", layout=layout)
        assert (by_url.path, by_url.version, by_url.agrees) == (tmp_path / "b", 1, True)
        (status,) = list_servers(layout)
        os.kill(status.record.process.pid, signal.SIGKILL)
        await until_it(lambda: named(layout), by_url.named, first=None)
        await until_it(lambda: asked_past_us(server.base_url, model), new)
    assert weights_file(layout, "mine").exists()
    async with kept(served(), layout):
        info = await weights_info("mine", layout=layout)
        assert (info.path, info.version) == (tmp_path / "a", 0)


@pytest.mark.slow
async def test_an_evaluation_keeps_its_weights(served, layout, tmp_path):
    """Nobody swaps past a process that serves for itself: its samples name their weights."""
    async with opened(served(), layout=layout) as ready:
        async with swapper_of(ready.server.name, layout=layout) as swapper:
            with pytest.raises(WeightsError, match="another caller"):
                await swapper.swap(tmp_path / "b")
        info = await weights_info(ready.server.name, layout=layout)
        assert (info.path, info.version, info.named) == (tmp_path / "a", 0, "default")
        for url in (ready.url, ready.url.replace("127.0.0.1", "localhost")):
            async with swapper_of(url, layout=layout) as swapper:
                with pytest.raises(WeightsError, match="another caller"):
                    await swapper.swap(tmp_path / "b")


@pytest.mark.slow
async def test_a_server_that_cannot_swap(served, layout):
    """Started without the option, it has no development endpoints: the error says which option."""
    config = served(enable_weight_swap=False)
    async with opened(config, layout=layout) as ready:
        assert ready.weights is None
        assert (await ask(ready)).weights_digest is None
        for target in (ready.server.name, ready.url):
            with pytest.raises(WeightsError) as caught:
                async with swapper_of(target, layout=layout):
                    pytest.fail("it has none")
            assert caught.value.kind == "unsupported"
            assert "--enable-weight-swap" in caught.value.fix


@pytest.mark.slow
async def test_a_server_that_others_can_reach(served, layout, tmp_path):
    """Its weights are swapped by its owner alone: others have the API key, not the other one."""
    config = served(host="0.0.0.0", api_key="k")
    async with opened(config, layout=layout) as ready:
        await ready.weights.swap(tmp_path / "b")
        async with aiohttp.ClientSession(ready.url) as session:
            for key, status in (("k", 401), (ready.server.admin_key, 200)):
                headers = {"Authorization": f"Bearer {key}"}
                async with session.get("/weight_info", headers=headers) as reply:
                    assert reply.status == status


async def test_a_server_that_is_not_ours(layout, tmp_path):
    """By its address; what was swapped in is remembered, until it is another server."""
    a = write_checkpoint(tmp_path / "a", seed=1)
    b = write_checkpoint(tmp_path / "b", seed=2)
    async with running_fake_engine(model=str(a)) as engine:
        async with swapper_of(engine.url, layout=layout) as swapper:
            await swapper.swap(b)
        info = await weights_info(engine.url, layout=layout)
        assert (info.path, info.version, info.agrees) == (b, 1, True)
        async with swapper_of(engine.url, layout=layout) as swapper:
            assert (await swapper.swap(a)).before.path == b
        body = {"new_version": "default"}  # as after a restart
        async with aiohttp.ClientSession(engine.url) as session:
            await (await session.post("/update_weight_version", json=body)).read()
            info = await weights_info(engine.url, layout=layout)
            assert (info.path, info.version) == (a, 0)
            body = {"new_version": "step-7"}
            await (await session.post("/update_weight_version", json=body)).read()
        with pytest.raises(WeightsError, match="not known"):
            async with swapper_of(engine.url, layout=layout):
                pytest.fail("unknown weights cannot be put back")


async def test_a_look_changes_nothing(layout, tmp_path):
    """While the first swap is under way, the server has no name yet; its declaration stays."""
    a, b = (write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    async with running_fake_engine(model=str(a)) as engine:
        async with swapper_of(engine.url, layout=layout) as swapper:
            await swapper.swap(b)
            async with aiohttp.ClientSession(engine.url) as session:
                body = {"new_version": "default"}
                await (await session.post("/update_weight_version", json=body)).read()
            declared = list(layout.weights.glob("*.json"))
            assert (await weights_info(engine.url, layout=layout)).path == a
            assert list(layout.weights.glob("*.json")) == declared
            with FileLock(declared[0].with_suffix(".lock")):  # as while a swap is under way
                async with swapper_of(engine.url, layout=layout):
                    assert list(layout.weights.glob("*.json")) == declared
        async with swapper_of(engine.url, layout=layout) as swapper:
            assert swapper.current.path == a
        assert list(layout.weights.glob("*.json")) == []


async def test_a_first_swap_that_failed_can_be_tried_again(layout, tmp_path):
    """Taken back, the server calls its weights those that it was started with."""
    a, b = (write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    fault = {"fault": "status", "path": "/collective_rpc", "status": 500, "nth": [1]}
    async with running_fake_engine(model=str(a), faults=[fault]) as engine:
        with pytest.raises(WeightsError, match="old ones"):
            async with swapper_of(engine.url, layout=layout) as swapper:
                await swapper.swap(b)
        info = await weights_info(engine.url, layout=layout)
        assert (info.path, info.version, info.agrees) == (a, 0, True)
        async with swapper_of(engine.url, layout=layout) as swapper:
            assert (await swapper.swap(b)).after.path == b


async def test_every_spelling_of_an_address(layout, tmp_path):
    """A server that is not ours is the same one by any of them."""
    a, b = (write_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    async with running_fake_engine(model=str(a)) as engine:
        async with swapper_of(engine.url, layout=layout) as swapper:
            await swapper.swap(b)
        for host in ("localhost", "0.0.0.0"):
            url = engine.url.replace("127.0.0.1", host)
            info = await weights_info(f"{url}/v1/", layout=layout)
            assert (info.path, info.version, info.agrees) == (b, 1, True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://localhost:8000", "http://127.0.0.1:8000/v1/", True),
        ("http://LOCALHOST:8000", "http://[::1]:8000", True),
        ("http://0.0.0.0:80", "http://localhost", True),
        ("http://localhost:8000", "http://localhost:8001", False),
        ("http://localhost:8000", "https://localhost:8000", False),
        ("http://localhost:8000/a", "http://127.0.0.1:8000/b", False),
        ("http://node1:8000", "http://127.0.0.1:8000", False),
    ],
)
def test_which_addresses_are_one(one, other, same):
    """Those of this machine, as far as the port is the same."""
    assert (canonical_address(one) == canonical_address(other)) is same


async def test_a_checkpoint_elsewhere(layout):
    """A server whose files we do not see cannot be swapped from here."""
    async with running_fake_engine(model="owner/name") as engine:
        with pytest.raises(WeightsError, match="this machine") as caught:
            await weights_info(engine.url, layout=layout)
    assert "'owner/name'" in caught.value.why


async def test_there_is_no_such_server(layout):
    """The known ones are listed."""
    with pytest.raises(UnknownNameError, match="'nobody'"):
        await weights_info("nobody", layout=layout)


async def test_a_started_folder_that_is_no_checkpoint_any_more(layout, tmp_path):
    """Said of the folder."""
    a = write_checkpoint(tmp_path / "a")
    async with running_fake_engine(model=str(a)) as engine:
        (a / "config.json").unlink()
        with pytest.raises(ModelError, match=re.escape(str(a))):
            await weights_info(engine.url, layout=layout)
