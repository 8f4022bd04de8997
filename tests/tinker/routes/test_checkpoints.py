from __future__ import annotations

import httpx
import pytest
from tests.support.tinker_management import FILES, ManagementService
from tests.support.tinker_records import a_model, a_session

from enginehouse.tinker.records.entries import ModelRecord

RUN = "/api/v1/training_runs/ses-1:train:0/checkpoints"


@pytest.fixture
async def model(service: ManagementService) -> ModelRecord:
    """A run of ada's."""
    await service.records.add_model(a_model())
    return a_model()


def _detail(response: httpx.Response) -> str:
    detail: str = response.json()["detail"]
    return detail


async def test_pages(service: ManagementService, model: ModelRecord):
    """With a cursor; parameters that are unknown or wrong are named."""
    for number in range(3):
        await service.save(f"{number}", model=model)
    async with service.client("ada") as ada:
        answer = (await ada.get("/api/v1/checkpoints", params={"limit": 2, "offset": 1})).json()
        assert [c["checkpoint_id"] for c in answer["checkpoints"]] == ["weights/1", "weights/0"]
        assert answer["cursor"] == {"offset": 1, "limit": 2, "total_count": 3}
        for parameters, named in (
            ({"limit": "0"}, "limit"),
            ({"limit": "many"}, "limit"),
            ({"offset": "-1"}, "offset"),
            ({"order": "size"}, "order"),
        ):
            refused = await ada.get("/api/v1/checkpoints", params=parameters)
            assert refused.status_code == 400
            assert named in _detail(refused)
        other = await ada.get("/api/v1/checkpoints", params={"project_id": "p1"})
        assert other.status_code == 404
        assert "no projects" in _detail(other)


async def test_routes_without_parameters_refuse_them(
    service: ManagementService, model: ModelRecord
):
    """They would be ignored otherwise."""
    await service.save("0001", model=model)
    async with service.client("ada") as ada:
        for url in (RUN, f"{RUN}/weights/0001/external_weights_urls"):
            refused = await ada.get(url, params={"limit": "1"})
            assert refused.status_code == 400
            assert "limit" in _detail(refused)


async def test_what_a_checkpoint_says(service: ManagementService, model: ModelRecord):
    """Every field that the SDK reads."""
    record = await service.save("0001", model=model, ttl_seconds=3600)
    assert record.expires_at is not None
    async with service.client("ada") as ada:
        (answer,) = (await ada.get(RUN)).json()["checkpoints"]
        assert answer == {
            "checkpoint_id": "weights/0001",
            "checkpoint_type": "training",
            "time": record.created.isoformat().replace("+00:00", "Z"),
            "tinker_path": record.path,
            "size_bytes": 1004,
            "public": False,
            "user_metadata": None,
            "expires_at": record.expires_at.isoformat().replace("+00:00", "Z"),
        }
        info = await ada.post("/api/v1/weights_info", json={"tinker_path": record.path})
        assert info.json() == {
            "base_model": "org/base",
            "is_lora": True,
            "lora_rank": 8,
            "train_unembed": False,
            "train_mlp": True,
            "train_attn": True,
        }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", f"{RUN}/weights/0001"),
        ("POST", f"{RUN}/weights/0001/publish"),
        ("DELETE", f"{RUN}/weights/0001/publish"),
        ("PUT", f"{RUN}/weights/0001/ttl"),
        ("GET", f"{RUN}/external_weights/final/external_weights_urls"),
        ("POST", "/api/v1/weights_info"),
        ("POST", "/api/v1/copy_weights"),
    ],
)
async def test_other_users(service: ManagementService, model: ModelRecord, method: str, path: str):
    """What is another's is answered as what is not there, and stays as it was."""
    for kind, name in (("training", "0001"), ("external", "final")):
        await service.save(name, model=model, kind=kind)  # type: ignore[arg-type]
    body = {"ttl_seconds": None} if path.endswith("ttl") else None
    if path.endswith("info"):
        body = {"tinker_path": "tinker://ses-1:train:0/weights/0001"}  # type: ignore[dict-item]
    if path.endswith("copy_weights"):
        body = {"source_path": "tinker://ses-1:train:0/weights/0001"}  # type: ignore[dict-item]
    missing = path.replace("ses-1", "ses-2")
    missing_body = body and {k: v and v.replace("ses-1", "ses-2") for k, v in body.items()}  # type: ignore[attr-defined]
    async with service.client("bob") as bob:
        anothers = await bob.request(method, path, json=body)
        nothing = await bob.request(method, missing, json=missing_body)
    assert (anothers.status_code, nothing.status_code) == (404, 404)
    assert _detail(anothers).replace("ses-1", "ses-2") == _detail(nothing)
    page = await service.records.checkpoints("ada")
    assert [(c.public, c.expires_at) for c in page.entries] == [(False, None)] * 2
    async with service.client(None) as nobody:
        assert (await nobody.request(method, path, json=body)).status_code == 401


