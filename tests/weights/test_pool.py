from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress

import aiohttp
import pytest
import pytest_asyncio
from tests.support.leased_ports import leased_port
from tests.support.tiny_adapters import BASE, write_adapter

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    AdapterError,
    ConfigurationError,
    ConnectionFailedError,
    ServerFaultError,
    UnknownModelError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.engines.vllm.wire import VLLM
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.residence import State
from enginehouse.weights.store import AdapterStore

BASE_MODEL = "fake-model"
SLOW = 0.02  # seconds per token


def asking(model: str | None = None, *, text: str = "Say something.", tokens: int = 8):
    """A request."""
    return SampleRequest(
        prompt=TextPrompt(text), model=model, parameters=SamplingParameters(max_tokens=tokens)
    )


class Pooled:
    """A server, its sampler, and a pool over it."""

    def __init__(self, pool: AdapterPool, server: HTTPSampler, handle: FakeEngineHandle) -> None:
        self.pool = pool
        self.server = server
        self.engine = handle

    async def loaded(self) -> set[str]:
        """The adapters that the server lists."""
        return set(await self.server.models()) - {BASE_MODEL}

    async def settled(self, expected: set[str]) -> None:
        """Wait until the server lists these adapters."""
        async with asyncio.timeout(20):
            while await self.loaded() != expected:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.01)

    async def answer(self, model: str | None = None, **options: object) -> str:
        """What a model says."""
        response = await self.pool.sample(asking(model, **options))
        return response.completions[0].text


@asynccontextmanager
async def pooled(
    layout, handle: FakeEngineHandle, *, max_loras: int = 2, max_rank: int | None = None
) -> AsyncIterator[Pooled]:
    """A pool over a running engine, which has no adapters before it and none after it."""
    async with HTTPSampler(
        handle.url,
        capabilities=VllmEngine().capabilities(None),
        wire=VLLM,
        retries=Retries(attempts=1),
    ) as server:
        store = AdapterStore(layout)
        pool = AdapterPool(server, max_loras=max_loras, store=store, base=BASE, max_rank=max_rank)
        made = Pooled(pool, server, handle)
        yield made
        with suppress(ConnectionFailedError, ServerFaultError):
            for name in await made.loaded():
                await server.unload_adapter(name)


def engine(*, port: int = 0, **options: object):
    """An engine that takes adapters."""
    flags = ("--enable-lora", "--disable-uvicorn-access-log", "--port", str(port))
    return running_fake_engine(*flags, **options)


@asynccontextmanager
async def own_pool(layout, *, faults=(), token_latency: float = 0.0, **options: object):
    """A pool over an engine of its own with these faults."""
    async with (
        engine(faults=list(faults), token_latency=token_latency) as handle,
        pooled(layout, handle, **options) as made,
    ):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fast_engine() -> AsyncIterator[FakeEngineHandle]:
    """An engine that takes no time."""
    async with engine() as handle:
        yield handle


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow_engine() -> AsyncIterator[FakeEngineHandle]:
    """An engine that takes its time for each token."""
    async with engine(token_latency=SLOW) as handle:
        yield handle


@pytest.fixture
async def one(layout, fast_engine) -> AsyncIterator[Pooled]:
    """A pool of two places over the fast one."""
    async with pooled(layout, fast_engine) as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until it holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


def in_flight(pool: AdapterPool) -> dict[str, int]:
    """By alias."""
    return {adapter.alias: adapter.held for adapter in pool.adapters()}


