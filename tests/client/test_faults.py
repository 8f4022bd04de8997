"""The sampler under each fault of the fake engine: what is asked again, how often, what is said."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from enginehouse.client.concurrency import Adaptive
from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.transport import Timeouts
from enginehouse.core.errors import (
    ConnectionFailedError,
    MalformedResponseError,
    RateLimitedError,
    RequestTimeoutError,
    ServerFaultError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

from .conftest import CAPABILITIES, QueueSignal

NEVER = 10**9  # the number of a request that never comes: such a fault only counts
QUICK = Retries(base=0.01)
FAULTS = [
    {"fault": "status", "status": 500, "match": "passing 500", "first": 2},
    {"fault": "status", "status": 502, "match": "lasting 502"},
    {"fault": "status", "status": 503, "retry_after": "7", "match": "passing 503", "first": 2},
    {"fault": "status", "status": 429, "retry_after": "900", "match": "in an hour"},
    {"fault": "reset", "match": "passing reset", "first": 2},
    {"fault": "reset", "match": "lasting reset"},
    {"fault": "reset", "at": "body", "match": "reset midway"},
    {"fault": "truncate", "match": "truncated"},
    {"fault": "hang", "match": "hanging"},
    {"fault": "status", "status": 500, "match": "race", "nth": [NEVER]},
    {"fault": "close", "match": "race", "reused": True},
    {"fault": "status", "status": 429, "retry_after": "2", "match": "storm", "first": 300},
]


def asking(text: str) -> SampleRequest:
    """One short answer."""
    return SampleRequest(
        prompt=ChatPrompt((Message("user", text),)), parameters=SamplingParameters(max_tokens=8)
    )


class Server:
    """The fake with all faults; `seen` counts the requests that had a fault's words."""

    def __init__(self, engine: FakeEngineHandle, state: Path) -> None:
        self.url = engine.url
        self._state = state

    def seen(self, words: str) -> int:
        """How often it was asked."""
        if not self._state.exists():  # nothing was asked yet
            return 0
        counts: list[int] = json.loads(self._state.read_text())
        return next(
            count
            for fault, count in zip(FAULTS, counts, strict=True)
            if fault["match"] == words and not fault.get("reused")
        )

    def sampler(self, **options: Any) -> HTTPSampler:
        """A sampler that hardly waits between attempts."""
        given = {"model": "fake-model", "capabilities": CAPABILITIES, "retries": QUICK}
        return HTTPSampler(self.url, **given | options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """One for the whole module."""
    state = tmp_path_factory.mktemp("faults") / "state"
    async with running_fake_engine(faults=FAULTS, env={"VLLM_FAKE_STATE": str(state)}) as engine:
        yield Server(engine, state)


class Pauses(list[float]):
    """The seconds that a sampler would have waited between attempts; it does not wait."""

    async def sleep(self, seconds: float) -> None:
        """Note the pause."""
        self.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def pauses() -> Pauses:
    """None yet."""
    return Pauses()


@pytest.mark.asyncio(loop_scope="module")
class TestAsked:
    """How often the server sees a request, and what comes of it."""

    @pytest.mark.parametrize("words", ["passing 500", "passing reset", "passing 503"])
    async def test_what_passes_is_asked_again(self, server: Server, words: str, pauses: Pauses):
        """Twice in vain, then answered; the answer says that it took three attempts."""
        async with server.sampler(sleep=pauses.sleep) as client:
            response = await client.sample(asking(words))
        assert response.completions[0].text
        assert response.timing.attempts == server.seen(words) == 3
        assert all(pause >= 7 for pause in pauses) == (words == "passing 503")

    @pytest.mark.parametrize(
        ("words", "kind", "said"),
        [
            ("lasting 502", ServerFaultError, "the server answered 502: the fake engine was told"),
            ("lasting reset", ConnectionFailedError, "no reply from http://127.0.0.1"),
        ],
    )
    async def test_what_lasts_is_given_up(
        self, server: Server, words: str, kind: type[WireError], said: str, pauses: Pauses
    ):
        """After five attempts, with the last error and what to do."""
        async with server.sampler(sleep=pauses.sleep) as client:
            with pytest.raises(kind) as caught:
                await client.sample(asking(words))
        assert server.seen(words) == 5
        assert len(pauses) == 4
        assert caught.value.__notes__ == ["after 5 attempts"]
        assert said in caught.value.message
        assert caught.value.fix

    @pytest.mark.parametrize(
        ("words", "said", "streamed"),
        [
            ("reset midway", "broke off", "broke off"),
            ("truncated", "stops in the middle of its JSON", "ended before it was complete"),
        ],
    )
    async def test_what_has_begun_is_not_asked_again(
        self, server: Server, words: str, said: str, streamed: str
    ):
        """Whole or as a stream: once, and the message tells where to look."""
        async with server.sampler() as client:
            with pytest.raises(MalformedResponseError, match=said) as caught:
                await client.sample(asking(words))
            assert server.seen(words) == 1
            assert "read the" in str(caught.value.fix)
            assert "log" in str(caught.value.fix)
            with pytest.raises(MalformedResponseError, match=streamed):
                async for _ in client.stream(asking(words)):
                    pass
        assert server.seen(words) == 2

    async def test_a_truncated_reply_shows_what_came(self, server: Server):
        """How much, and how it begins."""
        async with server.sampler() as client:
            with pytest.raises(MalformedResponseError) as caught:
                await client.sample(asking("truncated"))
        assert caught.value.why is not None
        assert "bytes came" in caught.value.why
        assert 'it begins: {"id":"chatcmpl-' in caught.value.why

    @pytest.mark.parametrize(
        ("timeouts", "said"),
        [
            (Timeouts(first_byte=0.2), "waiting for the first byte of the reply took longer"),
            (Timeouts(total=0.2), "the whole request took longer than 0.2 s"),
        ],
        ids=["first byte", "total"],
    )
    async def test_what_hangs_ends_with_the_timeout(
        self, server: Server, timeouts: Timeouts, said: str
    ):
        """And is not asked again: it may still be computed."""
        before = server.seen("hanging")
        begun = time.monotonic()
        async with server.sampler(timeouts=timeouts) as client:
            with pytest.raises(RequestTimeoutError, match=said):
                await client.sample(asking("hanging"))
        assert time.monotonic() - begun < 2
        assert server.seen("hanging") == before + 1

    async def test_others_do_not_wait_for_what_hangs(self, server: Server):
        """Up to the limit of concurrency."""
        async with server.sampler(timeouts=Timeouts(total=1), concurrency=3) as client:
            hung = [asyncio.create_task(client.sample(asking("hanging"))) for _ in range(2)]
            answers = [client.sample(asking(f"{n}")) for n in range(20)]
            assert len(await asyncio.gather(*answers)) == 20
            assert client.in_flight == 2
            for task in hung:
                task.cancel()
            await asyncio.gather(*hung, return_exceptions=True)
            assert client.in_flight == 0

    async def test_the_keep_alive_race(self, server: Server):
        """Every kept connection is closed under the next request: each is answered once.

        Where one of them was, the retry goes by a new one; so nobody needs a third attempt.
        """
        before = server.seen("race")
        async with server.sampler() as client:
            asked = [client.sample(asking(f"race {n}")) for n in range(300)]
            responses = await asyncio.gather(*asked)
        attempts = Counter(response.timing.attempts for response in responses)
        assert set(attempts) == {1, 2}
        assert server.seen("race") - before == attempts.total() + attempts[2]

    async def test_a_storm_of_refusals(self, server: Server, pauses: Pauses):
        """Three hundred in a row: every request waits as long as it is told, and is answered."""
        async with server.sampler(
            concurrency=32, retries=Retries(endurance=10**6), sleep=pauses.sleep
        ) as client:
            responses = await asyncio.gather(
                *(client.sample(asking(f"storm {n}")) for n in range(64))
            )
        assert len(responses) == 64
        assert max(response.timing.attempts for response in responses) > QUICK.attempts
        assert server.seen("storm") == 364
        assert len(pauses) == 300
        assert min(pauses) >= 2

    async def test_a_refusal_for_too_long(self, server: Server, pauses: Pauses):
        """Is an error at once, and says so."""
        async with server.sampler(sleep=pauses.sleep) as client:
            with pytest.raises(RateLimitedError, match="429"):
                await client.sample(asking("in an hour"))
        assert server.seen("in an hour") == 1
        assert pauses == []


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["500", "reset"])
async def test_a_server_that_dies(reply: str):
    """Nobody keeps it alive here: all that was asked fails, soon, in words, and nothing hangs."""
    faults = [{"fault": "die", "match": "poison", "reply": reply, "delay": 0.05}]
    begun = time.monotonic()
    async with (
        running_fake_engine(faults=faults, token_latency=0.05) as engine,
        HTTPSampler(engine.url, capabilities=CAPABILITIES, retries=QUICK) as client,
    ):
        texts = ("poison", "a", "b", "c")
        asked = [client.sample(asking(text)) for text in texts]
        failures = await asyncio.gather(*asked, return_exceptions=True)
    assert time.monotonic() - begun < 10
    for failure in failures:
        assert isinstance(failure, ServerFaultError | ConnectionFailedError), failure
        assert failure.fix
        assert failure.__notes__ == ["after 5 attempts"]


