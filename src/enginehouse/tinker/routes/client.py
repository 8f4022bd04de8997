"""What the SDK asks before anything else: flags, capabilities, health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request

from enginehouse.core.errors import TinkerError

# Flags of the SDK's ClientConfigResponse. What is not named keeps the SDK's default.
_FLAGS: Final = {
    "pjwt_auth_enabled": True,  # a login says who one is: `tinker auth whoami` reads it
    "parallel_fwdbwd_chunks": True,  # jobs are put in order by their seq_id
    "proto_compress_fwdbwd": False,
    "sample_use_retrieve_futures": True,  # one poll for all samples of a sampling session
    "sample_join_sampling_session": True,
    "custom_loss_server_side": False,  # the client then computes it, in two steps
    # Now and then a process of the SDK (0.38) aborts outside of Python when its work is done. The
    # transport in Rust (pyqwest), whose threads may await a poll then, is the suspect.
    "use_pyqwest_transport": False,
}
_REFRESH: Final = 300  # seconds
_REFRESHED_FLAGS: Final = {"refresh_interval_sec": _REFRESH, "sample_cancel_enabled": True}


def client_routes(*, model: Mapping[str, Any]) -> APIRouter:
    """`model` is what get_server_capabilities says about the one base model there is."""
    router = APIRouter()

    @router.get("/api/v1/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.post("/api/v1/client/config")
    async def config() -> dict[str, Any]:
        return dict(_FLAGS)

    @router.post("/api/v1/client/dynamic_config")
    async def dynamic_config() -> dict[str, Any]:
        return dict(_REFRESHED_FLAGS)

    @router.get("/api/v1/get_server_capabilities")
    async def capabilities() -> dict[str, Any]:
        return {"supported_models": [dict(model)]}

    @router.post("/api/v1/telemetry")
    async def telemetry(request: Request) -> dict[str, str]:
        await request.body()  # so that the connection can be used again
        return {"status": "accepted"}

    @router.post("/api/v1/create_custom_loss")
    async def create_custom_loss() -> None:
        raise TinkerError(
            "custom losses are not computed by this service",
            fix="use forward_backward_custom, which computes them in the client: the SDK does so "
            "as long as this service does not set the flag custom_loss_server_side",
        )

    return router
