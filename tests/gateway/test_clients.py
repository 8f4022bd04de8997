"""The official openai SDK through a gateway: streaming, tools, log-probabilities."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.support.gateways import gateway_to

from enginehouse.testing.fake_engine.process import running_fake_engine

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK, pointed at a gateway with a key before a fake engine with tools."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    answers = {"weather": CALL, "hello": "one two three"}
    async with (
        running_fake_engine(*flags, answers=answers) as engine,
        gateway_to(engine.url, api_key="k3y") as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="k3y") as client,
    ):
        yield client


async def test_streaming(client: openai.AsyncOpenAI) -> None:
    """The pieces, and the usage at the end."""
    stream = await client.chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    words = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert "".join(word or "" for word in words) == "one two three"
    assert chunks[-1].usage is not None


@pytest.mark.slow
async def test_tools(client: openai.AsyncOpenAI) -> None:
    """A call with its arguments."""
    messages = [{"role": "user", "content": "weather in Paris?"}]
    reply = await client.chat.completions.create(
        model="fake-model", messages=messages, tools=[TOOL]
    )
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert "Paris" in call.function.arguments


async def test_log_probabilities(client: openai.AsyncOpenAI) -> None:
    """Of the answer in chat, of the prompt in completions."""
    reply = await client.chat.completions.create(
        model="fake-model",
        messages=[{"role": "user", "content": "hello"}],
        logprobs=True,
        top_logprobs=2,
    )
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    vllm = await client.completions.create(
        model="fake-model", prompt="hello", max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    assert vllm.choices[0].model_extra["prompt_logprobs"]


async def test_errors_are_the_sdks_own(client: openai.AsyncOpenAI) -> None:
    """By their status and code."""
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="nobody", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="other").models.list()
    assert [model.id async for model in client.models.list()] == ["fake-model"]


@pytest.mark.slow
async def test_a_broken_stream_raises_an_error_of_the_sdk() -> None:
    """With what the gateway says about it."""
    faults = [{"fault": "truncate", "match": "hello"}]
    async with (
        running_fake_engine(answers={"hello": "word " * 50}, faults=faults) as engine,
        gateway_to(engine.url) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        stream = await client.chat.completions.create(
            model="fake-model", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        with pytest.raises(openai.APIError, match="before it was complete"):
            async for _ in stream:
                pass


VECTORS = {"a": [0.25, -0.5], "b": [1.0, 2.0]}


class Embedder:
    """A server that has nothing but embeddings, and remembers what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.application = web.Application()
        self.application.router.add_get("/v1/models", self.models)
        self.application.router.add_post("/v1/embeddings", self.embed)

    async def models(self, request: web.Request) -> web.Response:
        """Its only model."""
        del request
        return web.json_response({"object": "list", "data": [{"id": "embedder"}]})

    async def embed(self, request: web.Request) -> web.Response:
        """Numbers, or their bytes in base64, which the SDK asks for."""
        body = await request.json()
        self.bodies.append(body)
        if "c" in body["input"]:
            return web.json_response({"error": {"message": "c is too long"}}, status=400)
        data = []
        for index, text in enumerate(body["input"]):
            numbers: Any = VECTORS[text]
            if body.get("encoding_format") == "base64":
                numbers = b64encode(struct.pack("<2f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": numbers})
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        reply = {"object": "list", "model": body["model"], "data": data, "usage": usage}
        return web.json_response(reply)


async def test_embeddings(tmp_path: Path) -> None:
    """Passed through whole, unknown fields included, recorded, and answered from the record."""
    embedder = Embedder()
    async with (
        TestServer(embedder.application) as server,
        gateway_to(str(server.make_url("")), record=tmp_path, replay=True) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        for _ in range(2):
            reply = await client.embeddings.create(
                model="embedder", input=["a", "b"], dimensions=2, extra_body={"truncate": "end"}
            )
            assert [one.embedding for one in reply.data] == [VECTORS["a"], VECTORS["b"]]
            assert reply.usage.prompt_tokens == 2
        with pytest.raises(openai.BadRequestError, match="c is too long"):
            await client.embeddings.create(model="embedder", input=["c"])
        with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
            await client.chat.completions.create(model="embedder", messages=[])
        figures = gateway.figures()
    assert [body.get("truncate") for body in embedder.bodies] == ["end", None]
    assert embedder.bodies[0]["dimensions"] == 2
    assert (figures.replayed, figures.prompt_tokens) == (1, 2)


async def test_tokens_are_counted_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    """In the metrics; of a stream where the client asks for its usage."""
    messages = [{"role": "user", "content": "hello"}]
    reply = await client.chat.completions.create(model="fake-model", messages=messages)
    assert reply.usage is not None
    once = await _tokens(client)
    assert once == (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = await client.chat.completions.create(
            model="fake-model", messages=messages, stream=True, **options
        )
        assert [chunk async for chunk in stream]
    assert await _tokens(client) == (2 * once[0], 2 * once[1])


async def _tokens(client: openai.AsyncOpenAI) -> tuple[int, int]:
    """Of prompts and answers, by the gateway's metrics."""
    address = str(client.base_url).replace("/v1/", "/metrics")
    text = (await client.get(address, cast_to=str)).splitlines()
    counts = dict(line.split() for line in text if not line.startswith("#"))
    name = "enginehouse_gateway_{}_tokens_total"
    return int(counts[name.format("prompt")]), int(counts[name.format("generated")])
