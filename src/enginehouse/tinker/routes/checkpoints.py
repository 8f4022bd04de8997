"""Checkpoints: listed, described, published, limited in time and deleted."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_json, read_query
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import CheckpointStore, expiry
from enginehouse.tinker.repeats import Repeats
from enginehouse.tinker.routes.listing import PageQuery, checkpoint_answer, require_project

_ONE: Final = "/api/v1/training_runs/{run_id}/checkpoints/{segment}/{name}"


class _SetTtl(StrictModel):
    ttl_seconds: int | None


class _WeightsInfo(StrictModel):
    tinker_path: str


def checkpoint_routes(checkpoints: CheckpointStore, *, repeats: Repeats) -> APIRouter:
    """What the user sees of checkpoints, and does with their own."""
    router = APIRouter()
    records = checkpoints.records

    @router.get("/api/v1/checkpoints")
    async def user_checkpoints(request: Request) -> dict[str, Any]:
        query = read_query(request, PageQuery)
        require_project(query.project_id)
        page = await records.checkpoints(
            current_user(request), offset=query.offset, limit=query.limit
        )
        return {
            "checkpoints": [checkpoint_answer(record) for record in page.entries],
            "cursor": query.cursor(page.total),
        }

    @router.delete(_ONE)
    async def delete(run_id: str, segment: str, name: str, request: Request) -> Response:
        path = _path(run_id, segment, name)
        user = current_user(request)
        await repeats.once(request, lambda: checkpoints.remove(path, user=user))
        return Response(status_code=204)

    @router.post(f"{_ONE}/publish")
    async def publish(run_id: str, segment: str, name: str, request: Request) -> Response:
        path = _path(run_id, segment, name)
        await records.set_public(path, user=current_user(request), public=True)
        return Response(status_code=204)

    @router.delete(f"{_ONE}/publish")
    async def unpublish(run_id: str, segment: str, name: str, request: Request) -> Response:
        path = _path(run_id, segment, name)
        await records.set_public(path, user=current_user(request), public=False)
        return Response(status_code=204)

    @router.put(f"{_ONE}/ttl")
    async def set_ttl(run_id: str, segment: str, name: str, request: Request) -> Response:
        path = _path(run_id, segment, name)
        body = await read_json(request, _SetTtl)
        expires_at = expiry(body.ttl_seconds)
        await records.set_expiry(path, user=current_user(request), expires_at=expires_at)
        return Response(status_code=204)

    @router.post("/api/v1/weights_info")
    async def weights_info(request: Request) -> dict[str, Any]:
        body = await read_json(request, _WeightsInfo)
        path = str(CheckpointPath.parse(body.tinker_path))
        record = await records.checkpoint(path, user=current_user(request))
        return {
            "base_model": record.base_model,
            "is_lora": True,
            "lora_rank": record.spec.rank,
            "train_unembed": record.spec.train_unembed,
            "train_mlp": record.spec.train_mlp,
            "train_attn": record.spec.train_attn,
        }

    return router


def _path(run_id: str, segment: str, name: str) -> str:
    return str(CheckpointPath.parse(f"tinker://{run_id}/{segment}/{name}"))
