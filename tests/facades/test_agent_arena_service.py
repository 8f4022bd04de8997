"""Agent Arena's HTTP contract, over real connections, with a model that answers from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.scripted_sampler import Scripted, native

from enginehouse.commands.configuration import ServiceSettings
from enginehouse.core.errors import PortError, ServerFaultError, UnsupportedError
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.facades.agent_arena.deciding import Decider
from enginehouse.facades.agent_arena.service import create_app
from enginehouse.runtime.http_service import listening, running

CONVERSATION = json.loads((Path(__file__).parent / "arena_conversation.json").read_text())
OBSERVATION = {"agent_id": "a", "tick": 1, "position": [0, 0, 0]}
Send = Callable[..., Awaitable[tuple[int, Any]]]


@asynccontextmanager
async def scene(sampler: Scripted) -> AsyncIterator[Send]:
    """A function that sends to a service on that model: method, path and body."""
    app = create_app(Decider(sampler, ServiceSettings()), model="m")
    with listening(None, option="--arena-port") as listener:
        async with running(app, listener) as service, aiohttp.ClientSession(service.url) as session:

            async def send(
                method: str, path: str, body: Any = None, **more: Any
            ) -> tuple[int, Any]:
                given = {"data": body} if isinstance(body, bytes) else {"json": body}
                async with session.request(method, path, **given, **more) as reply:
                    return reply.status, await reply.json()

            yield send


async def test_a_recorded_conversation():
    """A scene from its connection to a reset: every endpoint, and every spelling of a position."""
    sampler = Scripted("")
    async with scene(sampler) as send:
        for exchange in CONVERSATION:
            sampler.requests.clear()
            if "answers" in exchange:
                name, arguments = exchange["answers"]["native"]
                sampler.replies = [native(name, json.dumps(arguments))]
            status, body = await send(*exchange["send"])
            body.get("metrics", {}).pop("tick_time_ms", None)
            assert [status, body] == exchange["get"], exchange["says"]
            prompts = [request.prompt.messages[-1].content for request in sampler.requests]
            assert len(prompts) == ("answers" in exchange), exchange["says"]
            for words in exchange.get("prompted", ()):
                assert words in prompts[0], exchange["says"]
            for words in exchange.get("not_prompted", ()):
                assert words not in prompts[0], exchange["says"]


async def test_agents_of_a_tick_are_asked_at_the_same_time():
    """Each gets its own answer, in the order of the request."""
    waiting = asyncio.Event()

    class Together(Scripted):
        async def sample(self, request):
            response = await super().sample(request)
            if len(self.requests) == 3:
                waiting.set()
            await waiting.wait()
            return response

    def answer(request):
        agent = next(
            name for name in "abc" if f'"me": "{name}"' in request.prompt.messages[-1].content
        )
        return native("collect", json.dumps({"reasoning": "", "resource_name": agent}))

    entries = [{"agent_id": name, "observations": {"me": name}} for name in "abc"]
    async with scene(Together(answer)) as send:
        _, body = await send("POST", "/tick", {"tick": 1, "agents": entries})
    assert [action["params"]["resource_name"] for action in body["actions"]] == ["a", "b", "c"]


async def test_a_model_that_fails_makes_its_agent_idle():
    """The reason is in the answer; the next request is asked as usual."""
    sampler = Scripted(ServerFaultError("it broke"), native("idle", '{"reasoning": "wait"}'))
    async with scene(sampler) as send:
        status, body = await send("POST", "/observe", OBSERVATION)
        assert (status, body["tool"], body["params"]) == (200, "idle", {})
        assert "it broke" in body["error"]
        _, body = await send("POST", "/observe", OBSERVATION)
        assert body["reasoning"] == "wait"
        assert "error" not in body


async def test_the_operator_is_told_why_agents_idle():
    """Once for each reason in a row."""
    told: list[str] = []
    broken, full = ServerFaultError("it broke"), ServerFaultError("it is full")
    sampler = Scripted(broken, broken, full, broken)
    decider = Decider(sampler, ServiceSettings(), notify=told.append)
    for tick in range(4):
        await decider.decide("a", OBSERVATION, tick=tick)
    assert [next(w for w in ("broke", "full") if w in line) for line in told] == [
        *("broke", "full", "broke")
    ]


def test_a_model_that_cannot_chat_is_refused():
    """At the start, rather than in every answer."""
    sampler = Scripted("")
    sampler.capabilities = Capabilities(supports=frozenset({Capability.TEXT}))
    with pytest.raises(UnsupportedError):
        Decider(sampler, ServiceSettings())


async def test_a_model_that_calls_nothing_makes_its_agent_idle():
    """After every step of the ladder."""
    sampler = Scripted("I would rather not.")
    async with scene(sampler) as send:
        _, body = await send("POST", "/observe", OBSERVATION)
    assert body["tool"] == "idle"
    assert "called no tool" in body["error"]
    assert len(sampler.requests) == 4


@pytest.mark.parametrize("body", [None, [], {"tick": 1}, {"agent_id": 3, "tick": "x"}])
async def test_a_malformed_observation_is_refused(body):
    """Before the model is asked, with the protocol's code."""
    sampler = Scripted("")
    async with scene(sampler) as send:
        status, answer = await send("POST", "/observe", body)
    assert (status, answer["error"]["code"]) == (400, "INVALID_PARAMETERS")
    assert sampler.requests == []


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/observe", b"{broken", 400, "INVALID_PARAMETERS"),
        ("POST", "/observe", b"\xff\xfe", 400, "INVALID_PARAMETERS"),
        ("POST", "/experience", b'{"agent_id": "\\ud800"}', 400, "INVALID_PARAMETERS"),
        ("DELETE", "/observe", b"", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/nothing", b"", 404, "NOT_FOUND"),
    ],
)
async def test_every_refusal_has_the_same_form(
    method: str, path: str, content: bytes, status: int, code: str
):
    """Whatever was wrong with the request."""
    async with scene(Scripted("")) as send:
        answered, answer = await send(
            method, path, content, headers={"Content-Type": "application/json"}
        )
    assert (answered, answer["error"]["code"], answer["actions"]) == (status, code, [])