async def test_a_deletion_that_is_sent_again(service: ManagementService, model: ModelRecord):
    """The reply was lost: the same key has the same answer, and another one has not."""
    await service.save("0001", model=model)
    async with service.client("ada") as ada:
        url = f"{RUN}/weights/0001"
        codes = [
            (await ada.delete(url, headers={"X-Idempotency-Key": key})).status_code
            for key in ("one", "one", "two", "two")
        ]
        assert codes == [204, 204, 404, 404]


@pytest.mark.parametrize(
    "name", ["weights/..", "weights/%2e%2e", "weights/a%2Fb", "optimizer/0001", "weights/a%00b"]
)
async def test_paths_do_not_escape(service: ManagementService, model: ModelRecord, name: str):
    """Nothing is removed, and the answer is the user's mistake."""
    record = await service.save("0001", model=model)
    async with service.client("ada") as ada:
        request = ada.build_request("DELETE", f"{RUN}/x")
        request.url = request.url.copy_with(raw_path=f"{RUN}/{name}".encode())
        refused = await ada.send(request)
    assert refused.status_code in {400, 404, 405}
    assert await service.records.checkpoint(record.path, user="ada") == record
    assert service.checkpoints.files(record) == sorted(FILES)


async def test_bodies_are_strict(service: ManagementService, model: ModelRecord):
    """Unknown fields and wrong values are named."""
    await service.save("0001", model=model)
    async with service.client("ada") as ada:
        for body, named in (
            ({"ttl": 7200}, "ttl"),
            ({"ttl_seconds": "soon"}, "ttl_seconds"),
            ({"ttl_seconds": 60}, "3,600"),
            ({}, "ttl_seconds"),
        ):
            refused = await ada.put(f"{RUN}/weights/0001/ttl", json=body)
            assert refused.status_code == 400
            assert named in _detail(refused)
        info = await ada.post("/api/v1/weights_info", json={"tinker_path": "weights/0001"})
        assert info.status_code == 400
        assert "tinker://" in _detail(info)


async def test_links(service: ManagementService, model: ModelRecord):
    """They work without a key, for that checkpoint's files, as long as it is there."""
    record = await service.save("final", model=model, kind="external")
    await service.save("0001", model=model)
    async with service.client("ada") as ada, service.client(None) as nobody:
        answer = (await ada.get(f"{RUN}/external_weights/final/external_weights_urls")).json()
        urls = answer["urls"]
        assert set(urls) == set(FILES)
        assert all(url.startswith(service.url) for url in urls.values())
        for name, url in urls.items():
            file = await nobody.get(url)
            assert file.text == FILES[name]
            assert file.headers["content-length"] == str(len(FILES[name].encode()))
        url = urls["adapter_config.json"]
        other = await nobody.get(url.replace("adapter_config.json", "..%2Ffinal%2Fnone"))
        assert other.status_code == 404
        for forged in (url[:-3] + "abc", url.partition("?")[0]):
            refused = await nobody.get(forged)
            assert refused.status_code == 403
            assert "not valid" in _detail(refused)
        kind = await ada.get(f"{RUN}/weights/0001/external_weights_urls")
        assert kind.status_code == 400
        assert "save_weights_external" in _detail(kind)

        await service.checkpoints.remove(record.path, user="ada")
        assert (await nobody.get(url)).status_code == 404
        await service.save("final", model=model, kind="external")
        assert (await nobody.get(url)).status_code == 404  # the files are others now


