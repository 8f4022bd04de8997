"""The sampler against a fake engine and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from enginehouse.client.concurrency import Adaptive
from enginehouse.client.exchange import Exchange, Forward, Reply
from enginehouse.client.retry import Retries
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.client.transport import Timeouts
from enginehouse.client.unchecked import Unchecked
from enginehouse.client.wire import OPENAI
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    ContextOverflowError,
    MalformedResponseError,
    RateLimitedError,
    RequestTimeoutError,
    ServerFaultError,
    UnauthorizedError,
    UnknownModelError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.messages import ChatPrompt, Message, TextPrompt
from enginehouse.core.sampler import Capabilities, Capability, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine

from .conftest import CAPABILITIES, QueueSignal, ScriptedServer, raw, reply

Start = Callable[..., Awaitable[ScriptedServer]]
KEY = "sk-very-secret"
HI = SampleRequest(prompt=ChatPrompt((Message("user", "Hi"),)))
FAST = Retries(attempts=3, base=0.0)
GOOD = reply(
    json.dumps(
        {
            "id": "1",
            "model": "m",
            "choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
        }
    ).encode()
)


def sampler(url: str, **options: Any) -> HTTPSampler:
    """A sampler for "m" that retries without waiting."""
    return HTTPSampler(
        url, **{"model": "m", "capabilities": CAPABILITIES, "retries": FAST} | options
    )


@pytest.mark.asyncio(loop_scope="module")
class TestAgainstFakeEngine:
    """What the whole path does; the conformance suite checks the answers themselves."""

    async def test_the_first_listed_model_is_the_default(self, engine: FakeEngineHandle):
        """Without a name the server is asked for one; a request may name another."""
        async with sampler(engine.url + "/v1/", model=None) as client:
            assert client.model == "tiny"
            assert await client.models() == ("tiny", "alias")
            assert (await client.sample(HI)).model == "tiny"
            other = SampleRequest(prompt=HI.prompt, model="alias")
            assert (await client.sample(other)).model == "alias"

    async def test_timing(self, engine: FakeEngineHandle):
        """When it started, how long it took, and that it took one attempt."""
        async with sampler(engine.url, model=None) as client:
            timing = (await client.sample(HI)).timing
        assert timing.started > 1.7e9
        assert 0 < timing.elapsed < 60
        assert (timing.attempts, timing.first_token) == (1, None)

    async def test_many_at_once(self, engine: FakeEngineHandle):
        """A thousand tasks share one sampler, each with its own answer, within the limit."""
        peak = 0

        async def ask(client: HTTPSampler, number: int) -> str:
            nonlocal peak
            request = SampleRequest(
                prompt=TextPrompt(f"Item {number}:"), parameters=SamplingParameters(max_tokens=8)
            )
            response = await client.sample(request)
            peak = max(peak, client.in_flight)
            return response.completions[0].text

        async with sampler(engine.url, model=None, concurrency=50) as client:
            texts = await asyncio.gather(*(ask(client, number) for number in range(1000)))
            again = await ask(client, 77)
            assert client.in_flight == 0
        assert peak <= 50
        assert len(set(texts)) > 900
        assert texts[77] == again

    async def test_load(self, engine: FakeEngineHandle):
        """The queue through the engine's signal; None without one."""
        async with sampler(engine.url, model=None, load_signal=QueueSignal()) as client:
            load = await client.load()
        assert load is not None
        assert (load.running, load.waiting) == (0, 0)
        async with sampler(engine.url, model=None) as client:
            assert await client.load() is None

    async def test_leaving_a_stream_early(self, engine: FakeEngineHandle):
        """The slot is free again and the sampler goes on working."""
        async with sampler(engine.url, model=None, concurrency=1) as client:
            async with aclosing(client.stream(HI)) as deltas:
                async for _ in deltas:
                    break
            assert client.in_flight == 0
            assert (await client.sample(HI)).completions[0].text

    async def test_tokenize_needs_the_capability(self, engine: FakeEngineHandle):
        """An engine without /tokenize is not asked."""
        lacking = Capabilities(supports=frozenset({Capability.CHAT}))
        async with sampler(engine.url, model=None, capabilities=lacking) as client:
            with pytest.raises(UnsupportedError):
                await client.tokenize("Hi")


