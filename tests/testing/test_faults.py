"""The faults of the fake engine: each does what it says, and hits only the requests it names."""

from __future__ import annotations

import asyncio
import errno
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine
from enginehouse.testing.fake_engine.faults import Asked, Faults, Status

CHAT = "/v1/chat/completions"
DEAD = {
    "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "type": "InternalServerError",
    "param": None,
    "code": 500,
}
ON_DEMAND = [
    {"fault": "reset", "match": "reset at once"},
    {"fault": "reset", "at": "body", "match": "reset midway"},
    {"fault": "truncate", "match": "truncated"},
    {"fault": "close", "reused": True, "match": "race"},
    {"fault": "status", "status": 429, "retry_after": "3", "match": "busy"},
    {"fault": "status", "status": 502, "every": 3, "match": "every third"},
    {"fault": "status", "status": 503, "nth": [2, 4], "match": "second and fourth"},
    {"fault": "say", "body": '{"success": false}', "path": "/reset_prefix_cache"},
    {"fault": "hang", "match": "hang"},
    {"fault": "hang", "seconds": 0.1, "path": "/metrics"},
]


def body(text: str, **fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}


class Reply(msgspec.Struct):
    """A reply's status, headers and whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        """The error in it."""
        return json.loads(self.body)["error"]


async def ask(session: aiohttp.ClientSession, text: str, **fields: Any) -> Reply:
    """Ask it, on whatever connection is free."""
    async with session.post(CHAT, json=body(text, **fields)) as reply:
        return Reply(reply.status, reply.headers, await reply.read())


async def until_refused(session: aiohttp.ClientSession) -> None:
    """Wait until nobody listens any more."""
    async with asyncio.timeout(10):
        while True:
            try:
                async with session.get("/version"):
                    pass
            except aiohttp.ClientConnectorError:
                return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[FakeEngineHandle]:
    """One with all the faults that let it live."""
    async with running_fake_engine(faults=ON_DEMAND) as handle:
        yield handle


@pytest_asyncio.fixture(loop_scope="module")
async def session(engine: FakeEngineHandle) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections of this test's own."""
    async with aiohttp.ClientSession(engine.url) as session:
        yield session