async def test_only_so_much_is_remembered():
    """The last five actions and the last ten experiences."""
    sampler = Scripted(native("idle", '{"reasoning": ""}'))
    async with scene(sampler) as send:
        for tick in range(12):
            await send(
                "POST", "/experience", {"agent_id": "a", "tick": tick, "what": f"bump {tick};"}
            )
            await send("POST", "/observe", {"agent_id": "a", "tick": tick})
    text = sampler.requests[-1].prompt.messages[-1].content
    assert [tick for tick in range(12) if f"bump {tick};" in text] == list(range(2, 12))
    assert [tick for tick in range(12) if f"tick {tick}: idle" in text] == list(range(6, 11))


@pytest.mark.slow
async def test_a_request_in_flight_does_not_keep_the_service():
    """It ends with the block, after a moment of grace."""
    asked = asyncio.Event()

    class Stuck(Scripted):
        async def sample(self, request):
            asked.set()
            await asyncio.Event().wait()

    app = create_app(Decider(Stuck(""), ServiceSettings()), model="m")
    with listening(None, option="--arena-port") as listener:
        async with aiohttp.ClientSession() as session:
            async with running(app, listener) as service:
                url = f"{service.url}/observe"
                sent = asyncio.create_task(session.post(url, json=OBSERVATION))
                await asked.wait()
            with pytest.raises(aiohttp.ClientError):
                (await sent).raise_for_status()


def test_a_taken_port_is_an_error():
    """It says which one."""
    with listening(None, option="--arena-port") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=str(port)), listening(port, option="--arena-port"):
            pass
