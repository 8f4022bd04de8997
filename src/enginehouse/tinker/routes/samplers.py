"""Sampling sessions: what a client samples from, and how many clients share it."""

from __future__ import annotations

import itertools
import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json, read_query
from enginehouse.tinker.job_bodies import SeqId
from enginehouse.tinker.records.entries import SamplingSessionRecord
from enginehouse.tinker.repeats import Repeats
from enginehouse.tinker.routes.listing import NoQuery
from enginehouse.tinker.routes.models import require_base
from enginehouse.tinker.routes.sessions import Sessions
from enginehouse.tinker.sampler_weights import SamplerWeights
from enginehouse.tinker.session_answers import CLIENT_SEQ_IDS


class CreateSamplingSession(StrictModel):
    """The SDK's CreateSamplingSessionRequest."""

    session_id: str
    sampling_session_seq_id: SeqId
    base_model: str | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSession(StrictModel):
    """The SDK's JoinSamplingSessionRequest."""

    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


def sampler_routes(
    sessions: Sessions, *, samplers: SamplerWeights, base_model: str, repeats: Repeats
) -> APIRouter:
    """Everything about sampling sessions but the samples."""
    router = APIRouter()
    # Numbers of clients that join; the first client of a session has 0. They begin at a random one,
    # so that a restarted service does not give any out again: a client's seq_ids are its number
    # times a billion, and so on, and must be below 2^63.
    numbers = itertools.count(1 + secrets.randbelow(CLIENT_SEQ_IDS // 2))

    async def next_number() -> int:
        return next(numbers)

    @router.post("/api/v1/create_sampling_session")
    async def create_sampling_session(request: Request) -> dict[str, Any]:
        user = current_user(request)
        body = await read_json(request, CreateSamplingSession)
        await sessions.require(body.session_id, user=user)
        require_base(body.base_model, base_model)
        if body.model_path is not None:
            await samplers.of_path(body.model_path, user=user)
        elif body.base_model is None:
            raise TinkerError("give model_path or base_model: what is to be sampled")
        sampler = SamplingSessionRecord(
            sampling_session_id=f"{body.session_id}:sample:{body.sampling_session_seq_id}",
            session_id=body.session_id,
            user=user,
            base_model=base_model,
            created=datetime.now(UTC),
            checkpoint=body.model_path,
        )
        await sessions.records.add_sampling_session(sampler)
        return {
            "type": "create_sampling_session",
            "sampling_session_id": sampler.sampling_session_id,
        }

    @router.post("/api/v1/join_sampling_session")
    async def join_sampling_session(request: Request) -> dict[str, Any]:
        body = await read_json(request, JoinSamplingSession)
        await samplers.sampler(body.sampling_session_id, user=current_user(request))
        number = await repeats.once(request, next_number)
        return {"type": "join_sampling_session", "client_counter": number}

    @router.get("/api/v1/samplers/{sampling_session_id}")
    async def sampler(sampling_session_id: str, request: Request) -> dict[str, Any]:
        read_query(request, NoQuery)
        record = await samplers.sampler(sampling_session_id, user=current_user(request))
        return {
            "sampler_id": record.sampling_session_id,
            "base_model": record.base_model,
            "model_path": record.checkpoint,
        }

    return router
