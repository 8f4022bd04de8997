from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.support.tinker_records import a_model

from enginehouse.core.errors import TinkerError
from enginehouse.tinker import checkpoints
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.checkpoints import LONGEST_TTL, CheckpointStore, Reservation, expiry
from enginehouse.tinker.records.entries import UNNAMED, CheckpointRecord
from enginehouse.tinker.records.records import Records, sqlite_url

_PATH = CheckpointPath("ses-1:train:0", "training", "0001")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CheckpointStore]:
    """An empty store."""
    records = await Records.open(sqlite_url(tmp_path / "records.sqlite"))
    store = CheckpointStore(tmp_path / "checkpoints", records=records)
    await store.prepare()
    yield store
    await records.close()


def _write(reservation: Reservation, content: str = "weights") -> None:
    """What a trainer does: a folder with files in it."""
    (reservation.folder / "state").mkdir(parents=True)
    (reservation.folder / "adapter_model.safetensors").write_text(content)
    (reservation.folder / "state" / "moments").write_text("12")


async def _save(
    store: CheckpointStore,
    path: CheckpointPath = _PATH,
    *,
    content: str = "weights",
    request_id: str = "r1",
    overwrite: bool = False,
    ttl_seconds: int | None = None,
) -> CheckpointRecord:
    async with store.reserve(path, request_id=request_id, overwrite=overwrite) as reservation:
        _write(reservation, content)
        return await reservation.commit(a_model(), ttl_seconds=ttl_seconds)


async def _fail(store: CheckpointStore, error: Exception) -> None:
    """Begin to save, and raise before it is committed."""
    async with store.reserve(_PATH, request_id="r1") as reservation:
        _write(reservation)
        raise error


def _folders(store: CheckpointStore) -> list[str]:
    return sorted(f.relative_to(store.root).as_posix() for f in store.root.glob("*/*/*"))


async def test_saving(store: CheckpointStore):
    """The record says what was written, and the folder is below the store."""
    record = await _save(store)
    assert record.path == "tinker://ses-1:train:0/weights/0001"
    assert record.checkpoint_id == "weights/0001"
    assert (record.size_bytes, record.kind, record.user) == (9, "training", "ada")
    assert (record.expires_at, record.public, record.unembed) == (None, False, False)
    assert record.spec == a_model().spec
    assert await store.records.checkpoint(record.path, user="ada") == record
    folder = store.folder(record)
    assert folder.is_relative_to(store.root)
    assert store.files(record) == ["adapter_model.safetensors", "state/moments"]
    assert store.file(record, "state/moments").read_text() == "12"


async def test_what_is_not_committed_leaves_nothing(store: CheckpointStore):
    """Neither files nor a record."""
    with pytest.raises(RuntimeError, match="the trainer"):
        await _fail(store, RuntimeError("the trainer died"))
    assert list((store.root / ".incomplete").iterdir()) == []
    assert _folders(store) == []
    assert (await store.records.checkpoints(None)).total == 0


async def test_names_are_taken(store: CheckpointStore):
    """Unless the owner overwrites, or the same request is run again after a restart."""
    first = await _save(store)
    with pytest.raises(TinkerError, match=r"already") as refused:
        await _save(store, request_id="r2", content="other")
    assert refused.value.category == "user"
    assert store.file(first, "adapter_model.safetensors").read_text() == "weights"

    again = await _save(store, request_id="r1", content="again")
    assert store.file(again, "adapter_model.safetensors").read_text() == "again"
    replaced = await _save(store, request_id="r3", content="newest", overwrite=True)
    assert store.file(replaced, "adapter_model.safetensors").read_text() == "newest"
    assert _folders(store) == [replaced.folder]
    with pytest.raises(TinkerError, match="gone"):
        store.folder(first)


async def test_removing(store: CheckpointStore):
    """By its owner alone; the name can be used again."""
    record = await _save(store)
    with pytest.raises(TinkerError) as refused:
        await store.remove(record.path, user="bob")
    assert refused.value.status == 404
    assert _folders(store) == [record.folder]
    await store.remove(record.path, user="ada")
    assert _folders(store) == []
    with pytest.raises(TinkerError):
        await store.records.checkpoint(record.path, user="ada")
    await _save(store, request_id="r2")


