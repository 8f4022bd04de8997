"""Models: LoRAs that are being trained, new ones, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import parse_json, read_json
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.future import JSON
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.job_bodies import CreateModel, LoadWeights
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.sessions import Sessions
from enginehouse.tinker.trainers.base import TrainerInfo
from enginehouse.tinker.training_queue import TrainingQueue

_MOST_KNOWN: Final = 4096


class GetInfo(StrictModel):
    """The SDK's GetInfoRequest."""

    model_id: str
    type: Literal["get_info"] = "get_info"


class Models:
    """Whose model is which, in memory once it was asked for: a model never changes its owner.

    A few thousand are kept in memory; the others are looked up when they are asked for again.
    """

    def __init__(self, *, records: Records, futures: Futures) -> None:
        self.records = records
        self._futures = futures
        self._known: set[tuple[str, str]] = set()

    async def require(self, model_id: str, *, user: str) -> None:
        """Raise TinkerError (404) unless it is the user's model, or will be once it is created."""
        if (model_id, user) not in self._known:
            session_id, _, number = model_id.partition(":train:")
            creation = self._futures.accepted(f"session:{session_id}:model:{number}")
            if creation is None or creation.user != user:
                await self.records.model(model_id, user=user)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known.add((model_id, user))
        self.records.touch(model_id)


def model_routes(
    models: Models,
    *,
    sessions: Sessions,
    futures: Futures,
    queue: TrainingQueue,
    base_model: str,
    info: TrainerInfo,
    describe: Callable[[LoraSpec], Mapping[str, Any]],
) -> APIRouter:
    """`describe` is what get_info says about who samples such a model."""
    router = APIRouter()

    async def begin(
        request: Request, kind: str, key: str, model_id: str, seq_id: int
    ) -> dict[str, Any]:
        user = current_user(request)
        if futures.accepted(key) is None:
            queue.admit(user=user, model_id=model_id, seq_id=seq_id)
        future = await futures.accept(
            key=key,
            kind=kind,
            user=user,
            body=await request.body(),
            content_type=JSON,
            details={"model_id": model_id, "seq_id": seq_id},
        )
        if future.take():
            queue.submit(future)
        return {"request_id": future.request_id, "model_id": model_id}

    @router.post("/api/v1/create_model")
    async def create_model(request: Request) -> dict[str, Any]:
        body = await read_json(request, CreateModel)
        require_base(body.base_model, base_model)
        await sessions.require(body.session_id, user=current_user(request))
        key = f"session:{body.session_id}:model:{body.model_seq_id}"
        model_id = f"{body.session_id}:train:{body.model_seq_id}"
        return await begin(request, "create_model", key, model_id, 0)

    @router.post("/api/v1/load_weights")
    async def load_weights(request: Request) -> dict[str, Any]:
        user = current_user(request)
        body = await parse_json(await request.body(), LoadWeights)
        if body.session_id is not None and body.model_seq_id is not None:
            require_base(body.base_model, base_model)
            await sessions.require(body.session_id, user=user)
            key = f"session:{body.session_id}:model:{body.model_seq_id}"
            model_id = f"{body.session_id}:train:{body.model_seq_id}"
            return await begin(request, "load_weights", key, model_id, 0)
        if body.model_id is not None and body.seq_id is not None:
            await models.require(body.model_id, user=user)
            key = f"model:{body.model_id}:{body.seq_id}"
            return await begin(request, "load_weights", key, body.model_id, body.seq_id)
        raise TinkerError("give session_id and model_seq_id, or model_id and seq_id")

    @router.post("/api/v1/get_info")
    async def get_info(request: Request) -> dict[str, Any]:
        body = await read_json(request, GetInfo)
        model = await models.records.model(body.model_id, user=current_user(request))
        return {
            "type": "get_info",
            "model_id": model.model_id,
            "model_name": model.base_model,
            "model_data": {
                "arch": info.architecture,
                "model_name": model.base_model,
                "tokenizer_id": info.tokenizer or model.base_model,
            },
            "is_lora": True,
            "lora_rank": model.spec.rank,
            "optimizer_config": {"type": "adamw"},
            **describe(model.spec),
        }

    return router


def require_base(name: str | None, base_model: str) -> None:
    """Raise TinkerError unless `name` is the base model of this service, or None."""
    if name is not None and name != base_model:
        raise TinkerError(
            f"the base model {name} is not served here",
            fix=f"use {base_model}, the only one that this service trains and samples",
        )
