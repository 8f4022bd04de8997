from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.tinker.future_journal import FutureJournal
from enginehouse.tinker.journal_thread import JournalThread


@pytest.fixture
def thread(tmp_path: Path) -> JournalThread:
    """The thread of an empty journal; syncs follow writes at once."""
    return JournalThread(FutureJournal.open(tmp_path), sync_after=0)


async def test_writes_are_in_order_and_off_the_event_loop(thread):
    """One after the other, whoever waits for them."""
    written: list[tuple[int, bool]] = []

    def write(number: int) -> None:
        written.append((number, threading.current_thread() is threading.main_thread()))

    thread.write_later(write, 0)
    await asyncio.gather(*(thread.write(lambda n=n: write(n)) for n in range(1, 5)))
    assert written == [(number, False) for number in range(5)]
    await thread.close()


async def test_a_sync_follows_a_write(thread, monkeypatch):
    """In another thread, so that later writes do not wait for the disk."""
    loop, synced, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def sync() -> None:
        loop.call_soon_threadsafe(synced.set)
        assert go_on.wait(30)

    monkeypatch.setattr(thread._journal, "sync", sync)
    await thread.write(lambda: None)
    await synced.wait()
    assert await thread.write(lambda: "written") == "written"
    go_on.set()
    await thread.close()


async def test_a_sync_that_fails_is_told_once(thread, monkeypatch):
    """To the next request, which is sent again; then writing goes on."""
    synced = threading.Event()

    def sync() -> None:
        synced.set()
        raise StoreError("cannot sync the journal")

    monkeypatch.setattr(thread._journal, "sync", sync)
    await thread.write(lambda: None)
    await asyncio.to_thread(synced.wait, 30)
    await asyncio.to_thread(thread._syncer.shutdown)
    with pytest.raises(StoreError, match="cannot sync"):
        thread.raise_failure()
    thread.raise_failure()
    await thread.close()


async def test_closing_writes_what_is_left(thread):
    """And lets another one open the journal; later writes are dropped."""
    written: list[Any] = []
    for number in range(3):
        thread.write_later(written.append, number)
    await thread.close()
    await thread.close()
    thread.write_later(written.append, 3)
    assert written == [0, 1, 2]
    FutureJournal.open(thread._journal.folder).close()
