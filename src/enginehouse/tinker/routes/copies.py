"""Copying a checkpoint, one's own or a published one, into a training run of one's own."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime

from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import CheckpointStore, expiry
from enginehouse.tinker.records.entries import CheckpointRecord, ModelRecord, SessionRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.listing import require_project


class _CopyWeights(StrictModel):
    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


def copy_routes(checkpoints: CheckpointStore) -> APIRouter:
    """Copies, which a retried request does not make twice."""
    router = APIRouter()
    records = checkpoints.records

    @router.post("/api/v1/copy_weights")
    async def copy_weights(request: Request) -> dict[str, str]:
        user = current_user(request)
        body = await read_json(request, _CopyWeights)
        if body.weights_access_token or "x-tinker-weights-access-token" in request.headers:
            raise TinkerError(
                "access tokens for weights are not supported",
                fix="ask the owner to publish the checkpoint, so that every user can copy it",
            )
        expiry(body.ttl_seconds)
        key = request.headers.get("x-idempotency-key") or secrets.token_hex(16)
        request_id = "copy-" + hashlib.sha256(f"{user}\0{key}".encode()).hexdigest()[:32]
        copy = await records.checkpoint_saved_by(request_id)
        if copy is None:
            path = str(CheckpointPath.parse(body.source_path))
            source = await records.checkpoint(path, user=user)
            model = await _target(records, body, source, user=user, request_id=request_id)
            copy = await checkpoints.copy(
                source, to=model, request_id=request_id, ttl_seconds=body.ttl_seconds
            )
        return {"tinker_path": copy.path}

    return router


async def _target(
    records: Records,
    body: _CopyWeights,
    source: CheckpointRecord,
    *,
    user: str,
    request_id: str,
) -> ModelRecord:
    """A new model that holds nothing but the copy, in the session asked for or a new one."""
    now = datetime.now(UTC)
    require_project(body.destination_project_id)
    if (body.session_id is None) != (body.model_seq_id is None):
        raise TinkerError("session_id and model_seq_id must be given together")
    if body.session_id is None:
        session_id, number = f"ses-{request_id}", 0
        session = SessionRecord(
            session_id=session_id,
            user=user,
            created=now,
            last_heartbeat=now,
            display_name=f"copy of {source.path}",
            finished=now,
            finish_reason="success",
        )
        await records.add_session(session)
    else:
        session_id, number = body.session_id, body.model_seq_id or 0
        await records.session(session_id, user=user)
    model = ModelRecord(
        model_id=f"{session_id}:train:{number}",
        session_id=session_id,
        user=user,
        base_model=source.base_model,
        spec=source.spec,
        created=now,
        last_request=now,
        trainable=False,
    )
    await records.add_model(model)
    present = await records.model(model.model_id, user=user)
    if present.trainable:
        raise TinkerError(f"the training run {model.model_id} already exists")
    return model