@pytest.mark.asyncio(loop_scope="module")
class TestOnDemand:
    """Faults that a request asks for by its words."""

    async def test_none(self, session: aiohttp.ClientSession):
        """Whoever says no such word is answered."""
        assert (await ask(session, "hello")).status == 200

    @pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
    async def test_reset_before_the_first_byte(
        self, session: aiohttp.ClientSession, fields: dict[str, bool]
    ):
        """RST, not an orderly end."""
        with pytest.raises(aiohttp.ClientOSError) as caught:
            await ask(session, "reset at once", **fields)
        assert caught.value.errno == errno.ECONNRESET

    @pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
    async def test_reset_in_the_body(self, session: aiohttp.ClientSession, fields: dict[str, bool]):
        """The head and a part of the body came; of a stream, whole events."""
        part = b""

        async def read(reply: aiohttp.ClientResponse) -> None:
            nonlocal part
            while True:
                part += await reply.content.readany()

        async with session.post(CHAT, json=body("reset midway", **fields)) as reply:
            assert reply.status == 200
            with pytest.raises(aiohttp.ClientPayloadError, match="reset by peer"):
                await read(reply)
        assert b"chatcmpl-" in part
        assert b"[DONE]" not in part

    async def test_truncated(self, session: aiohttp.ClientSession):
        """200 and the length is right, but it is no JSON; the connection lives."""
        reply = await ask(session, "truncated")
        assert reply.status == 200
        assert int(reply.headers["Content-Length"]) == len(reply.body)
        with pytest.raises(json.JSONDecodeError):
            json.loads(reply.body)

    async def test_a_truncated_stream(self, session: aiohttp.ClientSession):
        """It ends in order, without [DONE] and without a reason."""
        said = (await ask(session, "truncated", stream=True)).body
        assert said.endswith(b"\n\n")
        assert b"[DONE]" not in said
        assert b'"finish_reason":"' not in said

    async def test_the_keep_alive_race(self, engine: FakeEngineHandle):
        """A new connection is served; the kept one is closed under the request, without a byte."""
        asked = json.dumps(body("race")).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asked)}\r\n\r\n".encode()
        port = int(engine.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + asked)
        first = await reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 200")
        await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", first)[0]))
        writer.write(head + asked)
        assert await reader.read() == b""
        writer.close()

    async def test_something_else_is_said(self, session: aiohttp.ClientSession):
        """Status 200, JSON, and not what the endpoint would have answered."""
        async with session.post("/reset_prefix_cache") as reply:
            assert (reply.status, await reply.json()) == (200, {"success": False})

    async def test_a_status_with_retry_after(self, session: aiohttp.ClientSession):
        """The header and vLLM's shape of an error."""
        reply = await ask(session, "busy")
        assert (reply.status, reply.headers["Retry-After"]) == (429, "3")
        assert reply.error["type"] == "TooManyRequests"

    async def test_counted(self, session: aiohttp.ClientSession):
        """Every third, and the second and the fourth; each fault counts for itself."""
        statuses = [(await ask(session, "every third")).status for _ in range(7)]
        assert statuses == [200, 200, 502, 200, 200, 502, 200]
        statuses = [(await ask(session, "second and fourth")).status for _ in range(5)]
        assert statuses == [200, 503, 200, 503, 200]

    async def test_hanging(self, session: aiohttp.ClientSession):
        """No byte, while others are answered."""
        asked = asyncio.create_task(ask(session, "hang"))
        assert (await ask(session, "hello")).status == 200
        assert not (await asyncio.wait({asked}, timeout=0.2))[0]
        asked.cancel()

    async def test_slow_metrics(self, session: aiohttp.ClientSession):
        """Late, but whole; /health is as quick as ever."""
        begun = time.monotonic()
        async with session.get("/metrics") as reply:
            assert "vllm:num_requests_running" in await reply.text()
        assert time.monotonic() - begun >= 0.1

    async def test_every_kind_of_prompt_is_matched(self, engine: FakeEngineHandle):
        """Texts, token ids, and parts of a message."""
        parts = [{"type": "text", "text": "so bu"}, {"type": "text", "text": "sy"}]
        async with aiohttp.ClientSession(engine.url) as session:
            async with session.post("/tokenize", json={"prompt": "very busy"}) as reply:
                ids = (await reply.json())["tokens"]
            for path, asked in (
                (CHAT, {"messages": [{"role": "user", "content": parts}]}),
                ("/v1/completions", {"prompt": "busy"}),
                ("/v1/completions", {"prompt": ids}),
            ):
                async with session.post(path, json=asked) as reply:
                    assert reply.status == 429, path


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["500", "reset", "hang"])
async def test_a_killer_takes_with_it_what_is_under_way(reply: str):
    """The killer, a whole answer and a stream; then the process ends."""
    faults = [{"fault": "die", "match": "poison", "reply": reply, "delay": 0.05}]
    async with (
        running_fake_engine(faults=faults, token_latency=0.2) as engine,
        aiohttp.ClientSession(engine.url) as session,
    ):
        texts = ("hello", "poison", "again")
        asked = [ask(session, text, stream=text == "again") for text in texts]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        await until_refused(session)
    if reply != "500":
        assert all(isinstance(r, aiohttp.ClientError) for r in replies), replies
        return
    whole, killer, stream = replies
    assert isinstance(whole, Reply)
    assert isinstance(killer, Reply)
    assert isinstance(stream, Reply)
    assert (whole.status, killer.status, stream.status) == (500, 500, 200)
    assert whole.error == killer.error == DEAD
    events = stream.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["error"] == DEAD


@pytest.mark.slow
@pytest.mark.parametrize(("health", "status"), [(503, 500), (200, 500), (200, None)])
async def test_a_process_that_outlives_its_engine(health: int, status: int | None):
    """/health says so, or lies; models and metrics are there; nobody is answered."""
    death = {"fault": "die", "nth": [2], "lives": True, "health": health}
    death["reply"] = "hang" if status is None else "500"
    patience = aiohttp.ClientTimeout(total=0.2)
    async with (
        running_fake_engine(faults=[death]) as engine,
        aiohttp.ClientSession(engine.url, timeout=patience) as session,
    ):
        assert (await ask(session, "one")).status == 200
        for text in ("two", "three"):
            if status is None:
                with pytest.raises(TimeoutError):
                    await ask(session, text)
            else:
                assert (await ask(session, text)).status == status
        for path, expected in (("/health", health), ("/v1/models", 200), ("/metrics", 200)):
            async with session.get(path) as reply:
                assert reply.status == expected, path


def test_the_first_fault_in_the_list_wins_and_all_count():
    """So that what a fault does never depends on another."""
    faults = Faults([Status(status=500, nth=(2,)), Status(status=429)])
    asked = Asked(path=CHAT, text="", reused=False)
    statuses = [found.status for _ in range(3) if isinstance(found := faults.of(asked), Status)]
    assert statuses == [429, 500, 429]


@pytest.mark.parametrize(
    "given", ['[{"fault": "dye"}]', '[{"fault": "die", "wenn": 1}]', '{"fault": "die"}', "[{}]"]
)
def test_what_is_no_fault_is_refused(given: str):
    """At the start: a test with a misspelt fault would pass for the wrong reason."""
    with pytest.raises((msgspec.ValidationError, OSError)):
        Faults.parse(given, state=None)


def test_faults_from_a_file(tmp_path: Path):
    """For those too long for a variable."""
    path = tmp_path / "faults.json"
    path.write_text('[{"fault": "truncate"}]')
    assert Faults.parse(str(path), state=None)
    assert not Faults.parse(None, state=None)