class TestAsking:
    """Requests name adapters by alias."""

    async def test_an_adapter_changes_the_answer_and_unloading_ends_it(self, one, tmp_path):
        """The base answers as before, throughout."""
        base = await one.answer()
        loaded = await one.pool.load("mine", write_adapter(tmp_path / "a"))
        assert loaded.model == f"mine@{loaded.stored.digest[:12]}"
        assert await one.loaded() == {loaded.model}
        adapted = await one.answer("mine")
        assert adapted != base
        assert await one.answer(loaded.model) == adapted
        assert await one.answer() == await one.answer(BASE_MODEL) == base
        await one.pool.unload("mine")
        assert await one.loaded() == set()
        assert await one.answer() == base
        assert one.pool.adapters() == ()

    async def test_the_response_says_which_content_answered(self, one, tmp_path):
        """By its digest."""
        loaded = await one.pool.load("mine", write_adapter(tmp_path / "a"))
        response = await one.pool.sample(asking("mine"))
        assert response.model == f"mine@{loaded.stored.digest[:12]}"

    async def test_the_server_lists_the_copy(self, one, tmp_path):
        """Whoever looks there finds content, base and place."""
        loaded = await one.pool.load("mine", write_adapter(tmp_path / "a"))
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{one.engine.url}/v1/models") as reply,
        ):
            card = (await reply.json())["data"][1]
        assert (card["id"], card["parent"]) == (loaded.model, BASE_MODEL)
        assert card["root"] == str(loaded.stored.path)

    async def test_a_stream_holds_its_adapter(self, one, tmp_path):
        """Until its end, or until its consumer leaves."""
        await one.pool.load("mine", write_adapter(tmp_path / "a"))
        whole = await one.answer("mine")
        pieces = []
        async with aclosing(one.pool.stream(asking("mine"))) as deltas:
            async for delta in deltas:
                assert in_flight(one.pool) == {"mine": 1}
                pieces.append(delta.text)
        assert "".join(pieces) == whole
        async with aclosing(one.pool.stream(asking("mine"))) as deltas:
            async for _ in deltas:
                break
        assert in_flight(one.pool) == {"mine": 0}
        base = [delta.text async for delta in one.pool.stream(asking())]
        assert "".join(base) == await one.answer()

    async def test_an_unknown_name(self, one, tmp_path):
        """The error lists the known ones, and the nearest."""
        await one.pool.load("alpha", write_adapter(tmp_path / "a"))
        await one.pool.load("beta", write_adapter(tmp_path / "b", seed=1))
        with pytest.raises(UnknownModelError, match="'alpah'") as caught:
            await one.answer("alpah")
        assert f"did you mean 'alpha'? known: alpha, beta, {BASE_MODEL}" in str(caught.value)
        with pytest.raises(UnknownModelError, match="alpha, beta"):
            await one.pool.unload("gamma")

    async def test_tokens_and_capabilities_are_the_server_s(self, one):
        """The pool adds nothing there."""
        assert await one.pool.tokenize("a b") == await one.server.tokenize("a b")
        assert one.pool.capabilities == one.server.capabilities

    @pytest.mark.parametrize("alias", ["", "a@b", "a+b", "-a", "a b", BASE_MODEL])
    async def test_aliases_that_would_confuse(self, one, tmp_path, alias):
        """Names that join names, and the base's own."""
        with pytest.raises(ConfigurationError):
            await one.pool.load(alias, write_adapter(tmp_path / "a"))


