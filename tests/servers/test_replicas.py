from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing

import pytest

from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ServerFaultError,
    ServerGoneError,
)
from enginehouse.core.messages import TextPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.servers.replicas import AVOIDED, ReplicaSet
from enginehouse.testing.fake_engine import running_fake_engine


class Scripted:
    """A server that answers when it is let, or fails; it counts what it is asked."""

    def __init__(self, name: str, *, most_logprobs: int | None = None, **ignored: str) -> None:
        self.name = name
        self.capabilities = Capabilities(
            supports=frozenset(Capability) - {Capability(name) for name in ignored},
            ignored=ignored,
            most_logprobs=most_logprobs,
        )
        self.asked: list[str | None] = []
        self.error: Exception | None = None
        self.breaks_after: int | None = None
        self.closed = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """The server's name."""
        self.asked.append(request.model)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return SampleResponse(
            completions=(Completion(text=self.name, finish_reason="stop"),),
            model=request.model or "base",
            request_id="1",
            prompt_tokens=1,
            completion_tokens=1,
            timing=Timing(started=0.0, elapsed=0.0),
        )

    async def stream(self, request: SampleRequest):
        """Three pieces of the name; the error comes before the one that it is set to."""
        self.asked.append(request.model)
        try:
            for number in range(3):
                if self.error is not None and number == (self.breaks_after or 0):
                    raise self.error
                yield Delta(text=self.name)
        finally:
            self.closed += 1

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """One token."""
        if self.error is not None:
            raise self.error
        return (len(text),)


def asking(model: str | None = None) -> SampleRequest:
    """A request."""
    return SampleRequest(prompt=TextPrompt("x"), model=model)


@pytest.fixture
def servers() -> list[Scripted]:
    """Three of them."""
    return [Scripted(name) for name in "abc"]


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)


async def until_asked(servers: list[Scripted], count: int) -> None:
    """Wait for so many requests in all."""
    await until(lambda: sum(len(server.asked) for server in servers) >= count)


async def test_the_least_busy_one_is_asked(servers):
    """Requests under way are spread evenly, whatever model they are for."""
    replicas = ReplicaSet(servers)
    for server in servers:
        server.go_on.clear()
    async with asyncio.TaskGroup() as group:
        for number in range(9):
            group.create_task(replicas.sample(asking(f"m{number % 2}")))
        await until_asked(servers, 9)
        assert replicas.outstanding == (3, 3, 3)
        servers[1].go_on.set()
        await until(lambda: replicas.outstanding[1] == 0)
        group.create_task(replicas.sample(asking()))
        await until_asked(servers, 10)
        assert servers[1].asked[-1] is None
        for server in servers:
            server.go_on.set()
    assert replicas.outstanding == (0, 0, 0)


async def test_an_adapter_goes_back_to_the_server_that_had_it(servers):
    """Among idle servers; other models go where nothing has been asked for longest."""
    replicas = ReplicaSet(servers)
    answered: dict[str, set[str]] = {}
    for _ in range(4):
        for model in ("x", "y", "z"):
            response = await replicas.sample(asking(model))
            answered.setdefault(model, set()).add(response.completions[0].text)
    assert sorted(len(names) for names in answered.values()) == [1, 1, 1]
    assert set.union(*answered.values()) == {"a", "b", "c"}


async def test_affinity_does_not_queue(servers):
    """A busy server is not waited for: the adapter moves on to an idle one."""
    replicas = ReplicaSet(servers)
    first = (await replicas.sample(asking("x"))).completions[0].text
    busy = next(server for server in servers if server.name == first)
    busy.go_on.clear()
    waiting = asyncio.create_task(replicas.sample(asking("x")))
    await until_asked(servers, 2)
    assert (await replicas.sample(asking("x"))).completions[0].text != first
    busy.go_on.set()
    await waiting


@pytest.mark.parametrize("error", [ConnectionFailedError("refused"), ServerGoneError("died")])
async def test_a_server_that_is_gone_does_not_swallow_requests(servers, error):
    """It fails fast, so that it would always be the least busy; it comes last for a while."""
    now = 100.0
    replicas = ReplicaSet(servers, clock=lambda: now)
    servers[0].error = error
    for _ in range(6):
        assert (await replicas.sample(asking())).completions[0].text in "bc"
    assert len(servers[0].asked) == 1
    now += AVOIDED + 1
    servers[0].error = None
    for model in ("x", "y", "z"):
        await replicas.sample(asking(model))
    assert len(servers[0].asked) > 1
    assert replicas.outstanding == (0, 0, 0)