async def test_only_what_its_owner_limited_expires(store: CheckpointStore):
    """The files go, and the record says when that was."""
    final = await _save(store)
    path = CheckpointPath("ses-1:train:0", "sampler", "0001")
    short = await _save(store, path, request_id="r2", ttl_seconds=3600)
    assert short.expires_at
    assert abs(short.expires_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    assert await store.expire() == []

    past = datetime.now(UTC) - timedelta(seconds=1)
    await store.records.set_expiry(short.path, user="ada", expires_at=past)
    assert [record.path for record in await store.expire()] == [short.path]
    assert await store.expire() == []
    assert _folders(store) == [final.folder]
    assert store.files(final)
    with pytest.raises(TinkerError, match="expired on"):
        await store.records.checkpoint(short.path, user="ada")


@pytest.mark.parametrize("seconds", [3600, LONGEST_TTL, None])
def test_times_to_live(seconds: int | None):
    """From an hour to ten years, or for ever."""
    assert (expiry(seconds) is None) == (seconds is None)


@pytest.mark.parametrize("seconds", [0, -1, 3599, LONGEST_TTL + 1, 10**30, True])
def test_wrong_times_to_live(seconds: int):
    """Refused with both limits."""
    with pytest.raises(TinkerError, match="3,600") as refused:
        expiry(seconds)
    assert (refused.value.status, refused.value.category) == (400, "user")


async def test_a_wrong_time_to_live_saves_nothing(store: CheckpointStore):
    """It is checked before anything is moved."""
    with pytest.raises(TinkerError, match="ttl_seconds"):
        await _save(store, ttl_seconds=5)
    assert _folders(store) == []


async def test_a_full_disk(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch):
    """The service's fault, told with numbers; nothing of the checkpoint stays."""
    with pytest.raises(TinkerError, match=r"full(.|\n)*\d GB of \d+\.\d GB") as refused:
        await _fail(store, OSError(errno.ENOSPC, "No space left on device"))
    assert refused.value.category == "server"
    assert list((store.root / ".incomplete").iterdir()) == []

    told = TinkerError("save failed", why="No space left on device (/x)", category="server")
    with pytest.raises(TinkerError, match=r"disk.* full"):
        await _fail(store, told)
    with pytest.raises(TinkerError, match="save failed"):
        await _fail(store, TinkerError("save failed", why="out of memory", category="server"))

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(TinkerError, match=r"disk.* full"):
            await _save(store)
    assert _folders(store) == []
    await _save(store)


async def test_snapshots_that_take_much_of_the_disk(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The operator is warned, once in the log, until they are gone; named ones do not count."""
    monkeypatch.setattr(checkpoints, "_SNAPSHOT_SHARE", 1e-12)
    await _save(store, CheckpointPath("ses-1:train:0", "sampler", "mine"))
    await store.watch_snapshots()
    assert store.warning is None
    snapshot = CheckpointPath("ses-1:train:0", "sampler", f"{UNNAMED}000001")
    await _save(store, snapshot, request_id="r2")
    for _ in range(2):
        await store.watch_snapshots()
        assert store.warning is not None
        assert "1 snapshots" in store.warning
    assert [record.getMessage() for record in caplog.records].count(store.warning) == 1
    await store.remove(str(snapshot), user="ada")
    await store.watch_snapshots()
    assert store.warning is None


async def test_symbolic_links_do_not_lead_out(store: CheckpointStore, tmp_path: Path):
    """Neither as a file, nor as a folder, nor as the checkpoint itself."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("hunter2")
    record = await _save(store)
    folder = store.folder(record)
    (folder / "file").symlink_to(tmp_path / "outside" / "secret")
    (folder / "inside").symlink_to("adapter_model.safetensors")
    (folder / "folder").symlink_to(tmp_path / "outside")
    assert store.files(record) == ["adapter_model.safetensors", "state/moments"]
    for name in (
        "file",
        "inside",
        "folder/secret",
        "../../../../outside/secret",
        "state/../../../../../records.sqlite",
        str(tmp_path / "outside" / "secret"),
        "state",
        "",
    ):
        with pytest.raises(TinkerError) as refused:
            store.file(record, name)
        assert refused.value.status == 404
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "outside")
    with pytest.raises(TinkerError, match="gone"):
        store.folder(record)


async def test_leftovers_of_a_killed_service(store: CheckpointStore):
    """Half-written folders and ones that were never recorded go; checkpoints stay."""
    record = await _save(store)
    incomplete = store.root / ".incomplete" / "0123"
    incomplete.mkdir()
    (incomplete / "half").write_text("x")
    unrecorded = store.root / "ses-1:train:0" / "weights" / "0002~89ab"
    unrecorded.mkdir()
    await store.prepare()
    assert _folders(store) == [record.folder]
    assert list((store.root / ".incomplete").iterdir()) == []
    assert oct(store.root.stat().st_mode & 0o777) == "0o700"


async def test_copying(store: CheckpointStore):
    """A copy has the same files without using the disk twice, and outlives its source."""
    source = await _save(store, ttl_seconds=3600)
    to = a_model("ses-2:train:0", user="bob")
    copy = await store.copy(source, to=to, request_id="r2")
    assert copy.path == "tinker://ses-2:train:0/weights/0001"
    assert (copy.user, copy.expires_at, copy.size_bytes) == ("bob", None, 9)
    assert store.files(copy) == store.files(source)
    assert store.file(copy, "state/moments").samefile(store.file(source, "state/moments"))
    await store.remove(source.path, user="ada")
    assert store.file(copy, "adapter_model.safetensors").read_text() == "weights"


async def test_many_savers_at_once(store: CheckpointStore):
    """Each checkpoint has its own content."""
    paths = [CheckpointPath("ses-1:train:0", "sampler", f"{n}") for n in range(20)]
    records = await asyncio.gather(
        *(_save(store, path, content=path.name, request_id=path.name) for path in paths)
    )
    for record in records:
        assert store.file(record, "adapter_model.safetensors").read_text() == record.name