class TestContent:
    """An alias stands for one content, and never for an older one."""

    async def test_overwritten_in_place_and_loaded_again(self, one, tmp_path):
        """The same alias, the same folder: the answer is the new content's."""
        folder = write_adapter(tmp_path / "a")
        first = await one.pool.load("mine", folder)
        before = await one.answer("mine")
        write_adapter(folder, seed=1)
        assert await one.answer("mine") == before, "the copy is what was loaded"
        second = await one.pool.load("mine", folder)
        assert second.model != first.model
        assert second.stored.path != first.stored.path
        after = await one.answer("mine")
        assert after != before
        await one.settled({second.model})
        # what an engine's caches know of it is new: the answer is that of one who had no past
        await one.pool.load("fresh", folder)
        assert await one.answer("fresh") == after

    async def test_back_to_the_first_content(self, one, tmp_path):
        """Two contents in turn, each time with their own answer."""
        folders = [write_adapter(tmp_path / str(seed), seed=seed) for seed in range(2)]
        answers: list[set[str]] = [set(), set()]
        for turn in range(6):
            await one.pool.load("mine", folders[turn % 2])
            answers[turn % 2].add(await one.answer("mine"))
        assert [len(found) for found in answers] == [1, 1]
        assert answers[0] != answers[1]

    async def test_requests_under_way_are_answered_by_what_they_asked_for(
        self, layout, slow_engine, tmp_path
    ):
        """Also where there is one place only; later ones get the new content."""
        async with pooled(layout, slow_engine, max_loras=1) as made:
            folder = write_adapter(tmp_path / "a")
            first = await made.pool.load("mine", folder)
            asked = asyncio.create_task(made.pool.sample(asking("mine")))
            await until(lambda: in_flight(made.pool) == {"mine": 1})
            write_adapter(folder, seed=1)
            second = await made.pool.load("mine", folder)
            assert asked.done()
            assert (await asked).model == first.model
            assert (await made.pool.sample(asking("mine"))).model == second.model

    async def test_the_same_content_again_is_not_loaded_again(self, one, tmp_path):
        """Not even under the eyes of the server, which would refuse it."""
        folder = write_adapter(tmp_path / "a")
        first = await one.pool.load("mine", folder)
        assert await one.pool.load("mine", folder) == first
        assert await one.loaded() == {first.model}

    async def test_two_aliases_of_one_content(self, one, tmp_path):
        """Each lives its own life."""
        folder = write_adapter(tmp_path / "a")
        for alias in ("one", "two"):
            await one.pool.load(alias, folder)
        assert await one.answer("one") == await one.answer("two")
        await one.pool.unload("one")
        assert await one.answer("two")

    async def test_two_loads_of_one_alias_at_once(self, one, tmp_path):
        """They are done in order: the last one's content is what the alias stands for."""
        folders = [write_adapter(tmp_path / str(seed), seed=seed) for seed in range(2)]
        loaded = await asyncio.gather(*(one.pool.load("mine", folder) for folder in folders))
        assert (await one.pool.sample(asking("mine"))).model == loaded[1].model
        await one.settled({loaded[1].model})

    async def test_the_same_load_twice_at_once(self, one, tmp_path):
        """One adapter comes of it."""
        folder = write_adapter(tmp_path / "a")
        first, second = await asyncio.gather(*(one.pool.load("mine", folder) for _ in range(2)))
        assert first == second
        assert await one.loaded() == {first.model}

    async def test_a_new_pool_finds_what_another_process_has_loaded(self, one, layout, tmp_path):
        """The server says that it is there already: that is as good."""
        folder = write_adapter(tmp_path / "a")
        first = await one.pool.load("mine", folder)
        again = AdapterPool(one.server, max_loras=2, store=AdapterStore(layout))
        assert (await again.load("mine", folder)).model == first.model

    async def test_one_that_somebody_else_has_unloaded(self, one, tmp_path):
        """It is loaded again when it is asked for, and may be unloaded when it is gone."""
        first = await one.pool.load("mine", write_adapter(tmp_path / "a"))
        before = await one.answer("mine")
        await one.server.unload_adapter(first.model)
        assert await one.answer("mine") == before
        await one.server.unload_adapter(first.model)
        async with aclosing(one.pool.stream(asking("mine"))) as deltas:
            assert "".join([delta.text async for delta in deltas]) == before
        await one.server.unload_adapter(first.model)
        await one.pool.unload("mine")


