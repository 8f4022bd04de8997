"""What the fake vendors have in common: keys, quotas, planned replies, and running one."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from enginehouse.testing.fake_engine import tokenizer
from enginehouse.testing.fake_engine.model import Answer, Model, Question
from enginehouse.testing.fake_engine.requests import Sampling, StructuredOutputs

_encode = msgspec.json.encode
_ALIKE = ("top_k", "min_p", "repetition_penalty")  # every vendor that has them calls them so


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A reply that a test chose; in a stream it comes after `after` events, as its last."""

    status: int = 200
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int | None = None

    def response(self) -> web.Response:
        """The reply, when it is one by itself; a body of bytes is sent as it is."""
        body = self.body if isinstance(self.body, bytes) else _encode(self.body)
        kind = "application/json"
        return web.Response(status=self.status, body=body, headers=self.headers, content_type=kind)


@dataclass
class Quota:
    """So many requests in each window of so many seconds, the first beginning with the first."""

    requests: int
    window: float
    began: float = -math.inf
    used: int = 0

    def take(self) -> bool:
        """Count a request; false if it is one too many."""
        now = time.monotonic()
        if now - self.began >= self.window:
            self.began, self.used = now, 0
        self.used += 1
        return self.used <= self.requests

    @property
    def remaining(self) -> int:
        """How many more this window allows."""
        return max(0, self.requests - self.used)

    @property
    def reset(self) -> float:
        """Seconds until the next window."""
        return max(0.0, self.began + self.window - time.monotonic())


class Refused(Exception):  # noqa: N818 (not a fault of the program)
    """A request that the vendor refuses; what kind of body that makes is the vendor's."""

    def __init__(self, status: int, message: str, *, kind: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code


@dataclass(kw_only=True)
class FakeVendor:
    """One vendor's API; `requests` and `bodies` keep what generation was asked, in order.

    `plan` holds what the next generation requests get, None standing for an answer; after its end
    all are answered. `canned` maps regular expressions on the last user message to answers.
    """

    key: str = "fake-key"
    models: tuple[str, ...] = ("fake-model",)
    context: int = 8192
    canned: Mapping[str, str] = field(default_factory=dict)
    plan: Sequence[Planned | None] = ()
    quota: Quota | None = None
    requests: list[Mapping[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    url: str = ""

    def routes(self) -> list[web.RouteDef]:
        """Its endpoints."""
        raise NotImplementedError

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """One generation request, from its head to its last byte."""
        self.requests.append(dict(request.headers))
        self.times.append(time.monotonic())
        number = len(self.requests) - 1
        planned = self.plan[number] if number < len(self.plan) else None
        try:
            self.authenticate(request)
            self._take()
            body = msgspec.json.decode(await request.read())
            self.bodies.append(body)
            if planned is not None and planned.after is None:
                return planned.response()
            reply = self.answer(body)
            headers = {} if self.quota is None else self.quota_headers(self.quota)
            if isinstance(reply, list):
                return await _stream(request, reply, planned, headers)
            return web.json_response(reply, headers=headers)
        except Refused as refused:
            return self.refuse(refused)

    def _take(self) -> None:
        if self.quota is not None and not self.quota.take():
            raise Refused(429, "Rate limit reached", kind="rate_limit")

    async def list_models(self, request: web.Request) -> web.Response:
        """The list of models, for those who have a key."""
        try:
            self.authenticate(request)
        except Refused as refused:
            return self.refuse(refused)
        return web.json_response(self.model_list())

    def authenticate(self, request: web.Request) -> None:
        """Raise Refused for a request without the key."""
        raise NotImplementedError

    def answer(self, body: Any) -> Any:
        """The whole reply, or the list of a stream's chunks as they are sent."""
        raise NotImplementedError

    def error(self, refused: Refused) -> Any:
        """The body of a refusal."""
        raise NotImplementedError

    def quota_headers(self, quota: Quota) -> dict[str, str]:
        """What is left, as headers."""
        raise NotImplementedError

    def model_list(self) -> Any:
        """The body of the list of models."""
        raise NotImplementedError

    def refuse(self, refused: Refused) -> web.Response:
        """The reply to a refused request."""
        headers = {}
        if self.quota is not None and refused.status == 429:
            headers = self.quota_headers(self.quota) | {"retry-after": f"{self.quota.reset:.3f}"}
        return web.json_response(self.error(refused), status=refused.status, headers=headers)

    def sample(
        self, text: str, user_text: str, sampling: Sampling, schema: dict[str, Any] | None
    ) -> tuple[Question, list[Answer]]:
        """The fake engine's answers to a prompt; `user_text` is what canned ones are matched by."""
        asked = {name: self.bodies[-1].get(name) for name in _ALIKE}
        sampling = msgspec.structs.replace(sampling, **asked)
        question = Question(weights=self.models[0], ids=tokenizer.encode(text), user_text=user_text)
        structured = None if schema is None else StructuredOutputs(json=schema)
        answers = Model(self.canned).answers(
            question, sampling, budget=sampling.max_tokens or self.context, structured=structured
        )
        return question, answers


V = TypeVar("V", bound=FakeVendor)


@asynccontextmanager
async def running_fake_vendor(vendor: V) -> AsyncIterator[V]:
    """Serve a fake on a port from the kernel for the length of the block; its `url` is set."""
    application = web.Application(client_max_size=2**28)
    application.add_routes(vendor.routes())
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        vendor.url = f"http://{host}:{port}"
        yield vendor
    finally:
        await runner.cleanup()


async def _stream(
    request: web.Request, chunks: list[bytes], planned: Planned | None, headers: dict[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers | {"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if planned is not None:
        body = planned.body if isinstance(planned.body, bytes) else _encode(planned.body)
        chunks = [*chunks[: planned.after], b"data: " + body + b"\n\n"]
    for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response
