"""Records of a service, with what a test does not care about filled in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.records.entries import (
    CheckpointRecord,
    ModelRecord,
    SamplingSessionRecord,
    SessionRecord,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def later(minutes: float) -> datetime:
    """So many minutes after START."""
    return START + timedelta(minutes=minutes)


def a_session(session_id: str = "ses-1", *, user: str = "ada", **changes: Any) -> SessionRecord:
    """A session of ada's."""
    record = SessionRecord(session_id=session_id, user=user, created=START, last_heartbeat=START)
    return replace(record, **changes)


def a_model(model_id: str = "ses-1:train:0", *, user: str = "ada", **changes: Any) -> ModelRecord:
    """A model of ada's of rank 8 without an output layer."""
    record = ModelRecord(
        model_id=model_id,
        session_id=model_id.partition(":")[0],
        user=user,
        base_model="org/base",
        spec=LoraSpec(rank=8, seed=3, train_unembed=False),
        created=START,
        last_request=START,
    )
    return replace(record, **changes)


def a_checkpoint(
    name: str = "0001", *, model: ModelRecord | None = None, kind: Any = "training", **changes: Any
) -> CheckpointRecord:
    """A training checkpoint of `model`, of one million bytes."""
    model = model or a_model()
    path = CheckpointPath(model.model_id, kind, name)
    record = CheckpointRecord(
        path=str(path),
        model_id=model.model_id,
        user=model.user,
        base_model=model.base_model,
        kind=kind,
        name=name,
        folder=f"{model.model_id}/{path.segment}/{name}~1",
        created=START,
        size_bytes=1_000_000,
        spec=model.spec,
        unembed=False,
    )
    return replace(record, **changes)


def a_sampler(number: int = 0, *, user: str = "ada", **changes: Any) -> SamplingSessionRecord:
    """A sampling session of ada's of the base model."""
    record = SamplingSessionRecord(
        sampling_session_id=f"ses-1:sample:{number}",
        session_id="ses-1",
        user=user,
        base_model="org/base",
        created=START,
    )
    return replace(record, **changes)
