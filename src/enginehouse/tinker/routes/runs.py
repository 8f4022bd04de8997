"""Training runs: the API's word for models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request

from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_query
from enginehouse.tinker.records.entries import ModelRecord
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.listing import (
    NoQuery,
    PageQuery,
    checkpoint_answer,
    require_project,
    texts,
)


class _RunQuery(StrictModel):
    """A run with a published checkpoint may be seen by everybody, whatever is asked for."""

    access_scope: Literal["owned", "accessible"] = "owned"


def run_routes(records: Records) -> APIRouter:
    """Lists of the user's training runs, and what is known of one."""
    router = APIRouter()

    @router.get("/api/v1/training_runs")
    async def training_runs(request: Request) -> dict[str, Any]:
        user = current_user(request)
        query = read_query(request, PageQuery)
        require_project(query.project_id)
        page = await records.models(
            user,
            published=query.access_scope == "accessible",
            offset=query.offset,
            limit=query.limit,
        )
        return {
            "training_runs": await _answers(page.entries, user=user),
            "cursor": query.cursor(page.total),
        }

    @router.get("/api/v1/training_runs/{run_id}")
    async def training_run(run_id: str, request: Request) -> dict[str, Any]:
        user = current_user(request)
        read_query(request, _RunQuery)
        model = await records.model(run_id, user=user, published=True)
        (answer,) = await _answers([model], user=user)
        return answer

    @router.get("/api/v1/training_runs/{run_id}/checkpoints")
    async def run_checkpoints(run_id: str, request: Request) -> dict[str, Any]:
        user = current_user(request)
        read_query(request, NoQuery)
        await records.model(run_id, user=user, published=True)
        page = await records.checkpoints(user, model_id=run_id)
        return {"checkpoints": [checkpoint_answer(record) for record in page.entries]}

    async def _answers(models: Sequence[ModelRecord], *, user: str) -> list[dict[str, Any]]:
        last = await records.last_checkpoints([m.model_id for m in models], user=user)
        answers = []
        for model in models:
            training = last.get((model.model_id, "training"))
            sampler = last.get((model.model_id, "sampler"))
            answers.append(
                {
                    "training_run_id": model.model_id,
                    "base_model": model.base_model,
                    "model_owner": model.user,
                    "is_lora": True,
                    "lora_rank": model.spec.rank,
                    "corrupted": False,
                    "last_request_time": model.last_request,
                    "last_checkpoint": training and checkpoint_answer(training),
                    "last_sampler_checkpoint": sampler and checkpoint_answer(sampler),
                    "user_metadata": texts(model.user_metadata) or None,
                }
            )
        return answers

    return router
