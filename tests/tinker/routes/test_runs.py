from __future__ import annotations

from tests.support.tinker_management import ManagementService
from tests.support.tinker_records import a_model, later


async def test_what_a_run_says(service: ManagementService):
    """Every field that the SDK reads."""
    model = a_model(
        user_metadata={"renderer_name": "role_colon", "epoch": 2}, last_request=later(9)
    )
    await service.records.add_model(model)
    saved = await service.save("0001", model=model)
    async with service.client("ada") as ada:
        answer = (await ada.get("/api/v1/training_runs/ses-1:train:0")).json()
        last = answer.pop("last_checkpoint")
        assert (last["tinker_path"], last["checkpoint_type"]) == (saved.path, "training")
        assert answer == {
            "training_run_id": "ses-1:train:0",
            "base_model": "org/base",
            "model_owner": "ada",
            "is_lora": True,
            "lora_rank": 8,
            "corrupted": False,
            "last_request_time": "2026-01-01T00:09:00Z",
            "last_sampler_checkpoint": None,
            "user_metadata": {"renderer_name": "role_colon", "epoch": "2"},
        }


async def test_runs_of_others(service: ManagementService):
    """They are seen once a checkpoint of theirs is published, and listed when asked for."""
    await service.records.add_model(a_model())
    saved = await service.save("0001", model=a_model())
    await service.save("secret", model=a_model())
    path = "/api/v1/training_runs/ses-1:train:0"
    async with service.client("bob") as bob:
        assert (await bob.get(path)).status_code == 404
        assert (await bob.get(f"{path}/checkpoints")).status_code == 404
        await service.records.set_public(saved.path, user="ada", public=True)
        answer = (await bob.get(path)).json()
        assert answer["last_checkpoint"]["checkpoint_id"] == "weights/0001"
        listed = (await bob.get(f"{path}/checkpoints")).json()["checkpoints"]
        assert [c["tinker_path"] for c in listed] == [saved.path]
        for scope, total in (("owned", 0), ("accessible", 1)):
            runs = await bob.get("/api/v1/training_runs", params={"access_scope": scope})
            assert runs.json()["cursor"] == {"offset": 0, "limit": 20, "total_count": total}
        assert (await bob.get("/api/v1/training_runs/ses-9:train:0")).status_code == 404
