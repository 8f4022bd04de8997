from __future__ import annotations

from tests.support.tinker_management import ManagementService
from tests.support.tinker_records import a_model

from enginehouse.tinker.keys import KeyFile


async def test_ones_own_key(service: ManagementService):
    """What the SDK's login reads, and what its logout does."""
    async with service.client("ada") as ada, service.client("bob") as bob:
        answer = (await ada.get("/api/v1/auth/apikey/me")).json()
        (stored, _) = KeyFile(service.home / "keys.json").read()
        assert answer == {
            "key_id": int(stored.key_id, 16),
            "name": stored.key_id,
            "note": "",
            "details": {
                "org_details": {"name": "enginehouse"},
                "user_details": {"email": "ada"},
            },
        }
        assert (await ada.delete("/api/v1/auth/apikey/me")).status_code == 204
        assert (await ada.get("/api/v1/auth/apikey/me")).status_code == 401
        assert (await bob.get("/api/v1/auth/apikey/me")).status_code == 200


async def test_logging_in(service: ManagementService):
    """The token acts as its key."""
    async with service.client("ada") as ada, service.client(None) as other:
        token = (await ada.post("/api/v1/auth/token", json={})).json()["jwt"]
        me = await other.get("/api/v1/auth/apikey/me", headers={"x-api-key": token})
        assert me.json()["details"]["user_details"] == {"email": "ada"}
        forged = token[:-4] + "AAAA"
        refused = await other.get("/api/v1/auth/apikey/me", headers={"x-api-key": forged})
        assert refused.status_code == 401


async def test_storage(service: ManagementService):
    """What one's checkpoints take; nothing has a price."""
    await service.records.add_model(a_model())
    await service.save("0001", model=a_model())
    await service.save("0002", model=a_model())
    path = "/api/v1/billing/usage/checkpoints/current"
    async with service.client("ada") as ada, service.client("bob") as bob:
        answer = (await ada.get(path)).json()
        assert answer["effective_rate_usd_per_gigabyte_month"] is None
        (used,) = answer["data"]
        assert (used["checkpoint_count"], used["size_bytes"]) == (2, 2008)
        assert used["size_gigabytes"] == 2008 / 1e9
        assert (await bob.get(path)).json()["data"][0]["size_bytes"] == 0


async def test_what_there_is_not(service: ManagementService):
    """The answer says so, and is none that the SDK would try again."""
    async with service.client("ada") as ada:
        for path, said in (
            ("/api/v1/audit?event_type=all", "audit log"),
            ("/api/v1/billing/usage/events", "billing"),
        ):
            answer = await ada.get(path)
            assert answer.status_code == 404
            assert said in answer.json()["detail"]