async def test_a_stream_that_the_engine_does_not_survive():
    """The error comes as an event, as vLLM sends it, after what had come: the server is named."""
    faults = [{"fault": "die", "match": "poison"}]
    async with (
        running_fake_engine(faults=faults, token_latency=0.05) as engine,
        HTTPSampler(engine.url, capabilities=CAPABILITIES, retries=QUICK) as client,
    ):
        stream = client.stream(asking("a long story"))
        first = await anext(stream)
        with pytest.raises(ServerFaultError, match="EngineCore encountered an issue"):
            await client.sample(asking("poison"))
        with pytest.raises(ServerFaultError, match="EngineCore encountered an issue"):
            async for _ in stream:
                pass
    assert first.finish_reason is None


@pytest.mark.slow
async def test_metrics_that_never_answer():
    """The limit stays where it is; samples do not wait for the reading, and neither does the end.

    A reading that hangs is given up, so that the limit follows the queue again when it can be read.
    """
    begun = time.monotonic()
    faults = [{"fault": "hang", "path": "/metrics", "first": 2}]
    async with (
        running_fake_engine(faults=faults, token_latency=0.02) as engine,
        HTTPSampler(
            engine.url,
            capabilities=CAPABILITIES,
            load_signal=QueueSignal(),
            concurrency=Adaptive(start=2, maximum=8, interval=0.02, timeout=0.05),
        ) as client,
    ):
        responses = await asyncio.gather(*(client.sample(asking(f"{n}")) for n in range(64)))
        assert len(responses) == 64
        assert client.concurrency > 2
    assert time.monotonic() - begun < 10
