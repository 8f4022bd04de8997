"""Polls over HTTP, as the SDK sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginehouse.runtime.http_service import listening, running
from enginehouse.tinker.application import make_application
from enginehouse.tinker.future import Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import Guard
from enginehouse.tinker.routes.futures import futures_routes
from enginehouse.tinker.wire.schema import PROTOBUF

JSON = "application/json"


@dataclass
class Service:
    """The routes, served on loopback, and a client of the user ann."""

    futures: Futures
    client: aiohttp.ClientSession
    port: int

    async def accept(self, seq_id: int = 1, *, user: str = "ann", kind: str = "sample") -> Future:
        """A sample of session s."""
        return await self.futures.accept(
            key=f"{user}:{kind}:{seq_id}",
            kind=kind,
            user=user,
            body=b"{}",
            content_type=JSON,
            details={"sampling_session_id": "s", "seq_id": seq_id},
        )

    async def post(self, route: str, body: Any, **headers: str) -> tuple[int, str, Any]:
        """The reply's status, type and content, decoded if it is JSON."""
        async with self.client.post(f"/api/v1/{route}", json=body, headers=headers) as reply:
            content = await reply.read()
            decoded = json.loads(content) if reply.content_type == JSON else content
            return reply.status, reply.content_type, decoded

    async def until_polled(self, count: int = 1) -> None:
        """Return when that many clients wait."""
        while self.futures.polls != count:  # noqa: ASYNC110 (nothing tells when a poll begins)
            await asyncio.sleep(0)


