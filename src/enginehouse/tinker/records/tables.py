"""The tables; `migrations/` makes them, and a test compares the two."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import JSON, BigInteger, Dialect, Index, String, Text
from sqlalchemy import DateTime as AnyTime
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.records.entries import (
    CheckpointKind,
    CheckpointRecord,
    FinishReason,
    ModelRecord,
    SamplingSessionRecord,
    SessionRecord,
)

VERSION_TABLE = "tinker_schema_version"


class Time(TypeDecorator[datetime]):
    """An aware time in UTC, also where the database keeps no time zone, as SQLite does."""

    impl = AnyTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Refuse a time without a zone."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be recorded")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """In UTC, whatever the database's session says."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's name for it)
        datetime: Time,
        str: String(255),
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class SessionRow(Table):
    """A SessionRecord."""

    __tablename__ = "tinker_sessions"
    __table_args__ = (Index("ix_tinker_sessions_user_created", "user_name", "created"),)

    session_id: Mapped[str] = mapped_column(primary_key=True)
    user_name: Mapped[str]
    created: Mapped[datetime]
    tags: Mapped[list[str]]
    user_metadata: Mapped[dict[str, Any]]
    sdk_version: Mapped[str]
    display_name: Mapped[str | None] = mapped_column(Text)
    last_heartbeat: Mapped[datetime]
    finished: Mapped[datetime | None]
    finish_reason: Mapped[str | None]
    finish_detail: Mapped[str | None] = mapped_column(Text)

    @classmethod
    def of(cls, record: SessionRecord) -> SessionRow:
        """The row for a record."""
        return cls(
            session_id=record.session_id,
            user_name=record.user,
            created=record.created,
            tags=list(record.tags),
            user_metadata=dict(record.user_metadata),
            sdk_version=record.sdk_version,
            display_name=record.display_name,
            last_heartbeat=record.last_heartbeat,
            finished=record.finished,
            finish_reason=record.finish_reason,
            finish_detail=record.finish_detail,
        )

    def record(self) -> SessionRecord:
        """What the row says."""
        return SessionRecord(
            session_id=self.session_id,
            user=self.user_name,
            created=self.created,
            tags=tuple(self.tags),
            user_metadata=self.user_metadata,
            sdk_version=self.sdk_version,
            display_name=self.display_name,
            last_heartbeat=self.last_heartbeat,
            finished=self.finished,
            finish_reason=cast("FinishReason | None", self.finish_reason),
            finish_detail=self.finish_detail,
        )


class ModelRow(Table):
    """A ModelRecord."""

    __tablename__ = "tinker_models"
    __table_args__ = (
        Index("ix_tinker_models_session_id", "session_id"),
        Index("ix_tinker_models_user_created", "user_name", "created"),
    )

    model_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    user_name: Mapped[str]
    base_model: Mapped[str] = mapped_column(Text)
    spec: Mapped[dict[str, Any]]
    user_metadata: Mapped[dict[str, Any]]
    created: Mapped[datetime]
    last_request: Mapped[datetime]
    trainable: Mapped[bool]

    @classmethod
    def of(cls, record: ModelRecord) -> ModelRow:
        """The row for a record."""
        return cls(
            model_id=record.model_id,
            session_id=record.session_id,
            user_name=record.user,
            base_model=record.base_model,
            spec=asdict(record.spec),
            user_metadata=dict(record.user_metadata),
            created=record.created,
            last_request=record.last_request,
            trainable=record.trainable,
        )

    def record(self) -> ModelRecord:
        """What the row says."""
        return ModelRecord(
            model_id=self.model_id,
            session_id=self.session_id,
            user=self.user_name,
            base_model=self.base_model,
            spec=LoraSpec(**self.spec),
            user_metadata=self.user_metadata,
            created=self.created,
            last_request=self.last_request,
            trainable=self.trainable,
        )


class CheckpointRow(Table):
    """A CheckpointRecord."""

    __tablename__ = "tinker_checkpoints"
    __table_args__ = (
        Index("ix_tinker_checkpoints_model_id", "model_id"),
        Index("ix_tinker_checkpoints_user_created", "user_name", "created"),
        Index("ix_tinker_checkpoints_expires_at", "expires_at"),
        Index("ix_tinker_checkpoints_request_id", "request_id"),
    )

    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    model_id: Mapped[str]
    user_name: Mapped[str]
    base_model: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str]
    folder: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    public: Mapped[bool]
    expires_at: Mapped[datetime | None]
    removed: Mapped[bool]
    user_metadata: Mapped[dict[str, Any]]
    spec: Mapped[dict[str, Any]]
    unembed: Mapped[bool]
    request_id: Mapped[str | None]

    @classmethod
    def of(cls, record: CheckpointRecord) -> CheckpointRow:
        """The row for a record."""
        return cls(
            path=record.path,
            model_id=record.model_id,
            user_name=record.user,
            base_model=record.base_model,
            kind=record.kind,
            name=record.name,
            folder=record.folder,
            created=record.created,
            size_bytes=record.size_bytes,
            public=record.public,
            expires_at=record.expires_at,
            removed=record.removed,
            user_metadata=dict(record.user_metadata),
            spec=asdict(record.spec),
            unembed=record.unembed,
            request_id=record.request_id,
        )

    def record(self) -> CheckpointRecord:
        """What the row says."""
        return CheckpointRecord(
            path=self.path,
            model_id=self.model_id,
            user=self.user_name,
            base_model=self.base_model,
            kind=cast("CheckpointKind", self.kind),
            name=self.name,
            folder=self.folder,
            created=self.created,
            size_bytes=self.size_bytes,
            public=self.public,
            expires_at=self.expires_at,
            removed=self.removed,
            user_metadata=self.user_metadata,
            spec=LoraSpec(**self.spec),
            unembed=self.unembed,
            request_id=self.request_id,
        )


class SamplingSessionRow(Table):
    """A SamplingSessionRecord."""

    __tablename__ = "tinker_sampling_sessions"
    __table_args__ = (Index("ix_tinker_sampling_sessions_session_id", "session_id"),)

    sampling_session_id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str]
    user_name: Mapped[str]
    base_model: Mapped[str] = mapped_column(Text)
    checkpoint: Mapped[str | None] = mapped_column(String(512))
    follows: Mapped[str | None]
    created: Mapped[datetime]

    @classmethod
    def of(cls, record: SamplingSessionRecord) -> SamplingSessionRow:
        """The row for a record."""
        return cls(
            sampling_session_id=record.sampling_session_id,
            session_id=record.session_id,
            user_name=record.user,
            base_model=record.base_model,
            checkpoint=record.checkpoint,
            follows=record.follows,
            created=record.created,
        )

    def record(self) -> SamplingSessionRecord:
        """What the row says."""
        return SamplingSessionRecord(
            sampling_session_id=self.sampling_session_id,
            session_id=self.session_id,
            user=self.user_name,
            base_model=self.base_model,
            checkpoint=self.checkpoint,
            follows=self.follows,
            created=self.created,
        )
