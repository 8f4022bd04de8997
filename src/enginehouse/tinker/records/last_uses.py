"""When sessions and models were last used, known at once and written now and then.

Heartbeats and polls come many times a second, and must not wait for a database.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from enginehouse.core.errors import StoreError
from enginehouse.tinker.records.database import Database
from enginehouse.tinker.records.entries import ModelRecord, SessionRecord
from enginehouse.tinker.records.tables import ModelRow, SessionRow

_log = logging.getLogger(__name__)


class LastUses:
    """Written every `interval` seconds, and when it is closed. Made in a running event loop."""

    def __init__(self, database: Database, *, interval: float = 30.0) -> None:
        self._database = database
        self._interval = interval
        self._sessions: dict[str, datetime] = {}
        self._models: dict[str, datetime] = {}
        self._writer = asyncio.create_task(self._write_regularly())

    def note_session(self, session_id: str) -> None:
        """It was used just now."""
        self._sessions[session_id] = datetime.now(UTC)

    def note_model(self, model_id: str) -> None:
        """It was used just now."""
        self._models[model_id] = datetime.now(UTC)

    def in_session(self, record: SessionRecord) -> SessionRecord:
        """The record with what has not been written yet."""
        used = self._sessions.get(record.session_id, record.last_heartbeat)
        return replace(record, last_heartbeat=max(used, record.last_heartbeat))

    def in_model(self, record: ModelRecord) -> ModelRecord:
        """The record with what has not been written yet."""
        used = self._models.get(record.model_id, record.last_request)
        return replace(record, last_request=max(used, record.last_request))

    async def close(self) -> None:
        """Write what is left. Idempotent. Raises StoreError."""
        self._writer.cancel()
        with suppress(asyncio.CancelledError):
            await self._writer
        await self._write()

    async def _write_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._write()
            except StoreError as error:
                _log.warning("%s", error)  # they are kept, and written next time

    async def _write(self) -> None:
        if not self._sessions and not self._models:
            return
        sessions, models = dict(self._sessions), dict(self._models)

        def change(session: Session) -> None:
            for session_id, used in sessions.items():
                session.execute(
                    update(SessionRow)
                    .where(SessionRow.session_id == session_id)
                    .values(last_heartbeat=used)
                )
            for model_id, used in models.items():
                session.execute(
                    update(ModelRow).where(ModelRow.model_id == model_id).values(last_request=used)
                )

        await self._database.write(change)
        self._sessions = {k: t for k, t in self._sessions.items() if t != sessions.get(k)}
        self._models = {k: t for k, t in self._models.items() if t != models.get(k)}