@pytest.mark.slow
async def test_the_limit_follows_the_servers_queue():
    """With two places in the server and many requests, the limit grows, then gives way."""
    bounds = Adaptive(minimum=1, start=2, maximum=64, interval=0.01)
    seen: set[int] = set()
    async with (
        running_fake_engine("--max-num-seqs", "2", token_latency=0.0005) as engine,
        sampler(engine.url, model=None, load_signal=QueueSignal(), concurrency=bounds) as client,
    ):

        async def ask() -> None:
            await client.sample(HI)
            seen.add(client.concurrency)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(300):
                group.create_task(ask())
    assert len(seen) > 1, f"the limit stayed at {seen}"
    assert max(seen) <= 64


async def test_transient_failures_are_retried(scripted: Start):
    """A closed connection and a 503 are survived; the attempts are counted."""
    server = await scripted(raw(b""), reply(b"busy", status=503), GOOD)
    async with sampler(server.url) as client:
        response = await client.sample(HI)
    assert response.completions[0].text == "Hello."
    assert response.timing.attempts == 3
    assert (
        server.requests[0].partition(b"\r\n\r\n")[2] == server.requests[2].partition(b"\r\n\r\n")[2]
    )


@pytest.mark.parametrize(
    ("behaviour", "error", "asked"),
    [
        (raw(b""), ConnectionFailedError, 3),
        (reply(b"died", status=500), ServerFaultError, 3),
        (reply(b"no", status=400), WireError, 1),
        (reply(b"{}"), MalformedResponseError, 1),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), MalformedResponseError, 1),
        (reply(b"", status=429, headers="Retry-After: 900\r\n"), RateLimitedError, 1),
    ],
)
async def test_how_often_a_failure_is_asked_again(
    scripted: Start, behaviour: Any, error: type[WireError], asked: int
):
    """Retryable: as often as allowed. Anything of which a reply was received: once."""
    server = await scripted(behaviour)
    async with sampler(server.url) as client:
        with pytest.raises(error):
            await client.sample(HI)
        assert client.in_flight == 0
    assert len(server.requests) == asked


