"""The journal's thread, so that the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from enginehouse.core.errors import StoreError
from enginehouse.tinker.future_journal import FutureJournal

Result = TypeVar("Result")


class JournalThread:
    """Writes to a journal one after the other, in a thread, and syncs it in another.

    For one event loop. The disk is asked to store a write `sync_after` seconds later.
    """

    def __init__(self, journal: FutureJournal, *, sync_after: float = 1.0) -> None:
        self._journal = journal
        self._sync_after = sync_after
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="futures")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="futures-sync")
        self._timer: asyncio.TimerHandle | None = None
        self._failure: StoreError | None = None
        self.closed = False

    def raise_failure(self) -> None:
        """Raise, once, what a sync in the background raised (StoreError)."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def write(self, write: Callable[[], Result]) -> Result:
        """Write, and return when the operating system has it. Raises StoreError."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._writer, write)
        if self._timer is None and not self.closed:
            self._timer = loop.call_later(self._sync_after, self._sync)
        return result

    def write_later(self, write: Callable[..., None], *arguments: Any) -> None:
        """Write something that may fail: the next start would find it out again."""
        if not self.closed:
            self._writer.submit(write, *arguments)

    async def close(self) -> None:
        """Write and sync what is left, and close the journal. Idempotent."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.to_thread(self._writer.shutdown)
        await asyncio.to_thread(self._syncer.shutdown)
        with suppress(StoreError):  # without a power cut, nothing is lost
            await asyncio.to_thread(self._journal.sync)
        self._journal.close()

    def _sync(self) -> None:
        self._timer = None
        self._syncer.submit(self._journal.sync).add_done_callback(self._note)

    def _note(self, sync: concurrent.futures.Future[None]) -> None:
        error = sync.exception()
        if isinstance(error, StoreError):
            self._failure = error