@pytest.fixture(params=[60.0])
async def service(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """Polls are held for a minute, or as the parameter says (seconds)."""
    futures = Futures.open(tmp_path)
    routes = make_application([futures_routes(futures, longest_poll=request.param)])
    service = Guard(routes, authenticate=lambda key: key, largest_body=1 << 20)
    with listening(None, option="--port") as listener:
        async with (
            running(service, listener) as server,
            aiohttp.ClientSession(server.url, headers={"X-API-Key": "ann"}) as client,
        ):
            yield Service(futures, client, listener.getsockname()[1])
            futures.release()
    await futures.close()


briefly = pytest.mark.parametrize("service", [0.001], indirect=True)


async def test_a_poll_is_held_until_the_answer_is_there(service):
    """Protobuf stays protobuf, byte for byte."""
    future = await service.accept()
    poll = asyncio.create_task(
        service.post("retrieve_future", {"request_id": future.request_id}, Accept=PROTOBUF)
    )
    await service.until_polled()
    await service.futures.finish(future, b"\x00\xff", content_type=PROTOBUF)
    assert await poll == (200, PROTOBUF, b"\x00\xff")


@briefly
async def test_a_waiting_client_is_told_why(service):
    """With what the SDK logs for its user."""
    future = await service.accept()
    asked = {"request_id": future.request_id, "allow_metadata_only": True}
    reply = {"type": "try_again", "request_id": future.request_id, "queue_state": "active"}
    expected = reply | {"queue_state_reason": None}
    assert await service.post("retrieve_future", asked) == (200, JSON, expected)
    service.futures.hold(future, "12 samples are before it", state="paused_capacity")
    expected = reply | {
        "queue_state": "paused_capacity",
        "queue_state_reason": "12 samples are before it",
    }
    assert await service.post("retrieve_future", asked) == (200, JSON, expected)


async def test_json_answers_and_failures(service):
    """A failure is 200 too: any other status would be retried, or lose the category."""
    future = await service.accept(1, kind="optim_step")
    await service.futures.finish(future, b'{"metrics":{}}', content_type=JSON)
    asked = {"request_id": future.request_id}
    assert await service.post("retrieve_future", asked) == (200, JSON, {"metrics": {}})
    future = await service.accept(2)
    await service.futures.fail(future, "NaN in datum 0", category="user")
    asked = {"request_id": future.request_id}
    expected = {"error": "NaN in datum 0", "category": "user"}
    assert await service.post("retrieve_future", asked, Accept=PROTOBUF) == (200, JSON, expected)


async def test_the_size_of_a_large_answer_is_told_first(service):
    """To a client that asks for that; then it fetches the answer itself."""
    future = await service.accept()
    payload = bytes(range(256)) * 300
    await service.futures.finish(future, payload, content_type=PROTOBUF)
    asked = {"request_id": future.request_id, "allow_metadata_only": True}
    expected = {"status": "complete_metadata", "response_payload_size": 76_800}
    reply = await service.post("retrieve_future", asked, Accept=PROTOBUF)
    assert reply == (200, JSON, expected)
    asked = {"request_id": future.request_id, "allow_metadata_only": False}
    reply = await service.post("retrieve_future", asked, Accept=PROTOBUF)
    assert reply == (200, PROTOBUF, payload)


async def test_an_answer_that_the_disk_lost_is_a_failure(service):
    """Not a 500, at which the SDK would ask again without end."""
    future = await service.accept()
    await service.futures.finish(future, b"x" * 100_000, content_type=PROTOBUF)
    service.futures._journal.answer_path(future.request_id).unlink()
    asked = {"request_id": future.request_id}
    status, _, reply = await service.post("retrieve_future", asked, Accept=PROTOBUF)
    assert (status, reply["category"]) == (200, "server")
    assert "cannot read" in reply["error"]


async def test_protobuf_is_not_turned_into_json(service):
    """An old client is told what is the matter, and does not try again."""
    future = await service.accept()
    await service.futures.finish(future, b"x", content_type=PROTOBUF)
    status, _, reply = await service.post("retrieve_future", {"request_id": future.request_id})
    assert status == 406
    assert "protobuf only" in reply["detail"]


@pytest.mark.parametrize(("kind", "status"), [("sample", 410), ("optim_step", 404)])
async def test_the_futures_of_others_are_unknown(service, kind, status):
    """To retrieve, and to cancel."""
    theirs = await service.accept(user="bob", kind=kind)
    asked = {"request_id": theirs.request_id}
    for route in ("retrieve_future", "cancel_future"):
        assert (await service.post(route, asked))[0] == status


@pytest.mark.parametrize(
    ("route", "body", "said"),
    [
        ("retrieve_future", {}, "request_id"),
        ("retrieve_future", {"request_id": "x", "priority": 1}, "priority"),
        ("retrieve_futures", {"target": {"type": "model", "sampling_session_id": "s"}}, "type"),
        ("retrieve_futures", {"target": {"sampling_session_id": "s", "shard": 1}}, "shard"),
        ("cancel_future", {"request_id": 3}, "request_id"),
    ],
)
async def test_a_wrong_body_is_named(service, route, body, said):
    """400, with the field."""
    status, _, reply = await service.post(route, body)
    assert status == 400
    assert said in reply["detail"]


async def test_a_session_is_polled_as_a_whole(service):
    """Held until the first answer; sizes are told; acknowledged answers are deleted."""
    first, second = await service.accept(1), await service.accept(2)
    target = {"type": "sampling_session", "sampling_session_id": "s", "cloned_sampler_id": 0}
    asked = {"target": target, "prev_cursor": 0, "retrieved_request_ids": []}
    poll = asyncio.create_task(service.post("retrieve_futures", asked))
    await service.until_polled()
    await service.futures.finish(first, b"12345", content_type=PROTOBUF)
    _, _, reply = await poll
    finished = {
        "state": "finished",
        "request_id": first.request_id,
        "response_payload_uncompressed_size": 5,
    }
    assert reply["completions"] == [finished]
    await service.futures.cancel(second.request_id, user="ann")
    asked |= {"prev_cursor": reply["cursor"], "retrieved_request_ids": [first.request_id]}
    _, _, reply = await service.post("retrieve_futures", asked)
    assert reply["completions"] == [{"state": "failed", "request_id": second.request_id}]
    assert service.futures.accepted(first.key) is None
    asked |= {"prev_cursor": reply["cursor"], "timeout": 0}
    _, _, last = await service.post("retrieve_futures", asked)
    assert last == {"completions": [], "cursor": reply["cursor"]}


async def test_a_sample_is_cancelled(service):
    """And the one that polls it learns it at once."""
    future = await service.accept()
    asked = {"request_id": future.request_id}
    poll = asyncio.create_task(service.post("retrieve_future", asked))
    await service.until_polled()
    assert await service.post("cancel_future", asked) == (200, JSON, {})
    expected = {"error": "the request was cancelled", "category": "user"}
    assert await poll == (200, JSON, expected)
    assert await service.post("cancel_future", asked) == (200, JSON, {})


@pytest.mark.parametrize("route", ["retrieve_future", "retrieve_futures"])
async def test_a_client_that_disconnects_leaves_nothing(service, route):
    """No poll, and no task."""
    future = await service.accept()
    target = {"sampling_session_id": "s"}
    body = {"request_id": future.request_id} if route == "retrieve_future" else {"target": target}
    content = json.dumps(body).encode()
    head = f"POST /api/v1/{route} HTTP/1.1\r\nhost: x\r\nx-api-key: ann\r\n"
    tasks = asyncio.all_tasks()
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    await service.until_polled(1)
    writer.close()
    await writer.wait_closed()
    await service.until_polled(0)
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - tasks:  # noqa: ASYNC110 (nothing tells when they end)
            await asyncio.sleep(0)
    assert service.futures.polls == 0
