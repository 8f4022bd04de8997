"""Who one is, what one's checkpoints take, and what is neither logged nor billed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from enginehouse.core.errors import ConfigurationError, TinkerError
from enginehouse.core.strict_model import StrictModel
from enginehouse.tinker.application import current_user
from enginehouse.tinker.bodies import read_query
from enginehouse.tinker.keys import ORGANISATION, Keys
from enginehouse.tinker.records.records import Records
from enginehouse.tinker.routes.listing import PROJECT, require_project, user_urn


class _StorageQuery(StrictModel):
    project_id: str | None = None


def account_routes(records: Records, *, keys: Keys) -> APIRouter:
    """The user behind a key, and the key itself."""
    router = APIRouter()

    @router.post("/api/v1/auth/token")
    async def log_in(request: Request) -> dict[str, str]:
        token = keys.log_in(request.headers.get("x-api-key"))
        if token is None:
            raise TinkerError("unknown API key", status=401)
        return {"jwt": token}

    @router.get("/api/v1/auth/apikey/me")
    async def own_key(request: Request) -> dict[str, Any]:
        user = current_user(request)
        key = keys.identify(request.headers.get("x-api-key"))
        return {
            "key_id": int(key.key_id, 16) if key else 0,
            "name": key.key_id if key else user,
            "note": key.note if key else "this service needs no key on its own machine",
            "details": {
                "org_details": {"name": ORGANISATION},
                "user_details": {"email": user},
            },
        }

    @router.delete("/api/v1/auth/apikey/me")
    async def revoke_own_key(request: Request) -> Response:
        key = keys.identify(request.headers.get("x-api-key"))
        if key is None:
            raise TinkerError(
                "there is no key to revoke: this service does not use keys", status=404
            )
        try:
            keys.revoke(key)
        except ConfigurationError as error:
            raise TinkerError(str(error)) from error
        return Response(status_code=204)

    @router.get("/api/v1/audit")
    async def audit(request: Request) -> None:
        current_user(request)
        raise TinkerError(
            "this service keeps no audit log",
            fix="the operator's log has every request, with its user and its id",
            status=404,
        )

    @router.get("/api/v1/billing/usage/events")
    async def billing(request: Request) -> None:
        current_user(request)
        raise TinkerError(
            "this service does no billing",
            fix="`enginehouse tinker status` and GET /metrics show the tokens of each user",
            status=404,
        )

    @router.get("/api/v1/billing/usage/checkpoints/current")
    async def storage(request: Request) -> dict[str, Any]:
        user = current_user(request)
        require_project(read_query(request, _StorageQuery).project_id)
        used = (await records.storage(user)).values()
        size = sum(each.size_bytes for each in used)
        return {
            "effective_rate_usd_per_gigabyte_month": None,
            "data": [
                {
                    "project_id": PROJECT,
                    "org_user_urn": user_urn(user),
                    "user_name": user,
                    "checkpoint_count": sum(each.checkpoints for each in used),
                    "size_bytes": size,
                    "size_gigabytes": size / 1e9,
                    "estimated_monthly_cost_usd": None,
                }
            ],
        }

    return router
