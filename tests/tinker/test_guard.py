"""What every request passes: its key, its size, its id, and the refusal of new work at the end."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.runtime.http_service import listening, running
from enginehouse.tinker.application import current_user, make_application
from enginehouse.tinker.bodies import read_json
from enginehouse.tinker.guard import Guard

KEY = {"X-API-Key": "tml-ada"}
Ask = Callable[..., Awaitable[tuple[int, Any, Mapping[str, str]]]]


class Question(StrictModel):
    """A body."""

    number: int
    text: str = ""


def routes() -> APIRouter:
    """Routes that do as the real ones do."""
    router = APIRouter()

    @router.post("/api/v1/optim_step")
    async def echo(request: Request) -> dict[str, Any]:
        body = await read_json(request, Question)
        return {"user": current_user(request), "number": body.number}

    @router.post("/api/v1/retrieve_future")
    async def poll(request: Request) -> dict[str, Any]:
        return {"user": current_user(request)}

    @router.post("/v1/completions")
    async def refuse() -> None:
        raise TinkerError("there is no such model", status=404)

    @router.get("/api/v1/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/status")
    async def status(request: Request) -> dict[str, Any]:
        return {"user": request.state.user}

    @router.post("/api/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    return router


@asynccontextmanager
async def served(guard: Guard) -> AsyncIterator[Ask]:
    """A client of a guarded application on a real socket."""
    with listening(None, option="--port") as listener:
        async with running(guard, listener) as service, aiohttp.ClientSession(service.url) as web:

            async def ask(method: str, path: str, **given: Any) -> Any:
                async with web.request(method, path, **given) as reply:
                    return reply.status, await reply.json(), reply.headers

            yield ask


def guarded(**changes: Any) -> Guard:
    """The routes, guarded; the only key is Ada's."""
    users = {"tml-ada": "ada"}
    given: dict[str, Any] = {"authenticate": users.get, "largest_body": 100_000} | changes
    return Guard(make_application([routes()]), **given)


async def test_the_key_says_who_asks():
    """In the SDK's header, or as a bearer."""
    async with served(guarded()) as ask:
        for headers in (KEY, {"Authorization": "Bearer tml-ada"}):
            status, answer, _ = await ask("POST", "/api/v1/retrieve_future", headers=headers)
            assert (status, answer) == (200, {"user": "ada"})


async def test_without_a_key_or_with_a_wrong_one_nothing_is_answered():
    """But health is."""
    async with served(guarded()) as ask:
        for headers in ({}, {"X-API-Key": "tml-eve"}, {"Authorization": "Basic tml-ada"}):
            status, answer, _ = await ask("POST", "/api/v1/retrieve_future", headers=headers)
            assert status == 401
            assert "key" in answer["detail"]
        assert (await ask("GET", "/api/v1/healthz"))[0] == 200


async def test_a_web_page_cannot_ask_in_its_readers_name():
    """A service that asks nobody on its own machine for a key would do whatever any page says."""
    everybody = Guard(make_application([routes()]), authenticate=lambda _: "local", largest_body=99)
    async with served(everybody) as ask:
        body, page = {"number": 1}, {"Origin": "https://example.org"}
        status, answer, _ = await ask("POST", "/api/v1/optim_step", json=body, headers=page)
        assert (status, "a web page needs an API key" in answer["detail"]) == (401, True)
        for headers in ({}, page | KEY):
            status, _, _ = await ask("POST", "/api/v1/optim_step", json=body, headers=headers)
            assert status == 200


async def test_an_operators_page_may_be_asked_for_on_loopback_by_nobody():
    """The page itself decides what it shows."""
    async with served(guarded()) as ask:
        assert (await ask("GET", "/status"))[1] == {"user": None}


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large_is_refused_while_it_is_read(chunked):
    """With the length announced, and without."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    async with served(guarded(largest_body=10_000)) as ask:
        data = parts() if chunked else b"x" * 10_001
        status, answer, _ = await ask("POST", "/api/v1/optim_step", headers=KEY, data=data)
        assert status == 413
        assert "larger than 10000 bytes" in answer["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b'{"number": 1, "nunber": 2}', "nunber"),
        (b'{"number": "many"}', "'number'"),
        (b"\xff\xfe", "not JSON"),
        (b'{"text": "%s"}' % (b"y" * 70_000), "'number' is missing"),  # decoded in a thread
    ],
)
async def test_a_body_that_is_not_understood_is_a_400_that_names_what(body, said):
    """Never a 422, and never a 500."""
    async with served(guarded()) as ask:
        status, answer, _ = await ask("POST", "/api/v1/optim_step", headers=KEY, data=body)
        assert status == 400
        assert said in answer["detail"]


async def test_an_unknown_route_is_named_with_the_nearest_and_all_there_are():
    """And so is a wrong method."""
    async with served(guarded()) as ask:
        status, answer, _ = await ask("POST", "/api/v1/optim_stepp", headers=KEY, data=b"{}")
        assert status == 404
        assert "POST /api/v1/optim_stepp is not supported" in answer["detail"]
        assert "did you mean POST /api/v1/optim_step?" in answer["detail"]
        assert "POST /api/v1/retrieve_future" in answer["supported"]
        assert (await ask("GET", "/api/v1/optim_step", headers=KEY))[0] == 405


async def test_openais_clients_are_answered_in_their_form():
    """An error object, not a detail."""
    async with served(guarded()) as ask:
        status, answer, _ = await ask("POST", "/v1/completions", headers=KEY, data=b"{}")
        assert status == 404
        assert answer["error"]["message"] == "there is no such model"


async def test_while_it_stops_new_work_is_refused_so_that_clients_try_again():
    """What clients ask about accepted work is still answered."""
    guard = guarded()
    async with served(guard) as ask:
        guard.draining = True
        status, answer, headers = await ask("POST", "/api/v1/optim_step", headers=KEY, data=b"{}")
        assert (status, headers["retry-after"]) == (503, "2")
        assert "stopping" in answer["detail"]
        assert (await ask("POST", "/api/v1/retrieve_future", headers=KEY))[0] == 200
        assert (await ask("GET", "/status"))[0] == 200


async def test_an_unexpected_error_is_logged_with_the_requests_id(caplog):
    """The client gets the id, and nothing of the traceback."""
    async with served(guarded()) as ask:
        with caplog.at_level(logging.INFO, "enginehouse.tinker.guard"):
            headers = KEY | {"X-Request-Id": "r-1"}
            status, answer, replied = await ask("POST", "/api/v1/broken", headers=headers)
    assert status == 500
    assert replied["x-request-id"] == "r-1"
    assert "r-1" in answer["detail"]
    (failure,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert failure.request_id == "r-1"  # type: ignore[attr-defined]
    assert failure.exc_info is not None


async def test_polls_that_go_well_are_not_logged(caplog):
    """Everything else is, with its user and status."""
    async with served(guarded()) as ask:
        with caplog.at_level(logging.INFO, "enginehouse.tinker.guard"):
            await ask("POST", "/api/v1/retrieve_future", headers=KEY)
            await ask("POST", "/api/v1/optim_step", headers=KEY, data=json.dumps({"number": 1}))
            await asyncio.sleep(0)
    logged = [record for record in caplog.records if record.name.endswith("guard")]
    assert [(r.path, r.status, r.user) for r in logged] == [  # type: ignore[attr-defined]
        ("/api/v1/optim_step", 200, "ada")
    ]
