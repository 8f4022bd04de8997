"""Requests that are forwarded to the fake engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from tests.support.deployments import opened

from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.gateway.service import Gateway, GatewayOptions, open_gateway
from enginehouse.runtime.context import Context
from enginehouse.testing.fake_engine.process import running_fake_engine

CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def gateway_to(url: str, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway before the server at `url`."""
    plan = parse(AskConfig, {"url": url}, origin="test")
    async with (
        opened(plan) as deployment,
        open_gateway(deployment, GatewayOptions(**options), Context()) as gateway,
    ):
        yield gateway


async def test_chat_completions_and_models_are_those_of_the_engine() -> None:
    """Whole answers, and the names of the models."""
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
        assert gateway.figures().requests == 3


async def test_a_stream_is_passed_on_to_its_end_mark() -> None:
    """Server-sent events arrive as the engine sent them."""
    async with (
        running_fake_engine(answers={"hello": "one two three"}) as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=CHAT | {"stream": True}) as reply,
    ):
        assert reply.content_type == "text/event-stream"
        events = [line[6:] for line in (await reply.text()).splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"] for event in events[:-1]]
    text = "".join(c[0]["delta"].get("content") or "" for c in deltas if c)
    assert text == "one two three"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"not json", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1/chat/completions", json.dumps(CHAT | {"model": "fake-modl"}).encode(), 404),
        ("/v1/nothing", b"{}", 404),
    ],
)
async def test_what_is_wrong_with_a_request_is_said_in_the_form_of_the_openai_api(
    path: str, body: bytes, status: int
) -> None:
    """An error has the fields that clients read."""
    async with (
        running_fake_engine() as engine,
        gateway_to(engine.url) as gateway,
        aiohttp.ClientSession(gateway.url) as client,
        client.post(path, data=body) as reply,
    ):
        assert reply.status == status
        error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
