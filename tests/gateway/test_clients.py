"""The official openai SDK through a gateway: streaming, tools, log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
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
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in stream:
                pass