@pytest.mark.parametrize("reason", ["abort", "error"])
async def test_an_answer_that_the_engine_aborted_is_none(scripted: Start, reason: str):
    """With status 200, too: a server that is being stopped answers so what was under way."""
    body = {
        "id": "1",
        "model": "m",
        "choices": [{"message": {"content": "Hel"}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    server = await scripted(reply(json.dumps(body).encode()))
    failures: list[WireError] = []

    class Redelivery:
        """What keeps the server alive is the one to send it again."""

        async def send(self, exchange: Exchange, forward: Forward) -> Reply:
            try:
                return await forward(exchange)
            except WireError as error:
                failures.append(error)
                raise

    async with sampler(server.url, shared=ServerLayers(redelivery=Redelivery())) as client:
        with pytest.raises(ServerFaultError) as caught:
            await client.sample(HI)
    assert reason in (caught.value.why or "")
    assert failures == [caught.value]
    assert len(server.requests) == 1


async def test_a_timeout_is_not_retried(scripted: Start):
    """The engine may still be at work on it."""
    server = await scripted(raw(b"", close=False))
    async with sampler(server.url, timeouts=Timeouts(total=0.05)) as client:
        with pytest.raises(RequestTimeoutError, match="whole request"):
            await client.sample(HI)
    assert len(server.requests) == 1


async def test_the_api_key_is_sent_and_never_shown(scripted: Start):
    """Not even when the server repeats it."""
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    server = await scripted(reply(body, status=401))
    async with sampler(server.url, api_key=KEY) as client:
        with pytest.raises(UnauthorizedError) as caught:
            await client.sample(HI)
    assert KEY.encode() in server.requests[0]
    error = caught.value
    assert "***" in str(error)
    assert KEY not in f"{error}{error!r}{error.args}{error.__cause__!r}{error.__context__!r}"


async def test_the_fake_engines_api_key():
    """The key of the server's environment opens it; another or none does not."""
    async with running_fake_engine(env={"VLLM_API_KEY": KEY}) as engine:
        async with sampler(engine.url, model=None, api_key=KEY) as client:
            assert (await client.sample(HI)).completions
        for wrong in ("other", None):
            with pytest.raises(UnauthorizedError):
                await sampler(engine.url, model=None, api_key=wrong).__aenter__()


async def test_a_server_without_models(scripted: Start):
    """There is nothing to ask, and the connections are closed again."""
    server = await scripted(reply(b'{"data":[]}'))
    with pytest.raises(UnknownModelError):
        await sampler(server.url, model=None).__aenter__()


async def test_refusals_send_nothing(scripted: Start):
    """What the engine would ignore never reaches it."""
    server = await scripted(GOOD)
    request = SampleRequest(
        prompt=HI.prompt, parameters=SamplingParameters(extra={"guided_json": {}})
    )
    async with sampler(server.url) as client:
        with pytest.raises(UnsupportedError):
            await client.sample(request)
    assert server.requests == []


def events(*lines: str, done: bool = True) -> Any:
    """A streamed reply that ends with the connection."""
    text = "".join(f"{line}\n\n" for line in lines) + ("data: [DONE]\n\n" if done else "")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return raw(head + text.encode())


GIVEN_UP = 'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"abort"}]}'


def piece(text: str) -> str:
    """One event with a piece of text."""
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


async def collect(client: HTTPSampler, into: list[str]) -> None:
    """Keep every piece of the answer."""
    async for delta in client.stream(HI):
        into += [delta.text]


async def test_what_the_server_would_let_pass_is_refused_here(scripted: Start):
    """It is asked once what it serves, when the first request needs to know."""
    wire = replace(OPENAI, unchecked=lambda _: Unchecked(names=("m",), context=100))
    server = await scripted(GOOD)
    async with sampler(server.url, wire=wire) as asking:
        assert server.requests == []
        for wrong, error in (
            (msgspec.structs.replace(HI, model="other"), UnknownModelError),
            (SampleRequest(prompt=HI.prompt), ContextOverflowError),  # its 512 tokens are too many
        ):
            with pytest.raises(error):
                await asking.sample(wrong)
            with pytest.raises(error):
                async for _ in asking.stream(wrong):
                    pass
        assert [b" /v1/models " in request for request in server.requests] == [True]
        few = SampleRequest(prompt=HI.prompt, parameters=SamplingParameters(max_tokens=10))
        assert (await asking.sample(few)).completions[0].text == "Hello."
    assert len(server.requests) == 2


async def test_a_stream_that_will_be_closed_has_a_connection_of_its_own(scripted: Start):
    """The next request would otherwise go into a connection that the server is closing."""
    ended = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    )
    server = await scripted(raw(ended, close=False))
    for closes, connections in ((False, 1), (True, 2)):
        before = server.connections
        async with sampler(server.url, wire=replace(OPENAI, closes_streams=closes)) as asking:
            for _ in range(2):
                assert [delta async for delta in asking.stream(HI)] == []
        assert server.connections - before == connections


async def test_a_stream(scripted: Start):
    """Comments are passed over; the usage is a last piece without text."""
    usage = 'data: {"choices":[],"usage":{"prompt_tokens":1}}'
    server = await scripted(events(": keep-alive", piece("Hel"), piece("lo"), usage))
    got: list[str] = []
    async with sampler(server.url) as client:
        await collect(client, got)
    assert got == ["Hel", "lo", ""]


async def test_a_stream_is_retried_until_it_begins(scripted: Start):
    """No piece was received, so nothing can come twice."""
    server = await scripted(raw(b""), reply(b"busy", status=503), events(piece("Hello")))
    got: list[str] = []
    async with sampler(server.url) as client:
        await collect(client, got)
    assert (got, len(server.requests)) == (["Hello"], 3)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (events(piece("Hel"), done=False), MalformedResponseError),
        (events(piece("Hel"), 'data: {"error":{"message":"died","code":500}}'), ServerFaultError),
        (events(piece("Hel"), "data: {"), MalformedResponseError),
        (events(piece("Hel"), GIVEN_UP), ServerFaultError),
    ],
)
async def test_a_stream_that_breaks_is_an_error_and_not_an_end(
    scripted: Start, behaviour: Any, error: type[WireError]
):
    """What came before is given; the rest is not invented, and not asked for again."""
    server = await scripted(behaviour)
    got: list[str] = []
    async with sampler(server.url) as client:
        with pytest.raises(error):
            await collect(client, got)
        assert client.in_flight == 0
    assert (got, len(server.requests)) == (["Hel"], 1)


