"""Training jobs. Only whose job it is and its place are looked at here; the rest is its turn's.

A job with a seq_id is never refused for what it contains: a number that never arrives would hold
up its model for ever. It is accepted, and fails in its turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import decoded
from enginehouse.tinker.future import JSON
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.routes.models import Models
from enginehouse.tinker.training_queue import TrainingQueue
from enginehouse.tinker.wire import LossIdentity, identify_loss_request
from enginehouse.tinker.wire.schema import PROTOBUF

_JOBS = ("optim_step", "save_weights", "save_weights_for_sampler", "save_weights_external")


class _Place(msgspec.Struct):
    """Which model a job is of, and its number there."""

    model_id: str
    seq_id: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


def training_routes(models: Models, *, futures: Futures, queue: TrainingQueue) -> APIRouter:
    """The jobs of models that exist."""
    router = APIRouter()

    async def accept(
        request: Request, kind: str, content: bytes, content_type: str, place: _Place | LossIdentity
    ) -> dict[str, Any]:
        user = current_user(request)
        await models.require(place.model_id, user=user)
        key = f"model:{place.model_id}:{place.seq_id}"
        if futures.accepted(key) is None:
            queue.admit(user=user, model_id=place.model_id, seq_id=place.seq_id)
        future = await futures.accept(
            key=key,
            kind=kind,
            user=user,
            body=content,
            content_type=content_type,
            details={
                "model_id": place.model_id,
                "seq_id": place.seq_id,
                "forward_only": isinstance(place, LossIdentity) and place.forward_only,
            },
        )
        if future.take():
            queue.submit(future)
        return {"request_id": future.request_id, "model_id": place.model_id}

    @router.post("/api/v1/forward_backward")
    async def forward_backward(request: Request) -> dict[str, Any]:
        content_type = request.headers.get("content-type", "")
        if "protobuf" not in content_type:
            raise TinkerError(
                f"forward_backward takes application/x-protobuf, not {content_type or 'this'}",
                fix="use the tinker SDK 0.38.0, which sends it",
            )
        if encoding := request.headers.get("content-encoding"):
            raise TinkerError(
                f"the content encoding {encoding} is not supported",
                fix="send the body as it is; the SDK does where proto_compress_fwdbwd is off",
            )
        content = await request.body()
        place = await decoded(content, identify_loss_request)
        return await accept(request, "forward_backward", content, PROTOBUF, place)

    for kind in _JOBS:
        router.post(f"/api/v1/{kind}")(_job(kind, accept))

    return router


def _job(kind: str, accept: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[[Request], Any]:
    async def job(request: Request) -> dict[str, Any]:
        content = await request.body()
        try:
            place = msgspec.json.decode(content, type=_Place)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise TinkerError(f"{kind} was not understood: {error}") from None
        return await accept(request, kind, content, JSON, place)

    return job
