"""Requests that are forwarded to an engine, and what comes back."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import openai
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.gateways import (
    CHAT,
    events_in,
    gateway_before,
    gateway_to,
    running_requests,
    text_of,
    until,
)
from yarl import URL

from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.deployment.several import SeveralDeployment
from enginehouse.servers.records import list_servers
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine.process import running_fake_engine


async def test_chat_completions_and_models_are_those_of_the_engine() -> None:
    """Whole answers, and the names of the models; a request may name none."""
    async with (
        running_fake_engine(answers={"hello": "Good day"}) as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        async with client.post("/v1/chat/completions", json=CHAT) as reply:
            assert reply.status == 200
            assert (await reply.json())["choices"][0]["message"]["content"] == "Good day"
        async with client.post("/v1/completions", json={"prompt": "hello"}) as reply:
            assert (await reply.json())["choices"][0]["text"] == "Good day"
        async with client.get("/v1/models") as reply:
            assert [one["id"] for one in (await reply.json())["data"]] == ["fake-model"]
        assert gateway.model == "fake-model"
        async with client.post("/v1/completions", json={"prompt": 5}) as reply:
            assert reply.status == 400
        assert gateway.figures().requests == 4
        assert gateway.figures().completed == 2


async def test_a_stream_is_passed_on_to_its_end_mark() -> None:
    """Server-sent events arrive as the engine sent them."""
    async with (
        running_fake_engine(answers={"hello": "one two three"}) as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply,
    ):
        assert reply.content_type == "text/event-stream"
        events = events_in(await reply.text())
    assert events[-1] == "[DONE]"
    assert text_of(events) == "one two three"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", b"not json", 400, "not JSON"),
        ("/v1/chat/completions", b"", 400, "empty"),
        ("/v1/chat/completions", b"[]", 400, "object"),
        ("/v1/chat/completions", b'{"model": 1}', 400, "model"),
        ("/v1/chat/completions", b'{"model": "fake-modl"}', 404, "fake-model"),
        ("/v1/chat/completions", b'{"model": "fake-model"}', 400, "messages"),
        ("/v1/nothing", b"{}", 404, "/v1/chat/completions"),
        ("/v1/models", b"{}", 405, "GET"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said_in_the_form_of_the_openai_api(
    path: str, body: bytes, status: int, said: str
) -> None:
    """An error has the fields that clients read, and names what to do."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post(path, data=body) as reply,
    ):
        assert reply.status == status
        error = (await reply.json())["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert said in error["message"]


async def test_an_error_of_the_engine_passes_as_it_came() -> None:
    """The engine's status and its whole body."""
    body = {"model": "fake-model", "prompt": "x", "max_tokens": 10**9}
    async with (
        running_fake_engine("--max-model-len", "64") as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession() as client,
    ):
        async with client.post(f"{engine.url}/v1/completions", json=body) as reply:
            direct = (reply.status, await reply.read())
        async with client.post(f"{gateway.url}/v1/completions", json=body) as reply:
            assert (reply.status, await reply.read()) == direct
    assert direct[0] == 400


@pytest.mark.slow
async def test_a_model_is_shown_by_its_name() -> None:
    """As OpenAI's library retrieves one; names may hold slashes, as they are or quoted."""
    async with (
        running_fake_engine(model="org/fake") as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
    ):
        for path in ("/v1/models/org/fake", "/v1/models/org%2Ffake"):
            async with client.get(URL(path, encoded=True)) as reply:
                assert (reply.status, (await reply.json())["id"]) == (200, "org/fake")
        async with client.get("/v1/models/other") as reply:
            assert reply.status == 404
            assert (await reply.json())["error"]["code"] == "model_not_found"
        async with client.post("/v1/models/other") as reply:
            assert reply.status == 405


async def test_what_the_engine_lacks_is_said_with_its_name() -> None:
    """Embeddings of an engine that has none; clients repeat what is answered with 5xx."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/embeddings", json={"model": "fake-model", "input": "x"}) as reply,
    ):
        assert reply.status == 404
        assert "/v1/embeddings" in (await reply.json())["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_takes_its_request_with_it(stream: bool) -> None:  # noqa: FBT001
    """The engine is not left working for nobody."""
    body = CHAT | {"stream": stream, "max_tokens": 500, "ignore_eos": True}
    async with (
        running_fake_engine(token_latency=0.1) as engine,
        gateway_to(engine.url) as gateway,
    ):
        async with aiohttp.ClientSession(gateway.url) as client:
            if stream:
                reply = await client.post("/v1/chat/completions", json=body)
                await reply.content.readany()
                assert await running_requests(engine.url) == 1
                reply.close()
            else:
                with pytest.raises(TimeoutError):
                    await client.post(
                        "/v1/chat/completions", json=body, timeout=aiohttp.ClientTimeout(1)
                    )
        await until(lambda: running_requests_are(engine.url, 0))
        await until(lambda: gateway.figures().abandoned == 1)
        await until(lambda: gateway.figures().in_flight == 0)


async def running_requests_are(url: str, count: int) -> bool:
    """Whether the engine works on so many requests."""
    return await running_requests(url) == count


async def test_unknown_fields_and_numbers_reach_the_engine_as_they_were_sent(
    tmp_path,
) -> None:
    """Only the model is written anew, where the request names none."""
    record = tmp_path / "requests.jsonl"
    body = b'{"prompt":"hello","seed":12345678901234567890123,"new_field":{"a":1.50}}'
    async with (
        running_fake_engine(env={"VLLM_FAKE_REQUESTS": str(record)}) as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/completions", data=body),
    ):
        pass
    sent = json.loads(record.read_text().splitlines()[-1])["body"]
    assert sent == json.loads(body) | {"model": "fake-model"}


@pytest.mark.slow
async def test_a_slow_server_gets_fewer_requests(house: House) -> None:
    """One of three that is busy for long is passed over by requests that come meanwhile."""
    model = str(house.model())
    servers = [
        house.start(
            *("serve", model, "--announce", "servers", "--name", name),
            *("--env", f"VLLM_FAKE_TOKEN_LATENCY={latency}"),
        )
        for name, latency in (("slow", 1), ("fast", 0), ("faster", 0))
    ]
    addresses = {"addresses": str(house.work / "servers")}
    async with (
        opened(parse(AskConfig, addresses, origin="test"), concurrency=6) as deployment,
        gateway_before(deployment) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        assert isinstance(deployment, SeveralDeployment)
        instances = deployment.instances
        await until(lambda: len(instances) == 3)
        before = {one.base_url: one.asked for one in instances}
        asking = [
            client.completions.create(
                model=gateway.model, prompt="x", max_tokens=4, extra_body={"ignore_eos": True}
            )
            for _ in range(36)
        ]
        await asyncio.gather(*asking)
        slow = next(
            one.record.base_url
            for one in list_servers(Layout.from_environment())
            if one.record.name == "slow"
        )
        asked = {one.base_url: one.asked - before[one.base_url] for one in instances}
        assert sum(asked.values()) == 36
        assert asked.pop(slow) < min(asked.values())
    for server in servers:
        server.interrupt()
        server.end()
    house.nothing_left()
