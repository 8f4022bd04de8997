from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.tinker_client import House


@pytest.mark.slow
async def test_a_service_that_is_restarted(tmp_path: Path, database_url: str):
    """In either database: it knows the run and its checkpoint, and saves the next one."""
    house = House(tmp_path)
    async with house.open(database=database_url) as running:
        ada = await running.client().begin()
        model_id = await ada.create_model()
        await ada.compute(model_id, 1, [1, 2, 3])
        await ada.step(model_id, 2)
        first = await ada.done("save_weights", {"model_id": model_id, "seq_id": 3, "path": "a"})
    async with house.open(database=database_url) as running:
        again = running.client()
        run = await again.get(f"/api/v1/training_runs/{model_id}")
        assert run["last_checkpoint"]["tinker_path"] == first["path"]
        body = {"model_id": model_id, "seq_id": 4, "path": "b"}
        second = await again.done("save_weights", body)
        listed = (await again.get("/api/v1/checkpoints"))["checkpoints"]
        assert [each["tinker_path"] for each in listed] == [second["path"], first["path"]]
        assert (await again.get("/api/v1/sessions"))["sessions"] == [ada.session]
