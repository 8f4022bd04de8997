"""A client's session: its beginning, its heartbeats, its end."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json
from enginehouse.tinker.heartbeats import Heartbeats, LiveSession
from enginehouse.tinker.records.entries import SessionRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.listing import require_project
from enginehouse.tinker.training_queue import TrainingQueue


class CreateSession(StrictModel):
    """The SDK's CreateSessionRequest."""

    tags: tuple[str, ...] = ()
    user_metadata: Mapping[str, Any] | None = None
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None
    type: Literal["create_session"] = "create_session"


class SessionHeartbeat(StrictModel):
    """The SDK's SessionHeartbeatRequest."""

    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishReason(StrictModel):
    """How a session ended."""

    type: Literal["success", "errored", "interrupted"] = "success"


class FinishSession(StrictModel):
    """What the SDK says when its client is closed."""

    reason: FinishReason = FinishReason()
    detail: str | None = None


class Sessions:
    """The sessions of all users: in memory as long as they live, in the records for ever."""

    def __init__(self, *, records: Records, heartbeats: Heartbeats) -> None:
        self.records = records
        self.heartbeats = heartbeats

    async def find(self, session_id: str, *, user: str) -> LiveSession:
        """The user's session, from memory, or from the records if it is from before a restart.

        Raises TinkerError (404) for an unknown one, and for another user's.
        """
        session = self.heartbeats.find(session_id, user=user)
        if session is not None:
            return session
        record = await self.records.session(session_id, user=user)
        return self.heartbeats.begin(session_id, user=user, finished=record.finished is not None)

    async def require(self, session_id: str, *, user: str) -> None:
        """Raise TinkerError if the user has no such session, or it has finished."""
        session = await self.find(session_id, user=user)
        if session.finished:
            raise TinkerError(
                f"the session {session_id} has finished", fix="make a new ServiceClient", status=404
            )


def session_routes(
    sessions: Sessions, *, queue: TrainingQueue, notice: str | None = None
) -> APIRouter:
    """`queue` forgets a finished session's models. The SDK shows users the `notice`."""
    router = APIRouter()
    records, heartbeats = sessions.records, sessions.heartbeats

    @router.post("/api/v1/create_session")
    async def create_session(request: Request) -> dict[str, Any]:
        user = current_user(request)
        body = await read_json(request, CreateSession)
        require_project(body.project_id)
        now = datetime.now(UTC)
        record = SessionRecord(
            session_id=_session_id(user, request.headers.get("x-idempotency-key")),
            user=user,
            created=now,
            last_heartbeat=now,
            tags=body.tags,
            user_metadata=body.user_metadata or {},
            sdk_version=body.sdk_version,
            display_name=body.display_name,
        )
        await records.add_session(record)
        heartbeats.begin(record.session_id, user=user)
        answer = {"type": "create_session", "session_id": record.session_id}
        return answer | ({"info_message": notice} if notice else {})

    @router.post("/api/v1/session_heartbeat")
    async def session_heartbeat(request: Request) -> dict[str, str]:
        body = await read_json(request, SessionHeartbeat)
        user = current_user(request)
        heartbeats.beat(await sessions.find(body.session_id, user=user))
        records.touch_session(body.session_id)
        return {"type": "session_heartbeat"}

    @router.post("/api/v1/sessions/{session_id}/finish")
    async def finish(session_id: str, request: Request) -> Response:
        user = current_user(request)
        content = await request.body()
        body = await read_json(request, FinishSession) if content else FinishSession()
        session = await sessions.find(session_id, user=user)
        await records.finish_session(
            session_id, user=user, reason=body.reason.type, detail=body.detail
        )
        heartbeats.finish(session)
        queue.retire(session_id)
        return Response(status_code=204)

    return router


def _session_id(user: str, idempotency_key: str | None) -> str:
    """A new session's id; the same for a request that is sent again, which has the same key."""
    if idempotency_key is None:
        return f"ses-{secrets.token_hex(8)}"
    return f"ses-{hashlib.sha256(f'{user}:{idempotency_key}'.encode()).hexdigest()[:16]}"
