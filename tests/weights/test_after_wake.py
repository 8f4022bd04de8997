"""Adapters of a server that has slept: nobody is answered by the base model in their place."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from tests.support.tiny_adapters import write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import AdapterError, UnknownModelError
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers.endpoint import Server
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.weights.after_wake import prove_adapters_again
from enginehouse.weights.checkpoint import digest_of
from enginehouse.weights.declared import Weights
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.store import AdapterStore
from enginehouse.weights.swap import WeightSwapper

ENGINE = VllmEngine()


class Room:
    """A fake server that can sleep, and the ways to ask it."""

    def __init__(self, server: Server, sampler: HTTPSampler, pool: AdapterPool) -> None:
        self.server = server
        self.sampler = sampler
        self.pool = pool

    async def answer(self, model: str | None = None) -> str:
        """The answer to always the same question, past the pool."""
        request = SampleRequest(
            prompt=TextPrompt("x"), model=model, parameters=SamplingParameters(max_tokens=8)
        )
        return (await self.sampler.sample(request)).completions[0].text

    async def nap(self) -> None:
        """Sleep and wake, by somebody else's hand."""
        async with aiohttp.ClientSession(self.server.base_url) as session:
            for path in ("/sleep?level=1&mode=wait", "/wake_up"):
                async with session.post(path) as reply:
                    assert reply.status == 200


@pytest.fixture
async def room(tmp_path: Path, layout: Layout) -> AsyncIterator[Room]:
    """With the checkpoint `a`, and room for four adapters."""
    a = str(write_checkpoint(tmp_path / "a", seed=1))
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            running_fake_engine("--enable-lora", "--max-loras", "4", model=a)
        )
        server = Server(
            name="tiny",
            base_url=engine.url,
            models=(a,),
            pid=None,
            log=None,
            engine="vllm",
            version=None,
            environment=None,
            command=("vllm", "--enable-sleep-mode"),
            api_key=None,
            owned=True,
        )
        sampler = await stack.enter_async_context(
            HTTPSampler(
                engine.url, capabilities=ENGINE.capabilities(None), wire=ENGINE.wire, model=a
            )
        )
        pool = AdapterPool(sampler, max_loras=4, store=AdapterStore(layout))
        yield Room(server, sampler, pool)


async def test_one_that_was_lost_is_loaded_again(room: Room, tmp_path: Path):
    """The server lists it all the time; it answers as before once it has been looked at."""
    loaded = await room.pool.load("mine", write_adapter(tmp_path / "mine"), prove=True)
    base, before = await room.answer(), await room.answer(loaded.model)
    assert before != base
    await room.nap()
    assert loaded.model in await room.sampler.models()
    assert await room.answer(loaded.model) == base, "the trap that this is about"
    assert await prove_adapters_again(room.server, ENGINE) == ()
    assert await room.answer(loaded.model) == before


async def test_one_that_cannot_be_loaded_is_unloaded(room: Room, tmp_path: Path):
    """Requests for it fail, which somebody notices."""
    loaded = await room.pool.load("mine", write_adapter(tmp_path / "mine"))
    other = await room.pool.load("other", write_adapter(tmp_path / "other", seed=1))
    right = await room.answer(other.model)
    await room.nap()
    shutil.rmtree(loaded.stored.path)
    assert await prove_adapters_again(room.server, ENGINE) == (loaded.model,)
    with pytest.raises(UnknownModelError):
        await room.answer(loaded.model)
    assert await room.answer(other.model) == right


async def test_one_that_was_never_trained_stays(room: Room, tmp_path: Path):
    """It has no effect, and never had."""

    def untrained(tensors):
        for name in tensors:
            if "lora_B" in name:
                tensors[name] *= 0

    loaded = await room.pool.load("new", write_adapter(tmp_path / "new", change=untrained))
    await room.nap()
    assert await prove_adapters_again(room.server, ENGINE) == ()
    assert loaded.model in await room.sampler.models()


async def test_a_swap_that_puts_the_server_to_sleep(room: Room, tmp_path: Path, layout: Layout):
    """Afterwards the adapter answers on the new weights, and on the old ones as before."""
    a, b = tmp_path / "a", write_checkpoint(tmp_path / "b", seed=2)
    loaded = await room.pool.load("mine", write_adapter(tmp_path / "mine"), prove=True)
    first = await room.answer(loaded.model)
    async with WeightSwapper(
        room.server,
        engine=ENGINE,
        started=Weights(path=a, digest=digest_of(a, layout=layout)),
        file=tmp_path / "server" / "weights.json",
        layout=layout,
    ) as swapper:
        assert (await swapper.swap(b)).unloaded == ()
        assert await room.answer(loaded.model) not in (first, await room.answer())
        await swapper.swap(a)
        assert await room.answer(loaded.model) == first
        shutil.rmtree(loaded.stored.path)
        assert (await swapper.swap(b)).unloaded == (loaded.model,)
        assert swapper.current.path == b


async def test_the_pool_proves_what_was_proven_before(room: Room, tmp_path: Path):
    """The caller knows that the server has slept or was started again, and asks for it."""
    loaded = await room.pool.load("mine", write_adapter(tmp_path / "mine"), prove=True)
    before = await room.answer(loaded.model)
    await room.nap()
    await room.pool.restore()
    assert await room.answer(loaded.model) == before
    await room.nap()
    shutil.rmtree(loaded.stored.path)
    with pytest.raises(AdapterError):
        await room.pool.restore()


async def test_one_that_was_not_loaded_is_proven_when_it_comes_in(
    room: Room, tmp_path: Path, layout: Layout
):
    """What the server has lost besides is found before the first request is answered."""
    pool = AdapterPool(room.sampler, max_loras=1, store=AdapterStore(layout))
    await pool.load("mine", write_adapter(tmp_path / "mine"), prove=True)
    await pool.load("other", write_adapter(tmp_path / "other", seed=1), prove=True)
    await pool.restore()
    async with pool.held("mine") as model:
        assert {one.model: one.proven_after for one in pool.adapters()}[model] == 1
    proven = [one.proven_after for one in pool.adapters()]
    async with pool.held("other"), pool.held("other"):
        pass
    assert (proven, [one.proven_after for one in pool.adapters()]) == ([1, 1], [1, 1])


async def test_a_name_stands_for_one_content(room: Room, tmp_path: Path):
    """Engines cache what adapters computed by their names: other content has another name."""
    folder = tmp_path / "mine"
    first = await room.pool.load("mine", write_adapter(folder, seed=1))
    shutil.rmtree(folder)
    second = await room.pool.load("mine", write_adapter(folder, seed=2))
    shutil.rmtree(folder)
    again = await room.pool.load("mine", write_adapter(folder, seed=1))
    assert first.model != second.model
    assert again.model == first.model
    assert again.stored.path == first.stored.path
