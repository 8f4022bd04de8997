"""The SDK's own command line, unmodified, in a process of its own."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.tinker_client import House
from tests.support.tinker_management import FILES, ManagementService, run_tinker
from tests.support.tinker_records import a_model, a_session, later


async def _run(service: ManagementService, *words: str, user: str = "ada") -> str:
    code, out, err = await service.tinker(*words, user=user)
    assert code == 0, err
    return out


async def _json(service: ManagementService, *words: str, user: str = "ada") -> Any:
    return json.loads(await _run(service, "--format", "json", *words, user=user))


async def _refused(service: ManagementService, *words: str, user: str = "bob") -> str:
    code, _, err = await service.tinker(*words, user=user)
    assert code == 1
    assert "Traceback" not in err
    return err


@pytest.fixture
async def trained(service: ManagementService) -> ManagementService:
    """What ada has trained: two runs, and checkpoints of each kind of the first."""
    model = a_model(user_metadata={"renderer_name": "role_colon"}, last_request=later(30))
    await service.records.add_session(a_session(display_name="nightly"))
    await service.records.add_model(model)
    await service.records.add_model(a_model("ses-1:train:1"))
    await service.save("0001", model=model)
    await service.save("0002", model=model, ttl_seconds=7200)
    await service.save("0001", model=model, kind="sampler")
    await service.save("final", model=model, kind="external")
    return service


@pytest.mark.slow
async def test_listing(trained: ManagementService):
    """Runs and checkpoints of one's own."""
    runs = (await _json(trained, "run", "list"))["runs"]
    assert [run["training_run_id"] for run in runs] == ["ses-1:train:1", "ses-1:train:0"]
    run = await _json(trained, "run", "info", "ses-1:train:0")
    assert (run["base_model"], run["lora_rank"], run["is_lora"]) == ("org/base", 8, True)
    assert run["user_metadata"] == {"renderer_name": "role_colon"}
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/0002"
    assert run["last_sampler_checkpoint"]["checkpoint_id"] == "sampler_weights/0001"

    listed = (await _json(trained, "checkpoint", "list"))["checkpoints"]
    assert [c["checkpoint_id"] for c in listed] == [
        "external_weights/final",
        "sampler_weights/0001",
        "weights/0002",
        "weights/0001",
    ]
    of_run = await _json(trained, "checkpoint", "list", "--run-id", "ses-1:train:0")
    assert of_run["checkpoints"] == listed
    assert "No checkpoints found" in await _run(trained, "checkpoint", "list", user="bob")


@pytest.mark.slow
async def test_publishing(trained: ManagementService):
    """A published checkpoint is there for others, and gone for them once it is withdrawn."""
    path = "tinker://ses-1:train:0/weights/0001"
    private = await _refused(trained, "checkpoint", "info", path)
    assert "there is no training run ses-1:train:0" in private
    assert "Resource not found" in await _refused(trained, "checkpoint", "publish", path)
    await _run(trained, "checkpoint", "publish", path)
    info = await _json(trained, "checkpoint", "info", path, user="bob")
    assert (info["public"], info["lora_rank"], info["size_bytes"]) == (True, 8, 1004)
    listed = await _json(trained, "checkpoint", "list", "--run-id", "ses-1:train:0", user="bob")
    assert [c["tinker_path"] for c in listed["checkpoints"]] == [path]
    await _run(trained, "checkpoint", "unpublish", path)
    assert await _refused(trained, "checkpoint", "info", path) == private


