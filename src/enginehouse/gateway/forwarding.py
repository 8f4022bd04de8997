"""Requests on their way to the engine, and answers on their way back."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from enginehouse.client.exchange import Reply
from enginehouse.core.errors import (
    BadRequestError,
    EnginehouseError,
    ServerError,
    UnknownModelError,
    UnsupportedError,
)
from enginehouse.core.sampler import Usage
from enginehouse.deployment.base import Deployment
from enginehouse.dialects.openai_errors import stream_error
from enginehouse.gateway.adapters import AdapterFolder
from enginehouse.gateway.configuration import GatewayOptions
from enginehouse.gateway.errors import (
    FAILED,
    STOPPING,
    error_body,
    event_of,
    last_event,
    refusal_of,
)
from enginehouse.gateway.http_server import JSON, ClientGoneError, Refusal, Request, Response
from enginehouse.gateway.metrics import Metrics
from enginehouse.gateway.models import Models, NamedModel
from enginehouse.gateway.recorder import RecordedReply, RecordedRequest, Recorder
from enginehouse.gateway.requests import Body, read_body, with_model
from enginehouse.gateway.streams import is_last, require_unaborted, whole_events
from enginehouse.gateway.usage import reported_usage, streamed_usage
from enginehouse.runtime.context import Notify

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
MODELS: Final = "/v1/models"
_PASSED: Final = (CHAT, COMPLETIONS, EMBEDDINGS, "/tokenize", "/detokenize")
EVENTS: Final = b"text/event-stream; charset=utf-8"
_RETRY_SOON: Final = ((b"retry-after", b"1"),)

_Handler = Callable[[Request, Response], Awaitable[None]]


class Forwarding:
    """The gateway's Application: answers each path, from the deployment where it can.

    `failure` ends with the error that ends the deployment, of which nothing can be asked any more.
    """

    def __init__(
        self,
        deployment: Deployment,
        options: GatewayOptions,
        *,
        api_key: str | None,
        recorder: Recorder | None,
        adapters: AdapterFolder | None,
        notify: Notify,
    ) -> None:
        self.max_body = options.limits.max_body
        self.metrics = Metrics()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.models = Models(deployment, adapters=adapters)
        self._recorder = recorder
        self._deployment = deployment
        self._sampler = deployment.sampler
        self._max_in_flight = options.limits.max_in_flight
        self._key = api_key.encode() if api_key else None
        self._notify = notify
        self._routes: dict[str, tuple[str, _Handler]] = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._show_metrics),
            "/version": ("GET", self._version),
            MODELS: ("GET", self._list_models),
            **dict.fromkeys(_PASSED, ("POST", self._forward)),
        }

    # Application

    def admit(self, request: Request) -> Refusal | None:
        """See Application: the path, the method, the key, and how much is in flight.

        A request is in flight from its headers on, so that bodies which arrive slowly count, too.
        """
        if self._key is not None and request.path != "/health":
            kind, _, key = request.headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                return self._refusal(
                    401,
                    "the request carries no API key of this gateway",
                    code="invalid_api_key",
                    fix="send the header Authorization: Bearer KEY (OPENAI_API_KEY)",
                )
        route = self._route(request)
        if route is None:
            return self._refusal(
                404,
                f"the gateway has no path {request.path[:200]!r}",
                code="unknown_path",
                fix=f"it has {', '.join(self._routes)}; the base URL of clients ends in /v1",
            )
        if request.method != route[0] and (request.method, route[0]) != ("HEAD", "GET"):
            return self._refusal(
                405,
                f"{request.path} takes {route[0]}, not {request.method}",
                code="method_not_allowed",
                headers=((b"allow", route[0].encode()),),
            )
        if route[0] == "GET":
            return None
        if self.metrics.in_flight >= self._max_in_flight:
            return self._refusal(
                503,
                f"{self._max_in_flight} requests are in flight, the most this gateway accepts",
                code="too_many_requests",
                fix="retry after a moment, send fewer at once, or raise --max-in-flight",
                headers=_RETRY_SOON,
            )
        request.in_flight = True
        self.metrics.in_flight += 1
        return None

    def release(self, request: Request) -> None:
        """See Application."""
        if request.in_flight:
            request.in_flight = False
            self.metrics.in_flight -= 1

    def _route(self, request: Request) -> tuple[str, _Handler] | None:
        """The method that a path takes, and what answers it."""
        if request.path.startswith(f"{MODELS}/"):
            return "GET", self._show_model
        return self._routes.get(request.path)

    def refuse_size(self) -> Refusal:
        """See Application."""
        return self._refusal(
            413,
            f"the request's body has more than {self.max_body} bytes",
            code="body_too_large",
            fix="send less at once, or start the gateway with a larger --max-body",
        )

    def refuse_syntax(self, why: str) -> Refusal:
        """See Application."""
        return self._refusal(400, f"this is not an HTTP/1.1 request: {why}", code="not_http")

    def refuse_stopping(self) -> Refusal:
        """See Application."""
        self.metrics.refuse(STOPPING.status)
        return STOPPING

    async def answer(self, request: Request, response: Response) -> None:
        """See Application. Errors are answered; unexpected ones are reported, too."""
        metrics = self.metrics
        route = self._route(request)
        assert route is not None  # or it would have been refused
        started = time.perf_counter()
        try:
            await route[1](request, response)
        except ClientGoneError:
            metrics.abandoned += 1
            raise
        except EnginehouseError as error:
            if isinstance(error, ServerError) and not self.failure.done():
                self.failure.set_exception(error)
                self.failure.exception()  # whether or not somebody waits for it
            self._end(response, refusal_of(error), event=event_of(error))
        except Exception as error:  # noqa: BLE001 - the gateway goes on for all others
            self._notify(f"the gateway failed to handle a request: {type(error).__name__}: {error}")
            self._end(response, FAILED, event=last_event(FAILED.body))
        except asyncio.CancelledError:
            if response.client_gone:
                metrics.abandoned += 1
            else:
                self._end(response, STOPPING, event=last_event(STOPPING.body))
            raise
        finally:
            # One label for all names: clients can invent any number of them.
            path = request.path if request.path in self._routes else f"{MODELS}/NAME"
            metrics.count_answer(started, path=path, status=response.status)

    def _end(self, response: Response, refusal: Refusal, *, event: bytes) -> None:
        """End the answer with an error: with `event` if it is a stream that has begun."""
        if response.complete:
            return
        if response.begun:
            self.metrics.broken += 1
            response.break_off(event)
        else:
            response.send(refusal.status, refusal.body, headers=refusal.headers)

    def _refusal(
        self,
        status: int,
        message: str,
        *,
        code: str,
        fix: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Refusal:
        self.metrics.refuse(status)
        shown = f"{message}; {fix}" if fix else message
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return Refusal(status, error_body(shown, kind=kind, code=code), headers)

    # routes

    async def _forward(self, request: Request, response: Response) -> None:
        self._require_endpoint(request.path)
        body = read_body(request.body)
        named = await self.models.find(body.model)
        recorded = await self._recorded(request, named)
        if recorded is not None and recorded.reply is not None:
            await self._replay(recorded.reply, response)
            return
        async with self.models.held(named) as model:
            content = request.body if model == body.model else with_model(request.body, model)
            if body.stream:
                await self._stream(request.path, content, body, model, response, recorded)
                self.metrics.completed += 1
                return
            reply = await self._ask(
                request.path, content, body, model, decode=_require_whole_answer
            )
            self.metrics.count_tokens(reported_usage(reply.wire.body))
            await self._record(recorded, reply, [reply.wire.body], content_type=JSON)
            response.send(200, reply.wire.body)
            self.metrics.completed += 1

    async def _recorded(self, request: Request, named: NamedModel) -> RecordedRequest | None:
        if self._recorder is None:
            return None
        return await self._recorder.find(
            request.path, request.body, adapter_digest=named.adapter_digest
        )

    async def _replay(self, reply: RecordedReply, response: Response) -> None:
        self.metrics.replayed += 1
        content_type = reply.content_type.encode()
        if not reply.streamed:
            response.send(200, reply.body, content_type=content_type)
            return
        response.begin_stream(content_type=content_type)
        await response.send_piece(reply.body)
        response.end_stream()

    async def _record(
        self,
        recorded: RecordedRequest | None,
        reply: Reply,
        pieces: list[bytes],
        *,
        content_type: bytes,
    ) -> None:
        """Record an answer before its last piece is sent: what a client has is not asked again."""
        if recorded is None or self._recorder is None:
            return
        whole = RecordedReply(
            body=b"".join(pieces),
            content_type=content_type.decode(),
            streamed=content_type == EVENTS,
        )
        await self._recorder.record(recorded, whole, weights_digest=reply.weights_digest)

    async def _stream(
        self,
        path: str,
        content: bytes,
        body: Body,
        model: str,
        response: Response,
        recorded: RecordedRequest | None,
    ) -> None:
        reply = await self._send(
            path, content, body, model, streamed=True, decode_event=_require_no_error
        )
        chunks = reply.wire.chunks
        assert chunks is not None, "the request was for a stream"
        try:
            content_type = reply.wire.headers.get("Content-Type", "")
            if not content_type.startswith("text/event-stream"):
                response.send(200, b"".join([chunk async for chunk in chunks]))
                return
            response.begin_stream(content_type=EVENTS)
            pieces: list[bytes] = []
            usage: Usage | None = None
            async for piece in whole_events(chunks):
                usage = streamed_usage(piece) or usage
                if recorded is not None:
                    pieces.append(piece)
                    if is_last(piece):
                        await self._record(recorded, reply, pieces, content_type=EVENTS)
                await response.send_piece(piece)
            response.end_stream()
            if usage is not None:
                self.metrics.count_tokens(usage)
        finally:
            reply.close()

    async def _ask(
        self,
        path: str,
        content: bytes,
        body: Body,
        model: str,
        *,
        decode: Callable[[Reply], object],
    ) -> Reply:
        try:
            return await self._send(path, content, body, model, decode=decode)
        except BadRequestError as error:
            if error.status in (404, 405) and not isinstance(error, UnknownModelError):
                raise self._lacking(path) from None
            raise

    async def _send(self, path: str, content: bytes, body: Body, model: str, **how: Any) -> Reply:
        """The sampler's reply; once more if the server has forgotten an adapter in a restart."""
        forward = partial(
            self._sampler.forward,
            path,
            content,
            model=model,
            scores=body.scores,
            **how,
        )
        try:
            return await forward()
        except UnknownModelError:
            if self.models.adapters is None or model not in self.models.adapters.served_names():
                raise
            await self.models.adapters.restore()
            return await forward()

    def _require_endpoint(self, path: str) -> None:
        wire = self._deployment.engine.wire
        for own, dialect in ((CHAT, wire.chat), (COMPLETIONS, wire.completions)):
            if path == own and (dialect is None or dialect.path != path):
                raise self._lacking(path)

    def _lacking(self, path: str) -> UnsupportedError:
        return UnsupportedError(
            f"the engine {self._deployment.engine.name} does not offer {path} for this model",
            fix="use another path, or serve the model with another engine",
            status=404,
        )

    async def _health(self, request: Request, response: Response) -> None:
        del request
        response.send(200, b'{"status":"ok"}')

    async def _show_metrics(self, request: Request, response: Response) -> None:
        del request
        response.send(
            200, self.metrics.text(), content_type=b"text/plain; version=0.0.4; charset=utf-8"
        )

    async def _version(self, request: Request, response: Response) -> None:
        del request
        server = self._deployment.server
        response.send(200, msgspec.json.encode({"version": server.version or "unknown"}))

    async def _list_models(self, request: Request, response: Response) -> None:
        del request
        data = [_model(name) for name in await self.models.names()]
        response.send(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _show_model(self, request: Request, response: Response) -> None:
        named = await self.models.find(unquote(request.path.removeprefix(f"{MODELS}/")))
        response.send(200, msgspec.json.encode(_model(named.name)))


def _model(name: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "enginehouse"}


def _require_whole_answer(reply: Reply) -> None:
    require_unaborted(reply.wire.body)


def _require_no_error(event: bytes) -> None:
    if (error := stream_error(event)) is not None:
        raise error
