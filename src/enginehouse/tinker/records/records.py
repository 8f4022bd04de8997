"""Sessions, models and checkpoints: what is remembered, and who may see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import ColumnElement, and_, func, or_, select, true, update
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.records.database import Database
from enginehouse.tinker.records.entries import (
    ALIAS,
    UNNAMED,
    CheckpointKind,
    CheckpointRecord,
    FinishReason,
    ModelRecord,
    Page,
    SamplingSessionRecord,
    SessionRecord,
    Storage,
)
from enginehouse.tinker.records.last_uses import LastUses
from enginehouse.tinker.records.tables import (
    CheckpointRow,
    ModelRow,
    SamplingSessionRow,
    SessionRow,
)
from enginehouse.tinker.records.visibility import (
    OwnedRow,
    changeable,
    is_published,
    is_unexpired,
    owned,
    readable,
)


def sqlite_url(file: Path) -> str:
    """The database URL of a SQLite file."""
    return URL.create("sqlite", database=str(file)).render_as_string()


class Records:
    """What a service remembers. Every method may be called by many tasks at once.

    Where a method takes `user`, what belongs to another user does not exist, unless it is a
    published checkpoint: the answer is the same TinkerError (404) in both cases. `user` None is the
    service itself, which sees everything. All methods but `touch…` raise StoreError when the
    database fails. Adding a session, a model or a sampling session again, by a retried
    request or after a restart, changes nothing. Lists begin with the newest.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_uses = LastUses(database)

    @classmethod
    async def open(cls, url: str) -> Records:
        """Open a SQLite file or a Postgres database, and bring its tables up to date.

        Raises ConfigurationError for a URL that cannot be used, and StoreError.
        """
        return cls(await Database.open(url))

    async def close(self) -> None:
        """Write what is left to be written, and disconnect. Idempotent."""
        try:
            await self._last_uses.close()
        finally:
            await self._database.close()

    @property
    def name(self) -> str:
        """Where the records are: the database's URL without its password."""
        return self._database.name

    async def add_session(self, record: SessionRecord) -> None:
        """Remember a new session."""
        await self._add(SessionRow.of(record), record.session_id)

    async def session(self, session_id: str, *, user: str | None) -> SessionRecord:
        """A session."""
        row = await self._database.get(SessionRow, session_id)
        return self._last_uses.in_session(owned(row, user, "session", session_id).record())

    async def finish_session(
        self,
        session_id: str,
        *,
        user: str | None,
        reason: FinishReason,
        detail: str | None = None,
    ) -> None:
        """Remember that its client is done, and how. Only the first time counts."""

        def change(session: Session) -> None:
            row = owned(session.get(SessionRow, session_id), user, "session", session_id)
            if row.finished is None:
                row.finished = datetime.now(UTC)
                row.finish_reason = reason
                row.finish_detail = detail

        await self._database.write(change)

    async def sessions(self, user: str, *, offset: int, limit: int) -> Page[SessionRecord]:
        """The user's sessions."""
        query = select(SessionRow).where(SessionRow.user_name == user)
        query = query.order_by(SessionRow.created.desc(), SessionRow.session_id.desc())
        rows, total = await self._database.page(query, offset=offset, limit=limit)
        return Page(entries=tuple(self._session_of(row) for row in rows), total=total)

    async def find_sessions(
        self,
        user: str,
        *,
        session_id: str | None = None,
        words: Sequence[str] = (),
        before: tuple[datetime, str] | None = None,
    ) -> Sequence[SessionRecord]:
        """The user's sessions that have this id, or all these words in their display names.

        Without either, all of them. `before` is a session's time of creation and id, and leaves out
        that session and all newer ones.
        """
        query = select(SessionRow).where(SessionRow.user_name == user)
        criteria: list[ColumnElement[bool]] = []
        if session_id is not None:
            criteria.append(SessionRow.session_id == session_id)
        if words:
            name = SessionRow.display_name
            criteria.append(and_(*(name.icontains(word, autoescape=True) for word in words)))
        if criteria:
            query = query.where(or_(*criteria))
        if before is not None:
            created, last = before
            same_time = and_(SessionRow.created == created, SessionRow.session_id < last)
            query = query.where(or_(SessionRow.created < created, same_time))
        query = query.order_by(SessionRow.created.desc(), SessionRow.session_id.desc())
        return [self._session_of(row) for row in await self._database.rows(query)]

    def touch_session(self, session_id: str) -> None:
        """Note that its client lives. Never waits: the time is written later."""
        self._last_uses.note_session(session_id)

    async def add_model(self, record: ModelRecord) -> None:
        """Remember a new model."""
        await self._add(ModelRow.of(record), record.model_id)

    async def model(
        self, model_id: str, *, user: str | None, published: bool = False
    ) -> ModelRecord:
        """A model of the user; with `published`, also one that has a published checkpoint."""

        def ask(session: Session) -> ModelRow:
            row = session.get(ModelRow, model_id)
            if row and published and session.scalar(select(is_published(row.model_id))):
                return row
            return owned(row, user, "training run", model_id)

        return self._model_of(await self._database.read(ask))

    async def models(
        self,
        user: str | None,
        *,
        session_id: str | None = None,
        published: bool = False,
        offset: int = 0,
        limit: int | None = None,
    ) -> Page[ModelRecord]:
        """The user's models; with `published`, also those that have a published checkpoint."""
        query = select(ModelRow)
        if user is not None:
            own = ModelRow.user_name == user
            query = query.where(or_(own, is_published(ModelRow.model_id)) if published else own)
        if session_id is not None:
            query = query.where(ModelRow.session_id == session_id)
        query = query.order_by(ModelRow.created.desc(), ModelRow.model_id.desc())
        rows, total = await self._database.page(query, offset=offset, limit=limit)
        return Page(entries=tuple(self._model_of(row) for row in rows), total=total)

    def touch(self, model_id: str) -> None:
        """Note that the model was just asked for something. Never waits: it is written later."""
        self._last_uses.note_model(model_id)

    async def add_checkpoint(self, record: CheckpointRecord) -> CheckpointRecord | None:
        """Remember a checkpoint, in place of one of the same path, which is returned."""

        def change(session: Session) -> CheckpointRecord | None:
            row = session.get(CheckpointRow, record.path)
            replaced = row.record() if row else None
            session.merge(CheckpointRow.of(record))
            return replaced

        return await self._database.write(change)

    async def checkpoint(self, path: str, *, user: str | None) -> CheckpointRecord:
        """A checkpoint of the user, or a published one.

        For an expired one, the TinkerError says when it expired.
        """
        row = await self._database.get(CheckpointRow, path)
        return readable(row, path, user).record()

    async def checkpoint_saved_by(self, request_id: str) -> CheckpointRecord | None:
        """What this request has saved already, for one that is run again after a restart."""
        query = select(CheckpointRow).where(CheckpointRow.request_id == request_id)
        rows = await self._database.rows(query)
        return rows[0].record() if rows else None

    async def checkpoints(
        self,
        user: str | None,
        *,
        model_id: str | None = None,
        offset: int = 0,
        limit: int | None = None,
    ) -> Page[CheckpointRecord]:
        """The user's checkpoints; with `model_id`, that model's: own or published ones."""
        query = select(CheckpointRow).where(is_unexpired())
        if model_id is not None:
            query = query.where(CheckpointRow.model_id == model_id)
        if user is not None:
            own = CheckpointRow.user_name == user
            query = query.where(own if model_id is None else or_(own, CheckpointRow.public))
        query = query.order_by(CheckpointRow.created.desc(), CheckpointRow.path.desc())
        rows, total = await self._database.page(query, offset=offset, limit=limit)
        return Page(entries=tuple(row.record() for row in rows), total=total)

    async def sampler_called(self, name: str, *, user: str) -> CheckpointRecord | None:
        """The user's newest weights for a sampler of the model `name`, or with that alias."""
        alias = CheckpointRow.user_metadata[ALIAS].as_string()
        query = (
            select(CheckpointRow)
            .where(CheckpointRow.user_name == user, CheckpointRow.kind == "sampler", is_unexpired())
            .where(or_(CheckpointRow.model_id == name, alias == name))
            .order_by(CheckpointRow.created.desc(), CheckpointRow.path.desc())
            .limit(1)
        )
        rows = await self._database.rows(query)
        return rows[0].record() if rows else None

    async def last_checkpoints(
        self, model_ids: Sequence[str], *, user: str | None
    ) -> Mapping[tuple[str, CheckpointKind], CheckpointRecord]:
        """The newest checkpoint of each of these models and each kind, own or published."""
        newest_first = (CheckpointRow.created.desc(), CheckpointRow.path.desc())
        rank = func.row_number().over(
            partition_by=(CheckpointRow.model_id, CheckpointRow.kind), order_by=newest_first
        )
        visible = true() if user is None else CheckpointRow.user_name == user
        ranked = (
            select(CheckpointRow.path, rank.label("rank"))
            .where(CheckpointRow.model_id.in_(model_ids), is_unexpired())
            .where(or_(visible, CheckpointRow.public))
            .subquery()
        )
        newest = select(ranked.c.path).where(ranked.c.rank == 1)
        query = select(CheckpointRow).where(CheckpointRow.path.in_(newest))
        records = [row.record() for row in await self._database.rows(query)]
        return {(record.model_id, record.kind): record for record in records}

    async def storage(self, user: str) -> Mapping[str, Storage]:
        """What the user's checkpoints take, by session."""
        query = (
            select(ModelRow.session_id, func.count(), func.sum(CheckpointRow.size_bytes))
            .join(ModelRow, ModelRow.model_id == CheckpointRow.model_id)
            .where(CheckpointRow.user_name == user, is_unexpired())
            .group_by(ModelRow.session_id)
        )

        def ask(session: Session) -> dict[str, Storage]:
            return {
                session_id: Storage(checkpoints=count, size_bytes=int(size))
                for session_id, count, size in session.execute(query)
            }

        return await self._database.read(ask)

    async def snapshot_storage(self) -> Storage:
        """What the snapshots of all users take that were saved for a sampler without a name."""
        query = select(func.count(), func.coalesce(func.sum(CheckpointRow.size_bytes), 0)).where(
            CheckpointRow.kind == "sampler",
            CheckpointRow.name.startswith(UNNAMED, autoescape=True),
            ~CheckpointRow.removed,
        )

        def ask(session: Session) -> Storage:
            count, size = session.execute(query).one()
            return Storage(checkpoints=count, size_bytes=int(size))

        return await self._database.read(ask)

    async def set_public(self, path: str, *, user: str, public: bool) -> None:
        """Publish a checkpoint to all users, or withdraw it."""

        def change(session: Session) -> None:
            changeable(session.get(CheckpointRow, path), path, user).public = public

        await self._database.write(change)

    async def set_expiry(self, path: str, *, user: str, expires_at: datetime | None) -> None:
        """Say when a checkpoint expires; None is never."""

        def change(session: Session) -> None:
            changeable(session.get(CheckpointRow, path), path, user).expires_at = expires_at

        await self._database.write(change)

    async def remove_checkpoint(self, path: str, *, user: str) -> CheckpointRecord:
        """Forget a checkpoint, and return what it was; its files are the caller's to remove."""

        def change(session: Session) -> CheckpointRecord:
            row = changeable(session.get(CheckpointRow, path), path, user)
            session.delete(row)
            return row.record()

        return await self._database.write(change)

    async def expired_checkpoints(self) -> Sequence[CheckpointRecord]:
        """Those that have expired, and whose files have not been removed."""
        query = select(CheckpointRow).where(~is_unexpired(), ~CheckpointRow.removed)
        return [row.record() for row in await self._database.rows(query)]

    async def mark_removed(self, record: CheckpointRecord) -> None:
        """Remember that an expired checkpoint's files are gone."""
        same = and_(CheckpointRow.path == record.path, CheckpointRow.folder == record.folder)
        change = update(CheckpointRow).where(same).values(removed=True)
        await self._database.write(lambda session: session.execute(change))

    async def checkpoint_folders(self) -> set[str]:
        """The folders of all checkpoints whose files have not been removed."""
        query = select(CheckpointRow.folder).where(~CheckpointRow.removed)
        return await self._database.read(lambda session: set(session.scalars(query)))

    async def add_sampling_session(self, record: SamplingSessionRecord) -> None:
        """Remember a new sampling session."""
        await self._add(SamplingSessionRow.of(record), record.sampling_session_id)

    async def sampling_session(
        self, sampling_session_id: str, *, user: str | None
    ) -> SamplingSessionRecord:
        """A sampling session."""
        row = await self._database.get(SamplingSessionRow, sampling_session_id)
        return owned(row, user, "sampler", sampling_session_id).record()

    async def sampling_sessions(
        self, user: str | None, *, session_id: str | None = None
    ) -> Sequence[SamplingSessionRecord]:
        """The user's sampling sessions."""
        query = select(SamplingSessionRow)
        if user is not None:
            query = query.where(SamplingSessionRow.user_name == user)
        if session_id is not None:
            query = query.where(SamplingSessionRow.session_id == session_id)
        query = query.order_by(SamplingSessionRow.created.desc())
        return [row.record() for row in await self._database.rows(query)]

    async def _add(self, row: OwnedRow, key: str) -> None:
        def change(session: Session) -> None:
            present = session.get(type(row), key)
            if present is None:
                session.add(row)
            elif present.user_name != row.user_name:
                raise TinkerError(f"{key} belongs to another user", category="server", status=400)

        await self._database.write(change)

    def _session_of(self, row: SessionRow) -> SessionRecord:
        return self._last_uses.in_session(row.record())

    def _model_of(self, row: ModelRow) -> ModelRecord:
        return self._last_uses.in_model(row.record())
