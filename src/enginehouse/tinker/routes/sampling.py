"""Samples. What is wrong with one is said at once: nothing waits for its number."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request
from pydantic import Field

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import check_object, decoded, load_object
from enginehouse.tinker.future import JSON, SAMPLE
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.job_bodies import SeqId
from enginehouse.tinker.repeats import Repeats
from enginehouse.tinker.routes.legacy import LegacySampler
from enginehouse.tinker.routes.models import require_base
from enginehouse.tinker.sampler_weights import SamplerWeights
from enginehouse.tinker.sampling_desk import SamplingDesk, decode_sample

_MOST_SAMPLES: Final = 1024  # of one prompt


class SampleEnvelope(StrictModel):
    """Who is to be sampled, and how often; `decode_sample` reads the rest."""

    sampling_session_id: str | None = None
    seq_id: SeqId | None = None
    base_model: str | None = None
    model_path: str | None = None
    num_samples: Annotated[int, Field(ge=1, le=_MOST_SAMPLES)] = 1


def sampling_routes(
    *,
    futures: Futures,
    desk: SamplingDesk,
    samplers: SamplerWeights,
    base_model: str,
    legacy: LegacySampler,
    repeats: Repeats,
) -> APIRouter:
    """`legacy` answers what has the older shape."""
    router = APIRouter()

    @router.post("/api/v1/asample")
    async def asample(request: Request) -> dict[str, Any]:
        user = current_user(request)
        content = await request.body()
        if b'"prompts"' in content and "prompts" in (body := await load_object(content)):
            # the SDK has no such field
            return await repeats.once(request, lambda: legacy.answer(body, user=user))
        sample = await decoded(content, decode_sample)
        given = {n: sample.request[n] for n in SampleEnvelope.model_fields if n in sample.request}
        envelope = check_object(given, SampleEnvelope)
        require_base(envelope.base_model, base_model)
        if envelope.sampling_session_id is None:
            name = request.headers.get("x-idempotency-key") or uuid.uuid4().hex
            key = f"header:{user}:{name}"
        elif envelope.seq_id is None:
            raise TinkerError("a sample of a sampling session needs its seq_id")
        else:
            await samplers.sampler(envelope.sampling_session_id, user=user)
            key = f"sampler:{envelope.sampling_session_id}:{envelope.seq_id}"
        if futures.accepted(key) is None:
            desk.admit(user)
        future = await futures.accept(
            key=key,
            kind=SAMPLE,
            user=user,
            body=content,
            content_type=JSON,
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
