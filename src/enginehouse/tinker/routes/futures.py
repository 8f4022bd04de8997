"""Retrieving and cancelling futures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any, Final, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from enginehouse.core.errors import StoreError, TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json
from enginehouse.tinker.future import JSON, Future, failure
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.wire.schema import PROTOBUF

LONGEST_POLL: Final = 30.0
"""Seconds until an unanswered poll gets a reply; the SDK gives up after 45."""
_INLINE: Final = 64 << 10
"""Bytes of an answer above which a client that can is told the size first, to limit its memory."""
_SPREAD: Final = 0.1
"""The part of a poll's time by which polls that began together end apart."""

Result = TypeVar("Result")


class _RetrieveFuture(StrictModel):
    request_id: str
    allow_metadata_only: bool = False


class _Target(StrictModel):
    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: int = 0


class _RetrieveFutures(StrictModel):
    target: _Target
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: tuple[str, ...] = ()


class _CancelFuture(StrictModel):
    request_id: str


def futures_routes(futures: Futures, *, longest_poll: float = LONGEST_POLL) -> APIRouter:
    """Polls are held for `longest_poll` seconds."""
    router = APIRouter(prefix="/api/v1")

    @router.post("/retrieve_future")
    async def retrieve_future(request: Request) -> Response:
        body = await read_json(request, _RetrieveFuture)
        timeout = _spread(longest_poll)
        future = await _unless_gone(
            request, futures.wait(body.request_id, user=current_user(request), timeout=timeout)
        )
        if future is None or future.state == "waiting":
            return _json(_try_again(body.request_id, future))
        if future.state == "finished":
            if body.allow_metadata_only and future.size > _INLINE:
                return _json({"status": "complete_metadata", "response_payload_size": future.size})
            if future.content_type == PROTOBUF and PROTOBUF not in request.headers.get(
                "accept", ""
            ):
                raise TinkerError(
                    "this answer exists as protobuf only",
                    fix=f"use the tinker SDK 0.38.0, or send Accept: {PROTOBUF}",
                    status=406,
                )
        try:
            payload = await _payload(future)
        except StoreError as error:  # as a 500, the SDK would ask for it without end
            return Response(failure(str(error), "server"), media_type=JSON)
        futures.retrieved(future)
        return Response(payload, media_type=future.content_type)

    @router.post("/retrieve_futures")
    async def retrieve_futures(request: Request) -> Response:
        body = await read_json(request, _RetrieveFutures)
        futures.acknowledge(body.retrieved_request_ids, user=current_user(request))
        timeout = longest_poll if body.timeout is None else min(body.timeout, longest_poll)
        answered = await _unless_gone(
            request,
            futures.completions(
                user=current_user(request),
                sampling_session_id=body.target.sampling_session_id,
                clone=body.target.cloned_sampler_id,
                after=body.prev_cursor,
                timeout=_spread(timeout),
            ),
        )
        if answered is None:
            return _json({"completions": [], "cursor": body.prev_cursor})
        return _json(
            {"completions": [_completion(f) for f in answered.futures], "cursor": answered.cursor}
        )

    @router.post("/cancel_future")
    async def cancel_future(request: Request) -> Response:
        body = await read_json(request, _CancelFuture)
        await futures.cancel(body.request_id, user=current_user(request))
        return _json({})

    return router


async def _payload(future: Future) -> bytes:
    if future.payload_in_memory:
        return future.payload
    return await asyncio.to_thread(lambda: future.payload)


async def _unless_gone(request: Request, waiting: Coroutine[Any, Any, Result]) -> Result | None:
    """What the poll gives; None, at once, if the client disconnects meanwhile."""
    poll = asyncio.ensure_future(waiting)
    gone = asyncio.ensure_future(request.receive())  # the body was read: only the end can follow
    try:
        await asyncio.wait({poll, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await poll if poll.done() else None
    finally:
        poll.cancel()
        gone.cancel()


def _spread(seconds: float) -> float:
    return seconds * random.uniform(1 - _SPREAD, 1)


def _try_again(request_id: str, future: Future | None) -> dict[str, Any]:
    return {
        "type": "try_again",
        "request_id": request_id,
        "queue_state": "active" if future is None else future.queue_state,
        "queue_state_reason": None if future is None else future.reason,
    }


def _completion(future: Future) -> dict[str, Any]:
    if future.state != "finished":
        return {"state": "failed", "request_id": future.request_id}
    return {
        "state": "finished",
        "request_id": future.request_id,
        "response_payload_uncompressed_size": future.size,
    }


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type=JSON)