@pytest.mark.slow
async def test_time_to_live(trained: ManagementService):
    """Set, removed, and refused outside of an hour to ten years."""
    path = "tinker://ses-1:train:0/weights/0001"
    await _run(trained, "checkpoint", "set-ttl", path, "--ttl", "7200")
    info = await _json(trained, "checkpoint", "info", path)
    left = datetime.fromisoformat(info["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=110) < left <= timedelta(hours=2)
    await _run(trained, "checkpoint", "set-ttl", path, "--remove")
    assert (await _json(trained, "checkpoint", "info", path))["expires_at"] is None
    short = await _refused(trained, "checkpoint", "set-ttl", path, "--ttl", "60", user="ada")
    assert "3,600 seconds" in short


@pytest.mark.slow
async def test_downloading(trained: ManagementService):
    """Every file of a checkpoint for use elsewhere, byte for byte."""
    path = "tinker://ses-1:train:0/external_weights/final"
    await _run(trained, "checkpoint", "download", path, "--output", "here")
    folder = trained.home / "here" / "ses-1:train:0_external_weights_final"
    downloaded = {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8")
        for file in folder.rglob("*")
        if file.is_file()
    }
    assert downloaded == FILES


@pytest.mark.slow
async def test_downloading_a_training_checkpoint(tmp_path: Path):
    """The command line loads it into a new run, exports that, and removes the export."""
    house = House(tmp_path / "service")
    async with house.open() as running:
        ada = await running.client().begin()
        model_id = await ada.create_model()
        body = {"model_id": model_id, "seq_id": 1, "path": "0001"}
        saved = await ada.done("save_weights", body)
        (tmp_path / "user").mkdir()
        code, _, err = await run_tinker(
            *("checkpoint", "download", saved["path"], "--output", "here"),
            url=str(running.web._base_url),
            key=house.keys["ada"],
            home=tmp_path / "user",
        )
        assert code == 0, err
        left = (await ada.get("/api/v1/checkpoints"))["checkpoints"]
        assert [checkpoint["tinker_path"] for checkpoint in left] == [saved["path"]]
    folder = tmp_path / "user" / "here" / f"{model_id}_weights_0001"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in folder.iterdir()
    }


@pytest.mark.slow
async def test_deleting(trained: ManagementService):
    """One, and those of a run that a filter leaves."""
    path = "tinker://ses-1:train:0/weights/0001"
    foreign = await _json(trained, "checkpoint", "delete", "--yes", path, user="bob")
    assert foreign["deleted_count"] == 0
    assert "there is no checkpoint" in foreign["failed"][0]["error"]
    deleted = await _json(trained, "checkpoint", "delete", "--yes", path)
    assert deleted == {"deleted_count": 1, "failed": []}
    await _json(
        trained, "checkpoint", "delete", "--yes", "--run-id", "ses-1:train:0", "--type", "weights"
    )
    listed = (await _json(trained, "checkpoint", "list"))["checkpoints"]
    assert [c["checkpoint_id"] for c in listed] == [
        "external_weights/final",
        "sampler_weights/0001",
    ]


@pytest.mark.slow
async def test_account(trained: ManagementService):
    """Who one is, read from the login that the SDK exchanges its key for."""
    assert "Tinker accessible: yes" in await _run(trained, "auth", "status")
    assert await _json(trained, "auth", "whoami") == {
        "user_urn": "tml:user:ada",
        "org_urn": "tml:organization:enginehouse",
        "email": None,
    }


@pytest.mark.slow
async def test_sessions(trained: ManagementService):
    """A session's trace can be opened as what it is: JSON."""
    future = await trained.futures.accept(
        key="k",
        kind="optim_step",
        user="ada",
        body=b"{}",
        content_type="application/json",
        details={"model_id": "ses-1:train:0", "seq_id": 1},
    )
    await trained.futures.finish(future, b"{}", content_type="application/json")
    exported = await _json(trained, "session", "export-trace", "ses-1", "--output", "ses-1.trace")
    trace = json.loads((trained.home / "ses-1.trace").read_text())
    assert "optim_step" in {event["name"] for event in trace["traceEvents"]}
    assert exported["session_id"] == "ses-1"
    assert "there is no session" in await _refused(trained, "session", "export-trace", "ses-1")


@pytest.mark.slow
async def test_billing(trained: ManagementService):
    """What checkpoints take is told; that nothing is billed is, too, and not tried again."""
    (used,) = (await _json(trained, "billing", "checkpoint-storage"))["data"]
    assert (used["checkpoint_count"], used["size_bytes"]) == (4, 4016)
    period = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    told = await _refused(trained, "billing", "usage", *period, user="ada")
    assert "nothing is billed" in told
