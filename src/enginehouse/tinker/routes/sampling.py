"""Sampling sessions and samples."""

from __future__ import annotations

import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import check_object, decoded, load_object, read_json
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.records.entries import SamplingSessionRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.legacy import LegacySampler
from enginehouse.tinker.job_bodies import SeqId
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.models import require_base
from enginehouse.tinker.routes.sessions import Sessions
from enginehouse.tinker.sampling_desk import SamplingDesk, decode_sample

_MOST_SAMPLES: Final = 1024  # of one prompt


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


class SampleEnvelope(StrictModel):
    """Who is to be sampled, and how often; `decode_sample_request` reads the rest."""

    sampling_session_id: str | None = None
    seq_id: SeqId | None = None
    base_model: str | None = None
    model_path: str | None = None
    num_samples: Annotated[int, Field(ge=1, le=_MOST_SAMPLES)] = 1


def sampling_routes(
    sessions: Sessions,
    *,
    futures: Futures,
    desk: SamplingDesk,
    base_model: str,
    legacy: LegacySampler,
) -> APIRouter:
    """`legacy` answers what has the older shape."""
    router = APIRouter()
    records = sessions.records
    clients: defaultdict[str, Iterator[int]] = defaultdict(lambda: _clients())

    @router.post("/api/v1/create_sampling_session")
    async def create_sampling_session(request: Request) -> dict[str, Any]:
        user = current_user(request)
        body = await read_json(request, CreateSamplingSession)
        await sessions.require(body.session_id, user=user)
        require_base(body.base_model, base_model)
        if body.model_path is not None:
            checkpoint = await records.checkpoint(body.model_path, user=user)
            desk.weights_of(checkpoint)
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
        await records.add_sampling_session(sampler)
        return {
            "type": "create_sampling_session",
            "sampling_session_id": sampler.sampling_session_id,
        }

    @router.post("/api/v1/join_sampling_session")
    async def join_sampling_session(request: Request) -> dict[str, Any]:
        body = await read_json(request, JoinSamplingSession)
        await records.sampling_session(body.sampling_session_id, user=current_user(request))
        number = next(clients[body.sampling_session_id])
        return {"type": "join_sampling_session", "client_counter": number}

    @router.get("/api/v1/samplers/{sampling_session_id}")
    async def sampler(sampling_session_id: str, request: Request) -> dict[str, Any]:
        found = await records.sampling_session(sampling_session_id, user=current_user(request))
        return {
            "sampler_id": found.sampling_session_id,
            "base_model": found.base_model,
            "model_path": found.checkpoint,
        }

    @router.post("/api/v1/asample")
    async def asample(request: Request) -> dict[str, Any]:
        user = current_user(request)
        content = await request.body()
        if b'"prompts"' in content:  # which the SDK never sends
            return await legacy.answer(await load_object(content), user=user)
        sample = await decoded(content, decode_sample)
        own = {n: sample.request[n] for n in SampleEnvelope.model_fields if n in sample.request}
        envelope = check_object(own, SampleEnvelope)
        if envelope.sampling_session_id is not None:
            if envelope.seq_id is None:
                raise TinkerError("a sample of a sampling session needs its seq_id")
            await desk.sampler(envelope.sampling_session_id, user=user)
            key = f"sampler:{envelope.sampling_session_id}:{envelope.seq_id}"
        else:
            require_base(envelope.base_model, base_model)
            if envelope.model_path is not None:
                desk.weights_of(await records.checkpoint(envelope.model_path, user=user))
            name = request.headers.get("x-idempotency-key") or uuid.uuid4().hex
            key = f"header:{user}:{name}"
        future = await futures.accept(
            key=key,
            kind="sample",
            user=user,
            body=content,
            content_type="application/json",
            details={
                "sampling_session_id": envelope.sampling_session_id,
                "seq_id": envelope.seq_id,
            },
        )
        if future.take():
            desk.submit(future, sample)
        ids = [f"{future.request_id}:{index}" for index in range(envelope.num_samples)]
        return {"request_id": future.request_id, "sample_sequence_ids": ids}

    return router


def _clients() -> Iterator[int]:
    """Numbers for the clients that join a sampling session; the first one has 0.

    They begin at a random place, so that a restarted service gives out none again: a number is in
    each of its client's seq_ids, above the billions.
    """
    return itertools.count(1 + uuid.uuid4().int % 500_000_000)
