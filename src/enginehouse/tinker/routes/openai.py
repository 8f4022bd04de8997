"""The OpenAI API for everything that can be sampled: `model` is a tinker:// path, or an alias."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import load_object
from enginehouse.tinker.names import Names
from enginehouse.tinker.openai_fields import require_known_fields
from enginehouse.tinker.records.entries import ALIAS
from enginehouse.tinker.sampling.base import SamplingEngine
from enginehouse.tinker.sampling_desk import SamplingDesk


def openai_routes(*, names: Names, desk: SamplingDesk, engine: SamplingEngine) -> APIRouter:
    """`engine` answers each request by itself; `desk` says when."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        checkpoints = await names.checkpoints(user=current_user(request))
        listed = [{"id": names.base_model, "object": "model", "created": 0, "owned_by": "base"}]
        for checkpoint in checkpoints:
            entry = {
                "id": checkpoint.path,
                "object": "model",
                "created": int(checkpoint.created.timestamp()),
                "owned_by": checkpoint.user,
                "root": names.base_model,
            }
            listed.append(entry)
            if alias := checkpoint.user_metadata.get(ALIAS):
                listed.append(entry | {"id": alias, "parent": checkpoint.path})
        return {"object": "list", "data": listed}

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Any:
        return await answer(request, "/v1/chat/completions")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Any:
        return await answer(request, "/v1/completions")

    async def answer(request: Request, path: str) -> Any:
        user = current_user(request)
        body = await load_object(await request.body())
        name = body.get("model")
        if not isinstance(name, str):
            raise TinkerError("the request names no model")
        require_known_fields(path, body)
        sequences = sequences_of(body)
        if sequences > desk.share:
            raise TinkerError(
                f"the request asks for {sequences} answers, and {desk.share} are the most of one "
                "request here",
                fix="choose a smaller n, or send the prompts in several requests",
            )
        weights = await names.weights(name, user=user)
        desk.admit(user)
        cost = sequences * tokens_of(body, longest=engine.max_length)
        async with AsyncExitStack() as places:
            slot = desk.slot(user, tokens=cost, sequences=sequences)
            await places.enter_async_context(slot)
            if not body.get("stream"):
                reply = await engine.complete(weights, path, body)
                desk.count(user, reply, charged=cost)
                return JSONResponse(reply | {"model": name})
            events = await engine.stream(weights, path, body)
            return _HeldStream(events, places.pop_all())

    return router


def tokens_of(body: Mapping[str, Any], *, longest: int) -> int:
    """What an answer may cost, in tokens; the engine has not looked at the body yet."""
    tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    return min(max(1, tokens), longest) if isinstance(tokens, int) else longest


def sequences_of(body: Mapping[str, Any]) -> int:
    """How many answers are wanted: `n` to each prompt."""
    choices = max(1, n) if isinstance(n := body.get("n"), int) else 1
    prompts = body.get("prompt")
    if isinstance(prompts, list) and not all(isinstance(one, int) for one in prompts):
        choices *= len(prompts)
    return choices


class _HeldStream(StreamingResponse):
    """Sends the events; the place in the engine is held until they were read, or given up."""

    def __init__(self, events: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. They may not have been begun when the client is gone."""
        async with self._held, aclosing(self._events):
            await super().__call__(scope, receive, send)
