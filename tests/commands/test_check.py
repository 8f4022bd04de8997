"""`enginehouse check` on a server that does what it likes: every wrong answer is a failed line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from aiohttp import test_utils, web

from enginehouse.commands.check import run_check
from enginehouse.commands.configuration import CheckConfig
from enginehouse.results.check import CheckReport, Outcome
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


class Careless:
    """An OpenAI-compatible server with one answer to everything."""

    def __init__(self) -> None:
        self.text: str | None = "Berlin, \n I   think."
        self.calls: list[dict[str, Any]] = []
        self.health = 200

    async def chat(self, _: web.Request) -> web.Response:
        """The answer."""
        calls = [{"id": "1", "type": "function", "function": call} for call in self.calls]
        message = {"role": "assistant", "content": self.text, "tool_calls": calls}
        return web.json_response(
            {
                "id": "1",
                "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4},
            }
        )

    async def models(self, _: web.Request) -> web.Response:
        """Its only name."""
        return web.json_response({"data": [{"id": "m"}]})

    async def healthy(self, _: web.Request) -> web.Response:
        """Whether it is."""
        return web.Response(status=self.health)


class Subject:
    """The server, and how it is checked."""

    def __init__(self, server: Careless, url: str, layout: Layout) -> None:
        self.server, self.url, self.layout = server, url, layout

    async def check(self, *, users: int = 2) -> CheckReport:
        """Everything."""
        config = CheckConfig(url=self.url, users=users)
        return await run_check(config, Context(layout=self.layout))


@pytest_asyncio.fixture
async def subject(tmp_path: Path) -> AsyncIterator[Subject]:
    """A careless server."""
    careless = Careless()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", careless.chat)
    app.router.add_get("/v1/models", careless.models)
    app.router.add_get("/health", careless.healthy)
    layout = Layout(cache=tmp_path, state=tmp_path, config=tmp_path)
    async with test_utils.TestServer(app) as server:
        yield Subject(careless, str(server.make_url("")), layout)


async def test_an_answer_is_not_enough(subject: Subject):
    """A constraint that was ignored, a call that was not made, log-probabilities that lack."""
    report = await subject.check()
    lines = {line.name: line for line in report.lines}
    assert lines["chat"].says.startswith("answered 'Berlin, I think.' in ")
    assert lines["2 users"].outcome is Outcome.PASSED
    assert report.latency.n == 2
    for name, said in {
        "choice": "'Berlin, I think.' is none of Paris, Rome",
        "JSON schema": "does not follow the schema: it is no JSON",
        "tools": "a call was required, the answer was 'Berlin, I think.'",
        "log-probabilities": "log",
        "text": "404",
    }.items():
        assert lines[name].outcome is Outcome.FAILED, name
        assert said in lines[name].says
    assert report.failed


async def test_calls_are_validated(subject: Subject):
    """By the tool's schema; a valid one passes, another tool's name does not."""
    outcomes = {}
    for name, arguments in (
        ("visit", '{"city": "Paris"}'),
        ("visit", '{"town": "Paris"}'),
        ("visit", "Paris"),
        ("leave", '{"city": "Paris"}'),
    ):
        subject.server.calls = [{"name": name, "arguments": arguments}]
        (line,) = [line for line in (await subject.check()).lines if line.name == "tools"]
        outcomes[name, arguments] = line.outcome
    assert list(outcomes.values()) == [Outcome.PASSED, *[Outcome.FAILED] * 3]


async def test_a_server_that_says_nothing(subject: Subject):
    """An empty answer is none, for each user, too; a sick server is told by its health."""
    subject.server.text = ""
    subject.server.health = 503
    report = await subject.check(users=1)
    lines = {line.name: line for line in report.lines}
    assert lines["health"].says == "/health answered 503"
    assert lines["chat"].says == "the answer is empty"
    assert lines["1 user"].says.startswith("1 of 1 got no answer: the answer is empty")
    assert (report.latency.n, report.latency.p50) == (0, None)