async def test_all_are_gone(servers):
    """Each is tried once, and the last error is told."""
    replicas = ReplicaSet(servers)
    for server in servers:
        server.error = ConnectionFailedError(server.name)
    with pytest.raises(ConnectionFailedError):
        await replicas.sample(asking())
    assert [len(server.asked) for server in servers] == [1, 1, 1]
    assert replicas.outstanding == (0, 0, 0)


async def test_an_error_of_the_request_is_its_own(servers):
    """What a server has answered is not asked of another one."""
    replicas = ReplicaSet(servers)
    for server in servers:
        server.error = ServerFaultError("500")
    with pytest.raises(ServerFaultError):
        await replicas.sample(asking())
    assert sum(len(server.asked) for server in servers) == 1


async def test_a_cancelled_request_is_no_longer_outstanding(servers):
    """Whoever gives up makes room."""
    replicas = ReplicaSet(servers)
    servers[0].go_on.clear()
    task = asyncio.create_task(replicas.sample(asking()))
    await until_asked(servers, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert replicas.outstanding == (0, 0, 0)


class TestStream:
    """A stream is one request until its end."""

    async def test_it_counts_until_it_ends(self, servers):
        """And its server's stream is closed when the consumer leaves."""
        replicas = ReplicaSet(servers)
        async with aclosing(replicas.stream(asking("x"))) as deltas:
            async for _ in deltas:
                assert sum(replicas.outstanding) == 1
                break
        assert replicas.outstanding == (0, 0, 0)
        assert sum(server.closed for server in servers) == 1

    async def test_before_the_first_piece_another_server_is_asked(self, servers):
        """Nothing has been shown yet."""
        replicas = ReplicaSet(servers)
        servers[0].error = ConnectionFailedError("refused")
        texts = [delta.text async for delta in replicas.stream(asking())]
        assert len(texts) == 3
        assert len(set(texts)) == 1
        assert texts[0] in "bc"

    async def test_after_it_the_error_is_told(self, servers):
        """Half an answer of one server and half of another is none."""
        replicas = ReplicaSet(servers)
        for server in servers:
            server.error, server.breaks_after = ConnectionFailedError("reset"), 1
        with pytest.raises(ConnectionFailedError):
            [_ async for _ in replicas.stream(asking())]
        assert sum(len(server.asked) for server in servers) == 1

    async def test_all_are_gone(self, servers):
        """Each is tried once."""
        replicas = ReplicaSet(servers)
        for server in servers:
            server.error = ServerGoneError("died")
        with pytest.raises(ServerGoneError):
            [_ async for _ in replicas.stream(asking())]
        assert [len(server.asked) for server in servers] == [1, 1, 1]


async def test_tokens_come_from_whoever_is_there(servers):
    """A server that is gone is passed over."""
    servers[0].error = ConnectionFailedError("refused")
    assert await ReplicaSet(servers).tokenize("abc") == (3,)


async def test_what_one_cannot_nobody_is_asked(servers):
    """Capabilities are what all have in common."""
    other = Scripted("d", most_logprobs=5, seed="nothing")
    found = ReplicaSet([*servers, other]).capabilities
    assert found.supports == frozenset(Capability) - {Capability.SEED}
    assert found.ignored == {"seed": "nothing"}
    assert found.most_logprobs == 5


def test_none():
    """A set of no servers is an error at once."""
    with pytest.raises(ConfigurationError, match="no server"):
        ReplicaSet([])


@pytest.mark.slow
async def test_two_engines_one_of_which_is_not_there():
    """Forty requests, every one answered as by one server alone."""
    capabilities = VllmEngine().capabilities(None)
    parameters = SamplingParameters(max_tokens=8)
    requests = [
        SampleRequest(prompt=TextPrompt(f"question {number}"), parameters=parameters)
        for number in range(40)
    ]
    async with AsyncExitStack() as stack:
        urls = [(await stack.enter_async_context(running_fake_engine())).url for _ in range(2)]
        samplers = [
            await stack.enter_async_context(
                HTTPSampler(
                    url,
                    model="fake-model",
                    capabilities=capabilities,
                    retries=Retries(attempts=1),
                )
            )
            for url in (*urls, "http://127.0.0.1:1")
        ]
        replicas = ReplicaSet(samplers)
        answers = await asyncio.gather(*(replicas.sample(request) for request in requests))
        alone = [await samplers[0].sample(request) for request in requests]
    texts = [answer.completions[0].text for answer in answers]
    assert texts == [answer.completions[0].text for answer in alone]
    assert Counter(answer.model for answer in answers) == {"fake-model": 40}
