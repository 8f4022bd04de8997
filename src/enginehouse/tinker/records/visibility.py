"""Who may see and change which record, and what is said to everybody else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, exists, or_
from sqlalchemy.orm import InstrumentedAttribute

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.tables import (
    CheckpointRow,
    ModelRow,
    SamplingSessionRow,
    SessionRow,
)

OwnedRow = TypeVar("OwnedRow", SessionRow, ModelRow, SamplingSessionRow)


def owned(row: OwnedRow | None, user: str | None, kind: str, name: str) -> OwnedRow:
    """The row, if it is the user's or the service itself asks. Raises TinkerError (404)."""
    if row is None or user not in (None, row.user_name):
        raise _missing(kind, name)
    return row


def readable(row: CheckpointRow | None, path: str, user: str | None) -> CheckpointRow:
    """The row, if it is the user's or published, and has not expired. Raises TinkerError (404)."""
    if row is None or not (user in (None, row.user_name) or row.public):
        raise _missing("checkpoint", path)
    return _unexpired(row)


def changeable(row: CheckpointRow | None, path: str, user: str) -> CheckpointRow:
    """The row, if it is the user's and has not expired. Raises TinkerError (404)."""
    if row is None or row.user_name != user:
        raise _missing("checkpoint", path)
    return _unexpired(row)


def _missing(kind: str, name: str) -> TinkerError:
    return TinkerError(
        f"there is no {kind} {name}",
        why="it never existed, was deleted, or belongs to another user",
        status=404,
    )


def _unexpired(row: CheckpointRow) -> CheckpointRow:
    if row.expires_at is not None and row.expires_at <= datetime.now(UTC):
        raise TinkerError(
            f"the checkpoint {row.path} expired on {row.expires_at:%Y-%m-%d at %H:%M} UTC",
            why="its owner had set a time to live",
            fix="use another checkpoint; one saved without ttl_seconds never expires",
            status=404,
        )
    return row


def is_unexpired() -> ColumnElement[bool]:
    """Of a checkpoint's row, in a query."""
    expires_at = CheckpointRow.expires_at
    return or_(expires_at.is_(None), expires_at > datetime.now(UTC))


def is_published(model_id: InstrumentedAttribute[str] | str) -> ColumnElement[bool]:
    """Whether a model has a published checkpoint, in a query."""
    return exists().where(CheckpointRow.model_id == model_id, CheckpointRow.public, is_unexpired())
