"""Sessions: listed, found and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import AwareDatetime, Field

from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json, read_query
from enginehouse.tinker.records.entries import FinishReason, SessionRecord, Storage
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.listing import PROJECT, PageQuery, require_project, texts, user_urn

_LIVENESS: Final = timedelta(seconds=60)  # clients send a heartbeat every ten


class _Scope(StrictModel):
    access_scope: Literal["owned", "accessible"] = "owned"


class _Project(StrictModel):
    project_id: str


class _Owner(StrictModel):
    """Nobody may see another user's sessions: "accessible" ones are one's own."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: Annotated[tuple[str, ...], Field(max_length=10)] = ()


class _Status(StrictModel):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: tuple[FinishReason, ...] | None = None

    def matches(self, record: SessionRecord) -> bool:
        """This service cancels and fails no sessions."""
        if self.type == "client_finished" and record.finished is not None:
            return self.reasons is None or record.finish_reason in self.reasons
        return self.type == "active" and _is_active(record)


class _Cursor(StrictModel):
    last_created_at: AwareDatetime
    last_session_id: str

    def place(self) -> tuple[datetime, str]:
        """The session that the page before ended with."""
        return self.last_created_at, self.last_session_id


class _Search(StrictModel):
    session_id: str | None = None
    project_ids: tuple[str, ...] | None = None
    user_metadata: Mapping[str, str] = Field(default_factory=dict)
    display_name: Annotated[str, Field(min_length=1)] | None = None
    owner: _Owner = _Owner()
    statuses: tuple[_Status, ...] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: _Cursor | None = None

    def matches(self, record: SessionRecord) -> bool:
        """What the database is not asked for."""
        known = texts(record.user_metadata)
        if any(known.get(key) != value for key, value in self.user_metadata.items()):
            return False
        return self.statuses is None or any(status.matches(record) for status in self.statuses)


def session_list_routes(records: Records) -> APIRouter:
    """What is known of the user's sessions."""
    router = APIRouter()

    @router.get("/api/v1/sessions")
    async def sessions(request: Request) -> dict[str, Any]:
        query = read_query(request, PageQuery)
        require_project(query.project_id)
        page = await records.sessions(current_user(request), offset=query.offset, limit=query.limit)
        return {
            "sessions": [record.session_id for record in page.entries],
            "cursor": query.cursor(page.total),
        }

    @router.get("/api/v1/sessions/{session_id}")
    async def session(session_id: str, request: Request) -> dict[str, Any]:
        user = current_user(request)
        read_query(request, _Scope)
        record = await records.session(session_id, user=user)
        models = await records.models(user, session_id=session_id)
        samplers = await records.sampling_sessions(user, session_id=session_id)
        return {
            "training_run_ids": [model.model_id for model in models.entries],
            "sampler_ids": [sampler.sampling_session_id for sampler in samplers],
            "user_metadata": texts(record.user_metadata) or None,
            "display_name": record.display_name,
        }

    @router.post("/api/v1/sessions/search")
    async def search(request: Request) -> dict[str, Any]:
        user = current_user(request)
        body = await read_json(request, _Search)
        for project_id in body.project_ids or ():
            require_project(project_id)
        if body.owner.type == "user" and user_urn(user) not in body.owner.owner_urns:
            return {"sessions": [], "next_cursor": None}
        sessions = await records.find_sessions(
            user,
            session_id=body.session_id,
            words=(body.display_name or "").split(),
            before=body.cursor.place() if body.cursor else None,
        )
        matching = [record for record in sessions if body.matches(record)]
        page = matching[: body.limit]
        storage = await records.storage(user)
        return {
            "sessions": [_summary(record, storage.get(record.session_id)) for record in page],
            "next_cursor": {
                "last_created_at": page[-1].created,
                "last_session_id": page[-1].session_id,
            }
            if len(matching) > len(page)
            else None,
        }

    @router.put("/api/v1/sessions/{session_id}/project")
    async def assign_project(session_id: str, request: Request) -> Response:
        await records.session(session_id, user=current_user(request))
        require_project((await read_json(request, _Project)).project_id)
        return Response(status_code=204)

    return router


def _is_active(record: SessionRecord) -> bool:
    return record.finished is None and datetime.now(UTC) - record.last_heartbeat < _LIVENESS


def _summary(record: SessionRecord, storage: Storage | None) -> dict[str, Any]:
    status: dict[str, Any] | None = {"type": "active"} if _is_active(record) else None
    if record.finished is not None:
        status = {
            "type": "client_finished",
            "reason": {"type": record.finish_reason},
            "detail": record.finish_detail,
        }
    return {
        "session_id": record.session_id,
        "created_at": record.created,
        "owner": user_urn(record.user),
        "project_id": PROJECT,
        "status": status,
        "checkpoints_count": storage.checkpoints if storage else 0,
        "checkpoint_storage_bytes": storage.size_bytes if storage else 0,
        "display_name": record.display_name,
        "user_metadata": texts(record.user_metadata) or None,
    }
