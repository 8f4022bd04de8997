from __future__ import annotations

import pytest
from tests.support.tinker_management import ManagementService
from tests.support.tinker_records import a_session


@pytest.fixture
async def requests(service: ManagementService) -> ManagementService:
    """A session of ada's with two jobs and a sample, another one, and one of bob's."""
    for session_id, user in (("ses-1", "ada"), ("ses-10", "ada"), ("ses-2", "bob")):
        await service.records.add_session(a_session(session_id, user=user))
    accepted = []
    for key, kind, user, details in (
        ("1", "optim_step", "ada", {"model_id": "ses-1:train:0", "seq_id": 1}),
        ("2", "optim_step", "ada", {"model_id": "ses-1:train:0", "seq_id": 2}),
        ("3", "sample", "ada", {"sampling_session_id": "ses-1:sample:0", "seq_id": 1}),
        ("4", "optim_step", "ada", {"model_id": "ses-10:train:0", "seq_id": 1}),
        ("5", "optim_step", "bob", {"model_id": "ses-2:train:0", "seq_id": 1}),
    ):
        future = await service.futures.accept(
            key=key,
            kind=kind,
            user=user,
            body=b"{}",
            content_type="application/json",
            details=details,
        )
        accepted.append(future)
    await service.futures.finish(accepted[0], b"{}", content_type="application/json")
    await service.futures.fail(accepted[2], "no", category="user")
    return service


async def test_a_trace(requests: ManagementService):
    """It has that session's requests, by model and sampler, with their times."""
    async with requests.client("ada") as ada, requests.client(None) as nobody:
        answer = (await ada.get("/api/v1/sessions/ses-1/trace_export")).json()
        assert answer["status"] == "ready"
        events = (await nobody.get(answer["url"])).json()["traceEvents"]
    tracks = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    begun = [event for event in events if event["ph"] == "b"]
    assert [(event["name"], tracks[event["pid"]]) for event in begun] == [
        ("optim_step", "ses-1:train:0"),
        ("optim_step", "ses-1:train:0"),
        ("sample", "ses-1:sample:0"),
    ]
    assert [event["args"]["state"] for event in begun] == ["finished", "waiting", "failed"]
    ends = {event["id"]: event["ts"] for event in events if event["ph"] == "e"}
    assert all(ends[event["id"]] >= event["ts"] for event in begun)


async def test_traces_of_others(requests: ManagementService):
    """Neither asked for, nor by a link to another session."""
    async with requests.client("ada") as ada, requests.client("bob") as bob:
        assert (await bob.get("/api/v1/sessions/ses-1/trace_export")).status_code == 404
        url = (await ada.get("/api/v1/sessions/ses-1/trace_export")).json()["url"]
        for forged in (url.replace("ses-1", "ses-10"), url[:-4] + "AAAA", url.partition("?")[0]):
            assert (await ada.get(forged)).status_code == 403
