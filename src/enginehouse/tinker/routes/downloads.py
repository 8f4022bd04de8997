"""Downloading the files of a checkpoint, by links that work without an API key, for an hour."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_query
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.guard import DOWNLOADS
from enginehouse.tinker.routes.listing import NoQuery
from enginehouse.tinker.signing import Signer

_FILES: Final = f"{DOWNLOADS}files/"
_PURPOSE: Final = "download"
_VALID: Final = timedelta(hours=1)  # the SDK asks for new links five minutes before the end
_URLS: Final = "/api/v1/training_runs/{run_id}/checkpoints/{segment}/{name}/external_weights_urls"


def download_routes(checkpoints: CheckpointStore, *, signer: Signer) -> APIRouter:
    """Links to files, signed by `signer`, and the files themselves."""
    router = APIRouter()
    records = checkpoints.records

    @router.get(_URLS)
    async def external_weights_urls(
        run_id: str, segment: str, name: str, request: Request
    ) -> dict[str, Any]:
        user = current_user(request)
        read_query(request, NoQuery)
        path = CheckpointPath.parse(f"tinker://{run_id}/{segment}/{name}")
        record = await records.checkpoint(str(path), user=user)
        if record.kind != "external":
            raise TinkerError(
                f"{record.path} cannot be downloaded",
                why="only weights that were saved for use elsewhere can",
                fix="save_weights_external makes them; `tinker checkpoint download` does so itself"
                " for a training checkpoint",
            )
        expires = datetime.now(UTC) + _VALID
        claims = {"path": record.path, "folder": record.folder, "user": user}
        token = signer.sign(claims, purpose=_PURPOSE, seconds=_VALID.total_seconds())
        base = str(request.base_url).rstrip("/") + _FILES
        names = await asyncio.to_thread(checkpoints.files, record)
        return {
            "urls": {each: f"{base}{quote(each)}?token={token}" for each in names},
            "expires": expires,
        }

    @router.get(f"{_FILES}{{name:path}}")
    async def download(name: str, request: Request) -> Response:
        token = request.query_params.get("token", "")  # not in the path, which is logged
        claims = signer.read(token, purpose=_PURPOSE)
        if claims is None:
            raise TinkerError(
                "this link to a file is not valid, or no longer",
                fix="ask for new ones: get_external_weights_urls()",
                status=403,
            )
        record = await records.checkpoint(claims["path"], user=claims["user"])
        if record.folder != claims["folder"]:
            raise TinkerError(f"{record.path} was replaced after this link was made", status=404)
        file = await asyncio.to_thread(checkpoints.file, record, name)
        return FileResponse(file, media_type="application/octet-stream")

    return router