class TestRefused:
    """What is refused changes nothing."""

    async def test_before_the_server_sees_it(self, one, tmp_path):
        """A wrong adapter under a known alias leaves the right one in place."""
        await one.pool.load("mine", write_adapter(tmp_path / "a"))
        before = await one.answer("mine")
        wrong = write_adapter(tmp_path / "b", change=lambda made: made.popitem())
        for alias in ("mine", "new"):
            with pytest.raises(AdapterError, match="incomplete"):
                await one.pool.load(alias, wrong)
        assert await one.answer("mine") == before
        assert [adapter.alias for adapter in one.pool.adapters()] == ["mine"]

    async def test_the_rank_of_the_server(self, layout, fast_engine, tmp_path):
        """The pool knows it."""
        async with pooled(layout, fast_engine, max_rank=2) as made:
            with pytest.raises(AdapterError, match="rank 4"):
                await made.pool.load("mine", write_adapter(tmp_path / "a"))

    @pytest.mark.slow
    @pytest.mark.parametrize("status", [400, 500])
    async def test_the_server_refuses(self, layout, tmp_path, status):
        """The alias stands for what it did, and still works; the next attempt succeeds."""
        refusal = {"fault": "status", "status": status, "message": "no room for new"}
        refusal |= {"path": "/v1/load_lora_adapter", "nth": [2]}
        async with own_pool(layout, faults=[refusal]) as made:
            folder = write_adapter(tmp_path / "a")
            first = await made.pool.load("mine", folder)
            write_adapter(folder, seed=1)
            with pytest.raises(AdapterError) as caught:
                await made.pool.load("mine", folder)
            assert made.engine.url in caught.value.message
            assert "no room for new" in str(caught.value.why)
            assert await made.loaded() == {first.model}
            models = {(await made.pool.sample(asking("mine"))).model for _ in range(4)}
            assert models == {first.model}
            second = await made.pool.load("mine", folder)
            await made.settled({second.model})

    @pytest.mark.slow
    async def test_the_server_is_gone(self, layout, tmp_path):
        """The error says that it cannot be reached, and the alias is unknown."""
        async with own_pool(layout) as made:
            os.kill(made.engine.pid, signal.SIGKILL)
            with pytest.raises(ConnectionFailedError):
                await made.pool.load("mine", write_adapter(tmp_path / "a"))
            assert made.pool.adapters() == ()

    async def test_a_request_for_one_that_cannot_be_loaded(self, layout, tmp_path):
        """Everyone who waits is told; the next attempt may succeed."""
        refusal = {"fault": "status", "status": 400, "path": "/v1/load_lora_adapter", "nth": [3]}
        async with own_pool(layout, faults=[refusal], max_loras=1) as made:
            await made.pool.load("mine", write_adapter(tmp_path / "a"))
            await made.pool.load("other", write_adapter(tmp_path / "b", seed=1))
            outcomes = await asyncio.gather(
                *(made.answer("mine") for _ in range(3)), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [AdapterError] * 3
            assert in_flight(made.pool) == {"mine": 0, "other": 0}
            assert await made.answer("mine")

    async def test_a_server_that_refuses_to_unload(self, layout, tmp_path):
        """The alias is gone, and whoever unloaded it knows what is left."""
        refusal = {"fault": "status", "status": 500, "path": "/v1/unload_lora_adapter"}
        async with own_pool(layout, faults=[refusal]) as made:
            await made.pool.load("mine", write_adapter(tmp_path / "a"))
            with pytest.raises(AdapterError, match="still"):
                await made.pool.unload("mine")
            with pytest.raises(UnknownModelError):
                await made.answer("mine")

    async def test_no_places(self, one, layout):
        """A pool without any could load nothing."""
        with pytest.raises(ConfigurationError, match="at least 1"):
            AdapterPool(one.server, max_loras=0, store=AdapterStore(layout))


class TestProof:
    """A load may be asked to prove its effect."""

    async def test_the_effect_is_reported(self, one, tmp_path):
        """And stays known as long as the adapter is."""
        loaded = await one.pool.load("mine", write_adapter(tmp_path / "a"), prove=True)
        assert loaded.effect is not None
        assert loaded.effect.mean_difference > 0.1
        assert loaded.effect.noise == 0
        assert one.pool.adapters() == (loaded,)

    async def test_one_without_effect_is_unloaded(self, one, tmp_path, monkeypatch):
        """The alias stands for what it did before."""
        folder = write_adapter(tmp_path / "a")
        first = await one.pool.load("mine", folder)

        async def unproved(*_: object, **__: object) -> None:
            raise AdapterError("no effect")

        monkeypatch.setattr("enginehouse.weights.loading.prove_effect", unproved)
        write_adapter(folder, seed=1)
        with pytest.raises(AdapterError, match="no effect"):
            await one.pool.load("mine", folder, prove=True)
        assert await one.loaded() == {first.model}
        assert (await one.pool.sample(asking("mine"))).model == first.model


class TestPlaces:
    """At most max_loras, and never one in flight the less."""

    async def test_the_least_recently_used_idle_one_goes(self, one, tmp_path):
        """Two places, three adapters."""
        for seed, alias in enumerate("abc"):
            await one.pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
        for alias in ("a", "b", "a", "c"):
            await one.answer(alias)
        assert {name[0] for name in await one.loaded()} == {"a", "c"}

    @pytest.mark.slow
    async def test_one_in_flight_is_never_evicted(self, layout, slow_engine, tmp_path):
        """A slow request holds it though two others come and go; it is answered rightly."""
        async with pooled(layout, slow_engine) as made:
            for seed, alias in enumerate("abc"):
                await made.pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
            expected = await made.answer("a", tokens=64)
            slow = asyncio.create_task(made.answer("a", tokens=64))
            await until(lambda: in_flight(made.pool)["a"] == 1)
            for alias in "bcb":
                await made.answer(alias, tokens=1)
                assert not slow.done()
                assert "a" in {name[0] for name in await made.loaded()}
            assert await slow == expected

    async def test_where_all_are_in_flight_the_next_one_waits(self, layout, slow_engine, tmp_path):
        """And is loaded when one of them has ended."""
        async with pooled(layout, slow_engine, max_loras=1) as made:
            for seed, alias in enumerate("ab"):
                await made.pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
            first = asyncio.create_task(made.answer("a", tokens=16))
            await until(lambda: in_flight(made.pool)["a"] == 1)
            second = asyncio.create_task(made.answer("b", tokens=1))
            await until(lambda: made.pool.adapters()[1].waiting)
            assert {name[0] for name in await made.loaded()} == {"a"}
            await asyncio.gather(first, second)
            assert {name[0] for name in await made.loaded()} == {"b"}

    async def test_the_base_model_waits_for_nobody(self, layout, slow_engine, tmp_path):
        """It has no place."""
        async with pooled(layout, slow_engine, max_loras=1) as made:
            await made.pool.load("a", write_adapter(tmp_path / "a"))
            slow = asyncio.create_task(made.answer("a", tokens=64))
            await until(lambda: in_flight(made.pool)["a"] == 1)
            await made.answer(tokens=1)
            assert not slow.done()
            await slow

    async def test_cancelled_and_failed_requests_hold_nothing(self, layout, tmp_path):
        """Whatever ends a request, its adapter may be evicted after that."""
        refusal = {"fault": "status", "status": 400, "match": "refuse"}
        async with own_pool(layout, max_loras=1, token_latency=SLOW, faults=[refusal]) as made:
            for seed, alias in enumerate("ab"):
                await made.pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
            slow = [asyncio.create_task(made.answer("a", tokens=1000)) for _ in range(3)]
            await until(lambda: in_flight(made.pool)["a"] == 3)
            slow[0].cancel()
            await asyncio.gather(slow[0], return_exceptions=True)
            assert in_flight(made.pool)["a"] == 2
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            outcomes = await asyncio.gather(
                *(made.answer("a", text="refuse") for _ in range(3)), return_exceptions=True
            )
            assert all(isinstance(outcome, Exception) for outcome in outcomes)
            assert in_flight(made.pool) == {"a": 0, "b": 0}
            assert await made.answer("b", tokens=1)

    @pytest.mark.slow
    async def test_a_cancelled_load_leaves_the_pool_as_it_was(self, layout, tmp_path):
        """What it was loading goes again, and the alias is unknown."""
        hang = {"fault": "hang", "seconds": 0.2, "path": "/v1/load_lora_adapter", "first": 1}
        async with own_pool(layout, faults=[hang]) as made:
            loading = asyncio.create_task(made.pool.load("a", write_adapter(tmp_path / "a")))
            await until(lambda: len(made.pool._entries) == 1)
            await until(lambda: len(made.pool._residence._inside) == 1)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            assert made.pool.adapters() == ()
            await until(lambda: not made.pool._entries)
            assert await made.loaded() == set()

    async def test_unloading_waits_for_what_is_under_way(self, layout, slow_engine, tmp_path):
        """What was asked is answered; what comes after is refused."""
        async with pooled(layout, slow_engine) as made:
            await made.pool.load("a", write_adapter(tmp_path / "a"))
            asked = asyncio.create_task(made.answer("a"))
            await until(lambda: in_flight(made.pool)["a"] == 1)
            unloading = asyncio.create_task(made.pool.unload("a"))
            await until(lambda: not made.pool.adapters())
            with pytest.raises(UnknownModelError):
                await made.answer("a")
            assert not asked.done()
            await unloading
            assert asked.done()
            assert await made.loaded() == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapters", "requests"), [(9, 90), pytest.param(50, 400, marks=pytest.mark.soak)]
)
async def test_more_adapters_than_places(layout, tmp_path, adapters, requests):
    """Under 32 requests at a time every answer is from the right adapter.

    No more than four are ever loaded.
    """
    aliases = [f"adapter-{number}" for number in range(adapters)]
    async with own_pool(layout, max_loras=4, token_latency=0.002) as made:
        for number, alias in enumerate(aliases):
            await made.pool.load(alias, write_adapter(tmp_path / alias, seed=number))
        expected = {alias: await made.answer(alias) for alias in aliases}
        assert len(set(expected.values())) == adapters
        gate = asyncio.Semaphore(32)
        wrong, most = [], 0

        async def ask(number: int) -> None:
            nonlocal most
            alias = aliases[number * 7 % adapters]
            async with gate:
                if await made.answer(alias) != expected[alias]:
                    wrong.append(alias)
                most = max(most, sum(adapter.state is State.IN for adapter in made.pool.adapters()))

        async with asyncio.timeout(120):
            await asyncio.gather(*(ask(number) for number in range(requests)))
        assert wrong == []
        assert most <= 4
        assert len(await made.loaded()) <= 4
        assert Counter(in_flight(made.pool).values()) == {0: adapters}