async def test_links_to_what_was_published(service: ManagementService, model: ModelRecord):
    """A link ends when the checkpoint is withdrawn."""
    record = await service.save("final", model=model, kind="external")
    await service.records.set_public(record.path, user="ada", public=True)
    async with service.client("bob") as bob, service.client(None) as nobody:
        answer = await bob.get(f"{RUN}/external_weights/final/external_weights_urls")
        url = answer.json()["urls"]["adapter_config.json"]
        assert (await nobody.get(url)).status_code == 200
        await service.records.set_public(record.path, user="ada", public=False)
        assert (await nobody.get(url)).status_code == 404


@pytest.mark.slow
async def test_copying(service: ManagementService, model: ModelRecord):
    """A published checkpoint becomes one's own; a retried request makes no second copy."""
    source = await service.save("0001", model=model, ttl_seconds=3600)
    await service.records.set_public(source.path, user="ada", public=True)
    body = {"source_path": source.path, "destination_project_id": "default"}
    async with service.client("bob") as bob:
        first = await bob.post(
            "/api/v1/copy_weights", json=body, headers={"X-Idempotency-Key": "k1"}
        )
        again = await bob.post(
            "/api/v1/copy_weights", json=body, headers={"X-Idempotency-Key": "k1"}
        )
        second = await bob.post("/api/v1/copy_weights", json=body | {"ttl_seconds": 7200})
        assert first.json() == again.json() != second.json()
        path = first.json()["tinker_path"]
        copy = await service.records.checkpoint(path, user="bob")
        assert (copy.kind, copy.name, copy.expires_at, copy.public) == (
            "training",
            "0001",
            None,
            False,
        )
        assert service.checkpoints.files(copy) == sorted(FILES)
        run = await bob.get(f"/api/v1/training_runs/{copy.model_id}")
        assert run.json()["last_checkpoint"]["tinker_path"] == path
        assert not (await service.records.model(copy.model_id, user="bob")).trainable
        assert (await bob.get("/api/v1/training_runs")).json()["cursor"]["total_count"] == 2
        for change, named in (
            ({"destination_project_id": "p1"}, "p1"),
            ({"weights_access_token": "t"}, "access tokens"),
            ({"ttl_seconds": 1}, "3,600"),
            ({"session_id": "ses-1"}, "together"),
            ({"session_id": "ses-1", "model_seq_id": 0}, "no session ses-1"),
        ):
            refused = await bob.post("/api/v1/copy_weights", json=body | change)
            assert refused.status_code in {400, 404}
            assert named in _detail(refused)


async def test_copying_into_a_session(service: ManagementService, model: ModelRecord):
    """As a run of that number, unless there is one already."""
    await service.records.add_session(a_session())
    source = await service.save("0001", model=model)
    body = {"source_path": source.path, "session_id": "ses-1"}
    async with service.client("ada") as ada:
        answer = await ada.post("/api/v1/copy_weights", json=body | {"model_seq_id": 5})
        assert answer.json() == {"tinker_path": "tinker://ses-1:train:5/weights/0001"}
        taken = await ada.post("/api/v1/copy_weights", json=body | {"model_seq_id": 0})
        assert taken.status_code == 400
        assert "ses-1:train:0 already" in _detail(taken)