async def test_a_stream_that_is_refused(scripted: Start):
    """An error status is the same error as without streaming."""
    server = await scripted(reply(b'{"error":"Unauthorized"}', status=401))
    async with sampler(server.url) as client:
        with pytest.raises(UnauthorizedError):
            await collect(client, [])


async def test_a_cancelled_request_frees_its_slot(scripted: Start):
    """Ctrl-C in the middle leaves nothing held."""
    server = await scripted(raw(b"", close=False))
    async with sampler(server.url, concurrency=1) as client:
        task = asyncio.create_task(client.sample(HI))
        async with asyncio.timeout(10):
            await server.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.in_flight == 0


def test_adaptive_concurrency_needs_a_signal():
    """Otherwise it would stay where it starts, silently."""
    with pytest.raises(ConfigurationError, match="load signal"):
        sampler("http://127.0.0.1:1", concurrency=Adaptive())
    with pytest.raises(ConfigurationError):
        sampler("http://127.0.0.1:1", concurrency=0)


async def test_use_outside_the_block_is_a_programming_error():
    """It says what to do."""
    with pytest.raises(RuntimeError, match="async with"):
        await sampler("http://127.0.0.1:1").sample(HI)


class TestBodiesOfOthers:
    """A body that somebody else encoded passes through the same layers."""

    async def test_whole(self):
        """The reply as it came; refusals are the errors that they always are."""
        async with running_fake_engine() as engine, sampler(engine.url, model=None) as asking:
            body = {"model": asking.model, "prompt": "Hi", "max_tokens": 3}
            given = json.loads(await asking.post("/v1/completions", json.dumps(body).encode()))
            assert given["usage"]["completion_tokens"] == 3
            with pytest.raises(UnknownModelError):
                await asking.post("/v1/completions", json.dumps(body | {"model": "x"}).encode())

    async def test_in_pieces(self):
        """The caller reads and closes it."""
        async with running_fake_engine() as engine, sampler(engine.url, model=None) as asking:
            body = {"model": asking.model, "prompt": "Hi", "max_tokens": 3, "stream": True}
            reply = await asking.post_streamed("/v1/completions", json.dumps(body).encode())
            assert asking.in_flight == 1
            pieces = b"".join([piece async for piece in reply.wire.chunks])
            assert pieces.rstrip().endswith(b"data: [DONE]")
            reply.close()
            assert asking.in_flight == 0

    async def test_what_the_layers_are_told(self):
        """Whether it asks for its prompt's log-probabilities, and may have to be alone."""
        seen: list[bool] = []

        class Watching:
            async def send(self, exchange: Exchange, forward: Forward) -> Reply:
                if (asked := exchange.sample) is not None:
                    seen.append(asked.parameters.prompt_logprobs is not None)
                return await forward(exchange)

        async with running_fake_engine() as engine:
            shared = ServerLayers(exclusive=Watching())
            async with sampler(engine.url, model=None, shared=shared) as asking:
                body = json.dumps({"model": asking.model, "prompt": "Hi", "max_tokens": 1}).encode()
                await asking.post("/v1/completions", body)
                await asking.post(
                    "/v1/completions", body, scores=SamplingParameters(prompt_logprobs=0)
                )
        assert seen == [False, True]
