"""For the operator: the service's state, and its figures for Prometheus."""

from __future__ import annotations

import hmac
from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request, Response

from enginehouse.core.errors import TinkerError
from enginehouse.tinker.metrics import make_registry, metrics_text
from enginehouse.tinker.service_status import ServiceStatus

OPERATOR_HEADER = "x-operator-key"
"""The header with the key in the service's home, which only its operator can read."""


def operation_routes(*, status: Callable[[], ServiceStatus], operator_key: str) -> APIRouter:
    """GET /status for the operator, GET /metrics for this machine and for users."""
    router = APIRouter()
    registry = make_registry(status)

    @router.get("/status")
    async def service_status(request: Request) -> Response:
        given = request.headers.get(OPERATOR_HEADER, "")
        if not hmac.compare_digest(given.encode(), operator_key.encode()):
            raise TinkerError(
                "only the operator may see the status of the service",
                why="it names users and their models",
                fix="run `enginehouse tinker status` as the service's user, with its home",
                status=401,
            )
        return Response(msgspec.json.encode(status()), media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(metrics_text(registry), media_type="text/plain; version=0.0.4")

    return router
