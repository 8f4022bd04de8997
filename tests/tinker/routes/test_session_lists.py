from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.tinker_management import ManagementService
from tests.support.tinker_records import START, a_model, a_sampler, a_session, later


@pytest.fixture
async def sessions(service: ManagementService) -> ManagementService:
    """Four sessions of ada's and one of bob's."""
    records = service.records
    await records.add_session(
        a_session("ses-1", display_name="Nightly run", user_metadata={"team": "a", "n": 3})
    )
    await records.add_session(a_session("ses-2", created=later(1), display_name="evening run"))
    await records.add_session(a_session("ses-3", created=later(2)))
    await records.add_session(a_session("ses-4", created=later(3)))
    await records.add_session(a_session("ses-b", user="bob"))
    await records.finish_session("ses-2", user="ada", reason="success", detail="done")
    await records.finish_session("ses-3", user="ada", reason="errored")
    records.touch_session("ses-4")
    await records.add_model(a_model())
    await records.add_model(a_model("ses-1:train:1", created=later(1)))
    await records.add_sampling_session(a_sampler(0))
    await records.add_sampling_session(a_sampler(1, checkpoint="tinker://m/sampler_weights/1"))
    await service.save("0001", model=a_model())
    await service.save("0002", model=a_model())
    return service


async def _search(service: ManagementService, user: str = "ada", **body: Any) -> Any:
    async with service.client(user) as client:
        answer = await client.post("/api/v1/sessions/search", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def _found(service: ManagementService, user: str = "ada", **body: Any) -> str:
    answer = await _search(service, user, **body)
    return "".join(session["session_id"][-1] for session in answer["sessions"])


async def test_listing(sessions: ManagementService):
    """One's own, newest first."""
    async with sessions.client("ada") as ada:
        answer = (await ada.get("/api/v1/sessions", params={"limit": 3})).json()
        assert answer["sessions"] == ["ses-4", "ses-3", "ses-2"]
        everybody = await ada.get("/api/v1/sessions", params={"access_scope": "accessible"})
        assert len(everybody.json()["sessions"]) == 4


async def test_one_session(sessions: ManagementService):
    """Its runs and samplers; the SDK reads metadata as strings."""
    async with sessions.client("ada") as ada, sessions.client("bob") as bob:
        path = "/api/v1/sessions/ses-1"
        assert (await ada.get(path, params={"access_scope": "owned"})).json() == {
            "training_run_ids": ["ses-1:train:1", "ses-1:train:0"],
            "sampler_ids": ["ses-1:sample:0", "ses-1:sample:1"],
            "user_metadata": {"team": "a", "n": "3"},
            "display_name": "Nightly run",
        }
        refused = await bob.get(path)
        assert refused.status_code == 404
        assert "there is no session ses-1" in refused.json()["detail"]


@pytest.mark.slow
async def test_searching(sessions: ManagementService):
    """By each of the criteria that the SDK sends."""
    assert await _found(sessions) == "4321"
    assert await _found(sessions, display_name="RUN") == "21"
    assert await _found(sessions, display_name="run nightly") == "1"
    assert await _found(sessions, session_id="ses-4", display_name="evening") == "42"
    assert await _found(sessions, user_metadata={"team": "a"}) == "1"
    assert await _found(sessions, user_metadata={"team": "b"}) == ""
    assert await _found(sessions, statuses=[{"type": "active"}]) == "4"
    assert await _found(sessions, statuses=[{"type": "client_finished"}]) == "32"
    errored = [{"type": "client_finished", "reasons": ["errored"]}, {"type": "active"}]
    assert await _found(sessions, statuses=errored) == "43"
    assert await _found(sessions, statuses=[{"type": "failed"}]) == ""
    assert await _found(sessions, project_ids=["default"]) == "4321"
    assert await _found(sessions, owner={"type": "accessible"}) == "4321"
    assert await _found(sessions, owner={"type": "user", "owner_urns": ["tml:user:ada"]}) == "4321"
    assert await _found(sessions, owner={"type": "user", "owner_urns": ["tml:user:bob"]}) == ""
    assert await _found(sessions, "bob") == "b"


async def test_what_a_search_says(sessions: ManagementService):
    """Every field that the SDK reads."""
    four, _, two, one = (await _search(sessions))["sessions"]
    assert four["status"] == {"type": "active"}
    assert two["status"] == {
        "type": "client_finished",
        "reason": {"type": "success"},
        "detail": "done",
    }
    created = datetime.fromisoformat(one.pop("created_at"))
    assert created == START.astimezone(UTC)
    assert one == {
        "session_id": "ses-1",
        "owner": "tml:user:ada",
        "project_id": "default",
        "status": None,
        "checkpoints_count": 2,
        "checkpoint_storage_bytes": 2008,
        "display_name": "Nightly run",
        "user_metadata": {"team": "a", "n": "3"},
    }


async def test_pages_of_a_search(sessions: ManagementService):
    """Each begins where the one before ended."""
    pages, cursor = [], None
    while True:
        answer = await _search(sessions, limit=3, **({"cursor": cursor} if cursor else {}))
        pages.append([session["session_id"][-1] for session in answer["sessions"]])
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert pages == [["4", "3", "2"], ["1"]]


async def test_wrong_searches(sessions: ManagementService):
    """What is wrong is named."""
    async with sessions.client("ada") as ada:
        for body, named in (
            ({"limit": 500}, "limit"),
            ({"name": "x"}, "name"),
            ({"statuses": [{"type": "asleep"}]}, "statuses"),
            ({"project_ids": ["p1"]}, "p1"),
        ):
            refused = await ada.post("/api/v1/sessions/search", json=body)
            assert refused.status_code in {400, 404}
            assert named in refused.json()["detail"]


async def test_projects(sessions: ManagementService):
    """There is one."""
    async with sessions.client("ada") as ada, sessions.client("bob") as bob:
        path = "/api/v1/sessions/ses-1"
        assert (await ada.put(f"{path}/project", json={"project_id": "default"})).is_success
        refused = await ada.put(f"{path}/project", json={"project_id": "p1"})
        assert refused.status_code == 404
        assert "no project p1" in refused.json()["detail"]
        assert (await bob.put(f"{path}/project", json={"project_id": "x"})).status_code == 404