@pytest.mark.slow
class TestRestarted:
    """A server that was started again has no adapters."""

    @asynccontextmanager
    async def restarted(self, layout, tmp_path) -> AsyncIterator[tuple[Pooled, dict[str, str]]]:
        """A pool whose server has been started again, and what its adapters said before."""
        async with AsyncExitStack() as stack:
            port = stack.enter_context(leased_port())
            first = await stack.enter_async_context(AsyncExitStack())
            handle = await first.enter_async_context(engine(port=port))
            sampler = HTTPSampler(
                handle.url, capabilities=VllmEngine().capabilities(None), wire=VLLM
            )
            await stack.enter_async_context(sampler)
            pool = AdapterPool(sampler, max_loras=2, store=AdapterStore(layout))
            made = Pooled(pool, sampler, handle)
            answers = {}
            for seed, alias in enumerate("ab"):
                await pool.load(alias, write_adapter(tmp_path / alias, seed=seed))
                answers[alias] = await made.answer(alias)
            await first.aclose()
            await stack.enter_async_context(engine(port=port))
            assert await made.loaded() == set()
            yield made, answers

    async def test_what_was_loaded_is_loaded_again(self, layout, tmp_path):
        """Before anybody asks; a second time there is nothing to do."""
        async with self.restarted(layout, tmp_path) as (made, answers):
            await made.pool.restore()
            assert {name[0] for name in await made.loaded()} == {"a", "b"}
            await made.pool.restore()
            for alias, expected in answers.items():
                assert await made.answer(alias) == expected

    async def test_where_nobody_says_that_it_was(self, layout, tmp_path):
        """Those who ask find out, all at once, and are answered."""
        async with self.restarted(layout, tmp_path) as (made, answers):
            given = await asyncio.gather(*(made.answer("ab"[n % 2]) for n in range(8)))
            assert given == [answers["ab"[n % 2]] for n in range(8)]

    async def test_what_cannot_be_loaded_any_more(self, layout, tmp_path):
        """The copy is gone: the error names the adapter and the server."""
        async with self.restarted(layout, tmp_path) as (made, _):
            for adapter in made.pool.adapters():
                (adapter.stored.path / "adapter_config.json").unlink()
            with pytest.raises(AdapterError, match="refused"):
                await made.pool.restore()


