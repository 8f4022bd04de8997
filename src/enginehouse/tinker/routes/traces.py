"""The trace of a session, by a link that works without an API key, for an hour."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.application import current_user
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.guard import DOWNLOADS
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.signing import Signer
from enginehouse.tinker.traces import session_trace

_TRACES: Final = f"{DOWNLOADS}traces/"
_PURPOSE: Final = "trace"
_VALID: Final = 3600.0  # seconds


def trace_routes(records: Records, *, futures: Futures, signer: Signer) -> APIRouter:
    """Traces of what `futures` still knows: an hour from when an answer was retrieved."""
    router = APIRouter()

    @router.get("/api/v1/sessions/{session_id}/trace_export")
    async def export_trace(session_id: str, request: Request) -> dict[str, str]:
        user = current_user(request)
        await records.session(session_id, user=user)
        claims = {"session_id": session_id, "user": user}
        token = signer.sign(claims, purpose=_PURPOSE, seconds=_VALID)
        base = str(request.base_url).rstrip("/") + _TRACES
        return {"status": "ready", "url": f"{base}{quote(session_id)}?token={token}"}

    @router.get(f"{_TRACES}{{session_id}}")
    async def trace(session_id: str, request: Request) -> Response:
        claims = signer.read(request.query_params.get("token", ""), purpose=_PURPOSE)
        if claims is None or claims["session_id"] != session_id:
            raise TinkerError("this trace link is invalid or has expired", status=403)
        content = session_trace(session_id, futures.of_user(claims["user"]), until=time.time())
        return Response(content, media_type="application/json")

    return router
