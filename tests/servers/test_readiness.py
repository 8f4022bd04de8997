from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import aiohttp.web
import pytest

from enginehouse.core.errors import StartError
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.process import Effort
from enginehouse.servers.readiness import StartLimits, describe_exit, wait_until_ready
from enginehouse.servers.sessions import one_token_request

MODELS = '{"object": "list", "data": [{"id": "m", "owned_by": "vllm"}, {"id": "adapter"}]}'


class Alive:
    """A process that lives, or has ended with a code."""

    pid = 1

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def exit_code(self) -> int | None:
        """As given."""
        return self.code

    def effort(self) -> Effort:
        """None."""
        return Effort(logged=0, read=0)

    async def stop(self, *, grace: float) -> None:
        """Not allowed."""
        raise AssertionError("readiness stops nothing")


@pytest.fixture
async def web():
    """Serve replies, path → list of (status, body), the last one for good; gives the base URL."""
    runners = []
    asked: list[str] = []

    async def serve(replies):
        async def answer(request):
            asked.append(request.path)
            left = replies[request.path]
            status, body = left.pop(0) if len(left) > 1 else left[0]
            return aiohttp.web.Response(status=status, text=body)

        app = aiohttp.web.Application()
        app.router.add_route("*", "/{rest:.*}", answer)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    serve.asked = asked
    yield serve
    for runner in runners:
        await runner.cleanup()


def ready(url, *, process=None, limit=20.0, model="m"):
    """Wait for a server of the model m."""
    return wait_until_ready(
        process or Alive(),
        base_url=url,
        engine=VllmEngine(),
        model=model,
        api_key=None,
        limits=StartLimits(total=limit),
    )


async def test_ready_after_health_models_and_canary(web):
    """It waits for health, reads the names, and asks one token before it says ready."""
    url = await web(
        {
            "/health": [(503, ""), (503, ""), (200, "")],
            "/v1/models": [(200, MODELS)],
            "/v1/completions": [(200, "{}")],
            "/is_paused": [(401, "")],
        }
    )
    assert await ready(url) == ("m", "adapter")
    assert web.asked == ["/health"] * 3 + ["/v1/models", "/v1/completions", "/is_paused"]


async def test_an_engine_without_text_is_asked_in_a_chat(web, monkeypatch):
    """With the body that docs/contributing/adding-an-engine.md shows."""
    capabilities = Capabilities(supports=frozenset({Capability.CHAT}))
    monkeypatch.setattr(VllmEngine, "capabilities", lambda *_: capabilities)
    url = await web(
        {
            "/health": [(200, "")],
            "/v1/models": [(200, MODELS)],
            "/v1/chat/completions": [(200, "{}")],
            "/is_paused": [(401, "")],
        }
    )
    assert await ready(url) == ("m", "adapter")
    guide = Path(__file__).parents[2] / "docs/contributing/adding-an-engine.md"
    bodies = re.findall(r"`(\{\"model\".*\})`", guide.read_text())
    chat = json.loads(one_token_request(VllmEngine(), "NAME").body or b"")
    monkeypatch.undo()
    text = json.loads(one_token_request(VllmEngine(), "NAME").body or b"")
    assert [json.loads(body) for body in bodies] == [text, chat]


@pytest.mark.parametrize("status", [200, 404])
async def test_a_server_that_anyone_may_pause_is_not_ready(web, status):
    """Whatever kept the guard out of it."""
    url = await web(
        {
            "/health": [(200, "")],
            "/v1/models": [(200, MODELS)],
            "/v1/completions": [(200, "{}")],
            "/is_paused": [(status, "{}")],
        }
    )
    with pytest.raises(StartError, match="without a key"):
        await ready(url)


@pytest.mark.parametrize(
    ("models", "canary", "message", "why"),
    [
        (
            (200, MODELS.replace('"m"', '"other"')),
            (200, "{}"),
            "serves other, adapter, not m",
            None,
        ),
        ((500, "broken"), (200, "{}"), "/v1/models answered 500", "broken"),
        ((200, "<html>"), (200, "{}"), "/v1/models answered 200", "<html>"),
        ((200, MODELS), (500, "engine is dead"), "was answered with 500", "engine is dead"),
    ],
)
async def test_healthy_is_not_ready(web, models, canary, message, why):
    """A server that is up but does not do its work is a failed start, with its own words."""
    url = await web({"/health": [(200, "")], "/v1/models": [models], "/v1/completions": [canary]})
    with pytest.raises(StartError, match=message) as caught:
        await ready(url)
    assert caught.value.why == why


async def test_a_process_that_ends_is_noticed_at_once():
    """Nobody waits for the limit when the process is gone."""
    with pytest.raises(StartError, match="SIGKILL"):
        await ready("http://127.0.0.1:9", process=Alive(-signal.SIGKILL), limit=3600)


@pytest.mark.slow
async def test_after_the_limit_it_says_how_far_it_came(web):
    """Unhealthy all along: the error has the last answer."""
    url = await web({"/health": [(503, "")]})
    with pytest.raises(StartError, match=r"0\.6 s") as caught:
        await ready(url, limit=0.6)
    assert caught.value.why == "/health answered 503"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (-9, "signal SIGKILL"),
        (-64, "signal SIGRTMAX"),
        (-99, "signal 99"),
    ],
)
def test_exits_are_told_in_words(code, words):
    """A number below zero is a signal's."""
    assert describe_exit(code) == words