class TestRequestsBesideThePool:
    """Some are sent by others, who have the pool hold the adapter meanwhile."""

    async def test_it_is_held_for_the_block(self, one, tmp_path):
        """The model that requests name is given; what is idle still makes room."""
        await one.pool.load("mine", write_adapter(tmp_path / "a"))
        async with one.pool.held("mine") as model:
            response = await one.server.sample(asking(model))
            assert response.model == model
            (held,) = one.pool.adapters()
            assert held.held == 1
        assert held.held == 0

    async def test_it_comes_back_in(self, one, tmp_path):
        """One that had to go is loaded again."""
        for alias in ("a", "b"):
            await one.pool.load(alias, write_adapter(tmp_path / alias, seed=ord(alias)))
        async with one.pool.held("a") as model:
            assert model in await one.loaded()

    async def test_an_unknown_alias(self, one):
        """It is named."""
        with pytest.raises(UnknownModelError, match="'mine'"):
            async with one.pool.held("mine"):
                pass

    async def test_proven_later(self, one, tmp_path):
        """The effect is remembered, so that it is proven again after a restart."""
        loaded = await one.pool.load("mine", write_adapter(tmp_path / "a"))
        assert loaded.effect is None
        effect = await one.pool.prove("mine")
        assert effect.mean_difference > 0.1
        assert loaded.effect is effect
