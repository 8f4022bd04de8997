"""The journal of a gateway: requests and their answers, found again by key."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from enginehouse.core.errors import StoreError
from enginehouse.gateway.answer_index import AnswerIndex, prefix_of
from enginehouse.gateway.identity import Identity
from enginehouse.store.holders import read_holder, write_holder
from enginehouse.store.journal import Journal, Repair, read_journal, read_record
from enginehouse.store.private import make_private

FORMAT = 1
_LOCK_WAIT = 0.3  # seconds


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="header"):
    """The first line."""

    format: int
    created: datetime


class IdentityRecord(msgspec.Struct, frozen=True, kw_only=True, tag="identity"):
    """Who gave the answers that name `digest`."""

    digest: str
    identity: Identity


class AnswerRecord(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """A request and its whole answer.

    `key` covers `identity`, the adapter's digest, the path and the request (see gateway.recorder).
    `reply` is the reply's body as text; of a stream, all of its events.
    """

    key: str
    identity: str
    adapter: str | None
    path: str
    request: str
    content_type: str
    streamed: bool
    reply: str
    at: datetime


class _IndexedAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="answer"):
    """What the index needs of an AnswerRecord; the rest of the line is skipped."""

    key: str


class _SkippedIdentity(msgspec.Struct, frozen=True, kw_only=True, tag="identity"):
    """An IdentityRecord, unread."""


class AnswerJournal:
    """A folder's journal, and the index of its answers. Blocking.

    Only one process at a time has it: use `open_journal`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "answers.jsonl"
        self._journal = Journal(self.path, first=HeaderRecord)
        try:
            prefixes, offsets = array("Q"), array("q")
            for prefix, offset in _read_keys(self.path):
                prefixes.append(prefix)
                offsets.append(offset)
            self.index = AnswerIndex(prefixes, offsets)
            if not self.path.stat().st_size:
                self._journal.append(HeaderRecord(format=FORMAT, created=datetime.now(UTC)))
        except BaseException:
            self._journal.close()
            raise
        self._identities: set[str] = set()

    @property
    def repair(self) -> Repair | None:
        """What was wrong with its end when it was opened."""
        return self._journal.repair

    def append(self, record: AnswerRecord, *, identity: Identity) -> int:
        """Write an answer; returns its offset. Raises StoreError, and leaves nothing of it then."""
        if record.identity not in self._identities:
            self._journal.append(IdentityRecord(digest=record.identity, identity=identity))
            self._identities.add(record.identity)
        return self._journal.append(record)

    def read(self, offset: int) -> AnswerRecord:
        """The answer at `offset`. Raises StoreError."""
        record: AnswerRecord = read_record(self.path, AnswerRecord, offset=offset)
        return record

    def close(self) -> None:
        """Idempotent."""
        self._journal.close()


@contextmanager
def open_journal(folder: Path) -> Iterator[AnswerJournal]:
    """The journal in `folder`, which is made if it is missing. Blocking.

    Raises StoreError for a folder that another gateway uses, and for a file that is not such a
    journal or is damaged elsewhere than at its end; nothing is changed then.
    """
    try:
        make_private(folder)
        lock = FileLock(folder / "lock", mode=0o600, thread_local=False)
        lock.acquire(timeout=_LOCK_WAIT, poll_interval=0.02)
    except Timeout:
        raise StoreError(
            f"{folder} is being recorded into by {read_holder(folder)}",
            fix="record into another folder, or stop the other gateway",
        ) from None
    except OSError as error:
        raise StoreError(f"cannot record into {folder}", why=str(error)) from error
    try:
        write_holder(folder)
        journal = AnswerJournal(folder)
        try:
            yield journal
        finally:
            journal.close()
    finally:
        lock.release()


def _read_keys(path: Path) -> Iterator[tuple[int, int]]:
    """The prefix of every answer's key, and the answer's offset."""
    for entry in read_journal(path, HeaderRecord | _SkippedIdentity | _IndexedAnswer):
        match entry.record:
            case HeaderRecord(format=format_) if format_ != FORMAT:
                raise StoreError(
                    f"{path} was written by another version of enginehouse",
                    why=f"its format is {format_}, and this version reads {FORMAT}",
                    fix="record into another folder",
                )
            case _IndexedAnswer(key=key):
                yield prefix_of(bytes.fromhex(key)), entry.offset
