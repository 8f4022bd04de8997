"""A real vLLM behind a gateway: what clients see while it works, and when it is killed."""

from __future__ import annotations

import asyncio
import os
import signal

import openai
import pytest
from tests.support.command_line import House
from tests.support.deployments import opened
from tests.support.gateways import gateway_before, until

from enginehouse.deployment.configuration import ServeConfig, parse

pytestmark = pytest.mark.engine
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


async def test_the_openai_sdk_and_a_kill(
    real_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams, tools, log-probabilities; a client that leaves; kill -9 in answers and a stream."""
    for name, value in real_house.env.items():
        monkeypatch.setenv(name, value)
    server = {
        "max_model_len": 1024,
        "dtype": "float32",
        "extra_args": "--enable-auto-tool-choice --tool-call-parser pythonic",
    }
    plan = parse(ServeConfig, {"model": "smollm2", "server": server}, origin="test")
    async with (
        opened(plan, concurrency=16) as deployment,
        gateway_before(deployment, api_key="k3y") as gateway,
        openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="k3y", max_retries=0, timeout=600
        ) as client,
    ):
        model = gateway.model

        def asked(number: int, tokens: int = 24) -> dict[str, object]:
            messages = [{"role": "user", "content": f"Say something about the number {number}."}]
            fields = {"model": model, "messages": messages, "max_tokens": tokens}
            return fields | {"temperature": 0, "extra_body": {"ignore_eos": True}}

        async def answer(number: int) -> str:
            reply = await client.chat.completions.create(**asked(number))
            return reply.choices[0].message.content or ""

        # what the SDK can ask
        stream = await client.chat.completions.create(**asked(1), stream=True)
        pieces = [c.choices[0].delta.content or "" async for c in stream if c.choices]
        assert "".join(pieces) == await answer(1)
        chosen = {"type": "function", "function": {"name": "weather"}}
        tools = asked(2) | {"tools": [TOOL], "tool_choice": chosen, "max_tokens": 60}
        del tools["extra_body"]
        reply = await client.chat.completions.create(**tools)
        assert reply.choices[0].message.tool_calls[0].function.name == "weather"
        reply = await client.chat.completions.create(**asked(3), logprobs=True, top_logprobs=2)
        assert len(reply.choices[0].logprobs.content) == 24
        scored = [
            client.completions.create(
                model=model, prompt=f"one two {number}", max_tokens=1, echo=True, logprobs=1
            )
            for number in range(3)
        ]
        for completion in await asyncio.gather(*scored):
            assert completion.choices[0].logprobs.token_logprobs[0] is None
            assert len(completion.choices[0].logprobs.token_logprobs) > 3

        # a client that leaves
        leaving = asyncio.create_task(client.chat.completions.create(**asked(4, tokens=900)))
        await until(lambda: _running(deployment.sampler, 1))
        leaving.cancel()
        await until(lambda: _running(deployment.sampler, 0))

        # kill -9 with whole answers in flight and in the middle of a stream
        undisturbed = await asyncio.gather(*map(answer, range(4)))
        stream = await client.chat.completions.create(**asked(5, tokens=900), stream=True)
        await anext(aiter(stream))
        answers = [asyncio.create_task(answer(number)) for number in range(4)]
        await until(lambda: _running(deployment.sampler, 2))
        os.kill(deployment.server.pid or 0, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            await _drain(stream)
        assert await asyncio.gather(*answers) == undisturbed
        assert gateway.figures().broken == 1
    real_house.nothing_left()


async def _drain(stream: openai.AsyncStream[object]) -> None:
    async for _ in stream:
        pass


async def _running(sampler: object, least: int) -> bool:
    load = await sampler.load()  # type: ignore[attr-defined]
    return load is not None and (load.running >= least if least else load.running == 0)
