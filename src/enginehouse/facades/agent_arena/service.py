"""Agent Arena's HTTP contract: what a Godot scene sends, and what it executes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError
from starlette.exceptions import HTTPException

from enginehouse.commands.configuration import ServiceConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.facades.agent_arena.deciding import Decider
from enginehouse.facades.agent_arena.positions import TARGET, normal_parameters
from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening, running


class _Message(BaseModel):
    """Scenes add fields of their own: they are kept, and reach the model."""

    model_config = ConfigDict(extra="allow")

    agent_id: str
    tick: int = 0

    def content(self) -> dict[str, Any]:
        """Everything that was sent."""
        return self.model_dump(exclude_unset=True)


class _AgentEntry(BaseModel):
    agent_id: str
    observations: dict[str, Any] = {}


class _Tick(BaseModel):
    """Scenes send `perceptions`; the protocol's document says `agents`."""

    tick: int
    perceptions: list[_Message] = []
    agents: list[_AgentEntry] = []


class _ToolExecution(BaseModel):
    tool_name: str
    params: dict[str, Any] = {}
    agent_id: str | None = None
    """Some scenes send it as one of the `params`."""


def create_app(decider: Decider, *, model: str) -> FastAPI:
    """The application that answers scenes; `model` is named by GET /health."""
    app = FastAPI(title="Agent Arena", openapi_url=None)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        where = ".".join(str(step) for step in problem["loc"] if step != "body")
        if problem["type"] == "json_invalid":
            reason = f"the body is not JSON: {problem['ctx']['error']} at character {where}"
        else:
            reason = f"{where}: {problem['msg']}" if where else str(problem["msg"])
        return _refusal(400, reason)

    @app.exception_handler(PydanticSerializationError)
    async def refuse_echo(_: Request, error: PydanticSerializationError) -> JSONResponse:
        # JSON may escape half a surrogate pair; what was sent cannot be repeated in the answer
        return _refusal(400, f"a text is not Unicode: {error}")

    @app.exception_handler(HTTPException)
    async def refuse_request(_: Request, error: HTTPException) -> JSONResponse:
        return _refusal(error.status_code, error.detail, headers=error.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "agents": decider.agents, "model": model}

    @app.post("/observe")
    async def observe(message: _Message) -> dict[str, Any]:
        return await _action(decider, message.agent_id, message.content(), tick=message.tick)

    @app.post("/tick")
    async def tick(request: _Tick) -> dict[str, Any]:
        begun = time.perf_counter()
        observations = [(m.agent_id, m.content()) for m in request.perceptions]
        observations += [(entry.agent_id, entry.observations) for entry in request.agents]
        actions = await asyncio.gather(
            *(
                _action(decider, agent_id, observation, tick=request.tick)
                for agent_id, observation in observations
            )
        )
        # the scenes read a flat action, the protocol's document has it nested
        actions = [
            action | {"action": {name: action[name] for name in ("tool", "params")}}
            for action in actions
        ]
        metrics = {
            "tick_time_ms": round(1000 * (time.perf_counter() - begun), 1),
            "agents_processed": len(observations),
            "actions_generated": len(actions),
        }
        return {"tick": request.tick, "actions": actions, "metrics": metrics}

    @app.post("/tools/execute")
    async def execute(request: _ToolExecution) -> dict[str, Any]:
        # The scene itself moves, collects and crafts; this only normalises and acknowledges.
        params = normal_parameters(request.params)
        inside = params.pop("agent_id", None)
        lost = request.tool_name == "move_to" and TARGET not in params
        return {
            "success": not lost,
            "tool_name": request.tool_name,
            "agent_id": request.agent_id or inside or "unknown",
            "result": None if lost else {"params": params},
            "error": f"{TARGET} is not a position [x, y, z]" if lost else "",
        }

    @app.post("/experience")
    async def experience(message: _Message) -> dict[str, Any]:
        kept = decider.remember(message.agent_id, message.content())
        return {"success": True, "agent_id": message.agent_id, "experiences": kept}

    return app


async def serve_until_stopped(
    config: ServiceConfig, context: Context, *, ready: Callable[[str], None]
) -> None:
    """Answer scenes on 127.0.0.1 until cancelled; `ready` is given the address.

    Raises PortError for a port that is taken, before the model is touched, and the errors of
    `open_deployment`.
    """
    with listening(config.settings.arena_port, option="--arena-port") as listener:
        async with open_deployment(config.plan, context) as deployment:
            decider = Decider(deployment.sampler, config.settings, notify=context.notify)
            app = create_app(decider, model=deployment.sampler.model or config.plan.model or "")
            async with running(app, listener) as service:
                ready(service.url)
                await service.ended()


def _refusal(status: int, reason: str, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    code = "INVALID_PARAMETERS" if status == 400 else HTTPStatus(status).name
    body = {"error": {"code": code, "message": reason}, "actions": []}
    return JSONResponse(body, status_code=status, headers=headers)


async def _action(
    decider: Decider, agent_id: str, observation: Mapping[str, Any], *, tick: int
) -> dict[str, Any]:
    decision = await decider.decide(agent_id, observation, tick=tick)
    action = {
        "agent_id": agent_id,
        "tick": tick,
        "tool": decision.tool,
        "params": decision.params,
        "reasoning": decision.reasoning,
    }
    return action if decision.error is None else action | {"error": decision.error}
