"""Faults carried out: what stands between a request and its answer, and how an engine dies."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from enginehouse.testing.fake_engine.behaviour import ENGINE_DEAD, death_log
from enginehouse.testing.fake_engine.errors import ApiError
from enginehouse.testing.fake_engine.faults import (
    GENERATION,
    AnyFault,
    Asked,
    Close,
    Die,
    Faults,
    Hang,
    Reset,
    Say,
    Status,
    Truncate,
    text_of,
)
from enginehouse.testing.fake_engine.generation import CUT, ENGINE, STREAM

_SEND_RST = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time
Respond = Callable[[], Awaitable[web.StreamResponse]]


class Mortality:
    """Whether the engine lives: `death` is done when it does not. Made inside a running loop."""

    def __init__(self) -> None:
        self.death: asyncio.Future[Die] = asyncio.get_running_loop().create_future()

    def die(self, death: Die) -> None:
        """Log it as vLLM does and fail all requests in flight; with a signal, end at once."""
        if death.signal is not None:
            os.kill(os.getpid(), death.signal)
        elif not self.death.done():
            sys.stderr.write(death_log(death.cause))
            sys.stderr.flush()
            self.death.set_result(death)

    async def kill(self, death: Die) -> web.StreamResponse:
        """Die after the delay, without an answer."""
        await asyncio.sleep(death.delay)
        self.die(death)
        return await _never()

    async def while_alive(self, request: web.Request, respond: Respond) -> web.StreamResponse:
        """The response, or the reply of a dead engine if it dies first."""
        work = asyncio.ensure_future(respond())
        ends: set[asyncio.Future[Any]] = {work, self.death}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return await _dead_reply(request, self.death.result())


def injected(faults: Faults, mortality: Mortality) -> Middleware:
    """The middleware that lets the faults loose."""
    used: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    @web.middleware
    async def inject(request: web.Request, handler: Handler) -> web.StreamResponse:
        if mortality.death.done() and GENERATION.fullmatch(request.path):
            return await _dead_reply(request, mortality.death.result())
        text = text_of(await request.read())
        reused = request.transport in used
        if request.transport is not None:
            used.add(request.transport)
        fault = faults.of(Asked(path=request.path, text=text, reused=reused))
        if isinstance(fault, Die):
            return await mortality.while_alive(request, partial(mortality.kill, fault))
        respond = partial(_carry_out, fault, request, handler)
        if GENERATION.fullmatch(request.path):
            return await mortality.while_alive(request, respond)
        if request.path == "/health" and mortality.death.done():
            return web.Response(status=mortality.death.result().health)
        return await respond()

    return inject


async def _carry_out(
    fault: AnyFault | None, request: web.Request, handler: Handler
) -> web.StreamResponse:
    match fault:
        case Status():
            return _refusal(fault)
        case Say():
            return web.Response(text=fault.body, content_type="application/json")
        case Close():
            return _cut_off(request, reset=False)
        case Reset(at="start"):
            return _cut_off(request, reset=True)
        case Reset() | Truncate():
            return await _cut_short(request, handler, reset=isinstance(fault, Reset))
        case Hang():
            await (_never() if fault.seconds is None else asyncio.sleep(fault.seconds))
    return await handler(request)


async def _cut_short(request: web.Request, handler: Handler, *, reset: bool) -> web.StreamResponse:
    request[CUT] = True
    response = await handler(request)
    if reset:
        await _begin(request, response)
        return _cut_off(request, reset=True)
    if isinstance(response, web.Response):
        return web.Response(body=_half(response), content_type=response.content_type)
    await response.write_eof()
    return response


async def _begin(request: web.Request, response: web.StreamResponse) -> None:
    """Send half of a response that announces the whole; of a stream it has been sent."""
    if isinstance(response, web.Response):
        half = _half(response)
        begun = web.StreamResponse(
            headers={"Content-Length": str(2 * len(half)), "Content-Type": response.content_type}
        )
        await begun.prepare(request)
        await begun.write(half)


def _half(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body[: len(response.body) // 2]


def _refusal(fault: Status) -> web.Response:
    kind = HTTPStatus(fault.status).phrase.replace(" ", "")
    error = ApiError(fault.message, status=fault.status, kind=kind)
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    return web.json_response(error.body(), status=fault.status, headers=headers)


def _cut_off(request: web.Request, *, reset: bool) -> web.StreamResponse:
    """Close the connection; the returned response is never delivered."""
    transport = request.transport
    if transport is not None and reset:
        opened = transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_RST)
        transport.abort()
    elif transport is not None:
        transport.close()
    return web.Response()


async def _dead_reply(request: web.Request, death: Die) -> web.StreamResponse:
    if death.reply == "reset":
        return _cut_off(request, reset=True)
    if death.reply == "hang":
        request.app[ENGINE].running += 1  # for ever, as the metrics of an engine that is stuck say
        return await _never()
    error = ApiError(ENGINE_DEAD, status=500, kind="InternalServerError")
    if STREAM not in request:
        raise error
    stream = request[STREAM]
    await stream.write(b"data: " + msgspec.json.encode(error.body()) + b"\n\ndata: [DONE]\n\n")
    await stream.write_eof()
    return stream


async def _never() -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError
