from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil

from enginehouse.provisioning import content_folders


def test_published_is_there_and_nothing_else(tmp_path: Path):
    """A folder appears under its key whole; the place where it was built is gone."""
    with content_folders.locked(tmp_path, "k"):
        folder = content_folders.new_folder(tmp_path, "k")
        (folder / "file").write_text("x")
        assert not (tmp_path / "k").exists()
        final = content_folders.publish(folder, tmp_path, "k")
    assert (final / "file").read_text() == "x"
    assert list((tmp_path / ".building").iterdir()) == []


def test_publishing_replaces(tmp_path: Path):
    """A broken folder of the same key gives way as a whole."""
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "old").touch()
    folder = content_folders.new_folder(tmp_path, "k")
    (folder / "new").touch()
    final = content_folders.publish(folder, tmp_path, "k")
    assert [path.name for path in final.iterdir()] == ["new"]


def test_leftovers_of_dead_builders_are_removed(tmp_path: Path):
    """Whatever lies in .building without a lock belongs to nobody and is removed."""
    for key in ("k", "other"):
        leftover = tmp_path / ".building" / key / "dead"
        leftover.mkdir(parents=True)
        (leftover / "file").touch()
    with content_folders.locked(tmp_path, "k"):
        folder = content_folders.new_folder(tmp_path, "k")
    assert [path.name for path in (tmp_path / ".building").iterdir()] == ["k"]
    assert list((tmp_path / ".building" / "k").iterdir()) == [folder]


def test_orphans_of_dead_builders_are_ended(tmp_path: Path):
    """A program that a killed builder left behind does not go on writing."""
    leftover = tmp_path / ".building" / "k" / "dead"
    leftover.mkdir(parents=True)
    orphan = subprocess.Popen(
        [sys.executable, "-c", "input()", str(leftover / "file")], stdin=subprocess.PIPE
    )
    with orphan, content_folders.locked(tmp_path, "k"):
        content_folders.new_folder(tmp_path, "k")
        assert not psutil.pid_exists(orphan.pid)
    assert not leftover.exists()


def test_living_builders_keep_theirs(tmp_path: Path):
    """What another builder holds the lock for is left alone."""
    with content_folders.locked(tmp_path, "other"):
        theirs = content_folders.new_folder(tmp_path, "other")
        with content_folders.locked(tmp_path, "k"):
            content_folders.new_folder(tmp_path, "k")
        assert theirs.is_dir()


async def test_a_second_claimer_waits_and_says_so_once(tmp_path: Path):
    """The lock is exclusive within one process, too, and waiting does not block the loop."""
    order: list[str] = []
    held, may_end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with content_folders.claimed(tmp_path, "k", on_wait=lambda: order.append("never")):
            held.set()
            await may_end.wait()
            order.append("first")

    async def second() -> None:
        await held.wait()

        def waiting() -> None:
            order.append("waiting")
            may_end.set()

        async with content_folders.claimed(tmp_path, "k", on_wait=waiting):
            order.append("second")

    await asyncio.wait_for(asyncio.gather(first(), second()), timeout=20)
    assert order == ["waiting", "first", "second"]


def test_discarding_what_is_not_there_does_nothing(tmp_path: Path):
    """Removal is idempotent."""
    content_folders.discard(tmp_path, "k")
    assert list(tmp_path.iterdir()) == []
