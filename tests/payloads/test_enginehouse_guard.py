"""vLLM's guard: who may ask what, with which key."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from enginehouse.payloads.middleware.enginehouse_guard import ADMIN_KEY, API_KEY, Guard

USER, ADMIN = "the-us3rs", "the-adm1ns"
ANSWERS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/models",
    "/tokenize",
    "/invocations",
    "/metrics",
    "/docs",
    "/ping",
    "/version",
)
ADMINISTRATION = (
    "/pause",
    "/resume",
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/update_weights",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/scale_elastic_ep",
    "/start_profile",
    "/server_info",
    "/adapters",
    "/an-endpoint-of-next-year",
    "/v1/an-endpoint-of-next-year",
    "/pause/",
    "//pause",
    "/v1/completions-of-mine",
    "/v1/models/../../pause",
    "",
)


class Asked:
    """An application behind the guard; `status` is what a client would get."""

    def __init__(self, *, user: bool, admin: bool = True) -> None:
        environment = ({API_KEY: USER} if user else {}) | ({ADMIN_KEY: ADMIN} if admin else {})
        self.guard = Guard(self._application, environment)
        self.reached = False
        self.sent: list[MutableMapping[str, Any]] = []

    async def _application(self, *_: Any) -> None:
        self.reached = True

    async def __call__(self, path: str, key: str | None = None, **scope: Any) -> bool:
        """Whether a request comes through."""
        self.reached, self.sent = False, []
        headers = scope.pop("headers", [])
        if key is not None:
            headers = [*headers, (b"authorization", f"Bearer {key}".encode())]
        whole = {"type": "http", "method": "POST", "path": path, "headers": headers} | scope

        async def send(message: MutableMapping[str, Any]) -> None:
            self.sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "websocket.connect"}

        await self.guard(whole, receive, send)
        assert self.reached != bool(self.sent), "either the application answers or the guard"
        return self.reached


@pytest.mark.parametrize("path", ANSWERS)
async def test_answers_without_a_user_key_are_free(path: str):
    """As vLLM gives them on a loopback address; a key that somebody sends all the same is fine."""
    asked = Asked(user=False)
    assert [await asked(path, key) for key in (None, "any", ADMIN)] == [True, True, True]


@pytest.mark.parametrize("path", ANSWERS)
async def test_answers_with_a_user_key_demand_it(path: str):
    """On every path, where vLLM looks below /v1 only."""
    asked = Asked(user=True)
    keys = (None, "", "any", USER[:-1], USER + "x", USER, ADMIN)
    assert [await asked(path, key) for key in keys] == [*[False] * 5, True, True]


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("path", ADMINISTRATION)
async def test_what_changes_a_server_demands_the_administrative_key(path: str, *, user: bool):
    """What this file has never heard of, too; the user's key is not enough."""
    asked = Asked(user=user)
    keys = (None, "any", USER, ADMIN)
    assert [await asked(path, key) for key in keys] == [False, False, False, True]


async def test_without_an_administrative_key_nobody_administers():
    """A server that was started by hand with the middleware is closed, not open."""
    asked = Asked(user=False, admin=False)
    assert not await asked("/pause")
    assert not await asked("/pause", "")
    assert await asked("/v1/completions")


@pytest.mark.parametrize("user", [False, True])
async def test_liveness_needs_no_key(*, user: bool):
    """A health check has no key."""
    assert await Asked(user=user)("/health")


async def test_only_bearer_counts_in_any_case():
    """As RFC 6750 has it, and as vLLM reads it."""
    asked = Asked(user=True)
    for scheme, admitted in (
        (b"bearer ", True),
        (b"BEARER ", True),
        (b"Basic ", False),
        (b"", False),
    ):
        headers = [(b"authorization", scheme + USER.encode())]
        assert await asked("/v1/models", headers=headers) is admitted, scheme


async def test_a_second_header_does_not_count():
    """The first one is what vLLM would read."""
    asked = Asked(user=True)
    headers = [(b"authorization", b"Bearer wrong")]
    assert not await asked("/v1/models", USER, headers=headers)


async def test_below_a_root_path_the_same_holds():
    """--root-path moves every route."""
    asked = Asked(user=False)
    assert await asked("/prefix/v1/models", root_path="/prefix")
    assert not await asked("/prefix/pause", root_path="/prefix")
    assert not await asked("/prefix/v1/models")


async def test_browsers_may_ask_whether_they_may_ask():
    """A preflight has no key, and reaches no endpoint: vLLM's CORS middleware answers it."""
    asked = Asked(user=True)
    origin = (b"origin", b"http://page.example")
    wants = (b"access-control-request-method", b"POST")
    assert await asked("/v1/completions", method="OPTIONS", headers=[origin, wants])
    assert not await asked("/v1/completions", method="OPTIONS", headers=[origin])
    assert not await asked("/pause", method="OPTIONS")
    assert not await asked("/pause", headers=[origin, wants])


async def test_sockets_are_closed_before_they_are_accepted():
    """The realtime endpoint is one."""
    asked = Asked(user=True)
    assert not await asked("/v1/realtime", type="websocket")
    assert [message["type"] for message in asked.sent] == ["websocket.close"]
    assert await asked("/v1/realtime", ADMIN, type="websocket")


async def test_the_servers_life_is_none_of_its_business():
    """Start-up and shut-down come through the same door."""
    assert await Asked(user=True)("", type="lifespan")


async def test_a_refusal_is_an_error_as_the_api_has_them():
    """Status, the header that goes with it, and a body that OpenAI's client reads; no key in it."""
    asked = Asked(user=True)
    await asked("/pause", USER)
    start, body = asked.sent
    headers = dict(start["headers"])
    assert (start["status"], headers[b"www-authenticate"]) == (401, b"Bearer")
    assert int(headers[b"content-length"]) == len(body["body"])
    error = json.loads(body["body"])["error"]
    assert error["code"] == 401
    assert "administrative" in error["message"]
    assert USER not in error["message"]
