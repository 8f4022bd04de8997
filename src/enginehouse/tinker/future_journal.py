"""The files behind futures: a journal of what was accepted and answered, and large contents."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from filelock import FileLock, Timeout

from enginehouse.core.errors import RunLockedError, StoreError, TinkerError
from enginehouse.store.files import write_refused
from enginehouse.store.journal import Journal, read_journal
from enginehouse.store.private import make_private, open_private
from enginehouse.tinker.free_space import is_scarce

_LARGE = 32 << 10
"""Bytes above which a body or an answer is a file of its own."""
_GROWN = 64 << 20
"""Bytes of journal below which compacting is not worth while."""

Outcome = Literal["finished", "failed", "cancelled"]


class _Beginning(msgspec.Struct, frozen=True, kw_only=True, tag="beginning"):
    """The first line. `order` is that of the last answer before this file was written."""

    version: Literal[1] = 1
    order: int = 0


class Accepted(msgspec.Struct, frozen=True, kw_only=True, tag="accepted", gc=False):
    """A request that will be answered. `body` is None where it is a file, or no longer kept.

    `digest` is the SHA-256 of the body, `at` the Unix time. With `replayed`, the body is kept after
    the answer, until it is forgotten.
    """

    request_id: str
    key: str
    kind: str
    user: str
    at: float
    digest: str
    size: int
    content_type: str
    details: dict[str, Any]
    replayed: bool
    body: bytes | None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered", gc=False):
    """The answer; `payload` is None where it is a file. `order` grows from answer to answer."""

    request_id: str
    outcome: Outcome
    order: int
    at: float
    size: int
    content_type: str
    payload: bytes | None = None


class _Forgotten(msgspec.Struct, frozen=True, kw_only=True, tag="forgotten"):
    """These bodies are no longer kept."""

    request_ids: list[str]


class _Removed(msgspec.Struct, frozen=True, kw_only=True, tag="removed"):
    """These futures are no longer known."""

    request_ids: list[str]


_Record = _Beginning | Accepted | Answered | _Forgotten | _Removed


class _Fate(msgspec.Struct, gc=False):
    """What has become of a future."""

    answered: bool = False
    body_forgotten: bool = False

    def keeps_body(self, accepted: Accepted) -> bool:
        """Whether its body can still be needed."""
        return not self.body_forgotten and (accepted.replayed or not self.answered)


@dataclass(kw_only=True)
class Entry:
    """A future as the journal has it. `body_kept` says whether its body can still be read."""

    accepted: Accepted
    answered: Answered | None = None
    body_kept: bool = True


class FutureJournal:
    """The journal and the large contents of one service, in a folder that nobody else may open.

    Every method blocks for the time of writes to the page cache, and all but `sync` are for one
    thread at a time. `entries` comes first. What was written survives kill -9 of this process at
    once, and a power cut from the next `sync` on. A record is written after the file that it refers
    to, so a file without a record belongs to nobody, and `entries` deletes it.
    """

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._path = folder / "journal.jsonl"
        self._size_when_compact = 0
        self._order = 0
        self._unsynced: deque[Path] = deque()
        self._replacing = threading.Lock()
        self._journal: Journal

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open or create it. Raises StoreError; RunLockedError if another service has it open."""
        lock = FileLock(folder / "lock")
        try:
            for each in (folder, folder / "bodies", folder / "answers"):
                make_private(each)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunLockedError(
                f"another Tinker service uses {folder}",
                fix="stop it, or give this one another home",
            ) from error
        except OSError as error:
            raise write_refused(folder, error) from error
        journal = cls(folder, lock)
        try:
            journal._open_file()
        except BaseException:
            journal.close()
            raise
        return journal

    def entries(self) -> list[Entry]:
        """Every future, in order of acceptance, from a journal that is compacted first.

        Deletes files that belong to none of them. Raises StoreError.
        """
        self.compact()
        entries: dict[str, Entry] = {}
        for record in self._records():
            match record:
                case Accepted(request_id=request_id):
                    entries[request_id] = Entry(accepted=record)
                case Answered(request_id=request_id):
                    entries[request_id].answered = record
                    entries[request_id].body_kept &= entries[request_id].accepted.replayed
                case _Forgotten(request_ids=request_ids):
                    for request_id in request_ids:
                        entries[request_id].body_kept = False
        for file in (self.folder / "bodies").iterdir():
            if file.name not in entries or not entries[file.name].body_kept:
                _delete(file)
        for file in (self.folder / "answers").iterdir():
            if file.name not in entries or entries[file.name].answered is None:
                _delete(file)
        return list(entries.values())

    def accept(
        self,
        *,
        request_id: str,
        key: str,
        kind: str,
        user: str,
        body: bytes,
        content_type: str,
        details: Mapping[str, Any],
        replayed: bool,
    ) -> Accepted:
        """Record a request, and return the record.

        Raises StoreError, and leaves nothing; TinkerError (429) for a large body, while what is
        free on the disk is kept for the journal.
        """
        large = len(body) > _LARGE
        if large and is_scarce(self.folder, "journal"):
            raise TinkerError(
                "the service's disk is almost full: large requests wait until there is room",
                fix="delete checkpoints that are no longer needed (tinker checkpoint delete), or "
                "tell the operator of the service",
                category="server",
                status=429,
            )
        record = Accepted(
            request_id=request_id,
            key=key,
            kind=kind,
            user=user,
            at=time.time(),
            digest=hashlib.sha256(body).hexdigest(),
            size=len(body),
            content_type=content_type,
            details=dict(details),
            replayed=replayed,
            body=None if large else body,
        )
        self._write(record, self.body_path(request_id), body if large else None)
        return record

    def answer(
        self,
        *,
        request_id: str,
        outcome: Outcome,
        payload: bytes,
        content_type: str,
        replayed: bool,
    ) -> Answered:
        """Record an answer, and delete a body that is not `replayed`. Raises StoreError."""
        large = len(payload) > _LARGE
        record = Answered(
            request_id=request_id,
            outcome=outcome,
            order=self._order + 1,
            at=time.time(),
            size=len(payload),
            content_type=content_type,
            payload=None if large else payload,
        )
        self._write(record, self.answer_path(request_id), payload if large else None)
        self._order = record.order
        if not replayed:
            _delete(self.body_path(request_id))
        return record

    def forget_bodies(self, request_ids: Iterable[str]) -> None:
        """Delete the bodies of these futures. Raises StoreError."""
        record = _Forgotten(request_ids=list(request_ids))
        self._write(record, None, None)
        for request_id in record.request_ids:
            _delete(self.body_path(request_id))

    def remove(self, request_ids: Iterable[str]) -> None:
        """Delete these futures. Raises StoreError."""
        record = _Removed(request_ids=list(request_ids))
        self._write(record, None, None)
        for request_id in record.request_ids:
            _delete(self.body_path(request_id))
            _delete(self.answer_path(request_id))

    def body_path(self, request_id: str) -> Path:
        """Where a large body lies."""
        return self.folder / "bodies" / request_id

    def answer_path(self, request_id: str) -> Path:
        """Where a large answer lies."""
        return self.folder / "answers" / request_id

    def compact(self) -> None:
        """Replace the journal by one without what was removed, answered or forgotten since.

        The new file is complete and synced before it takes the old one's place. Raises StoreError;
        the old journal is then still in use.
        """
        temporary = self.folder / f".journal.{secrets.token_hex(4)}"
        try:
            with os.fdopen(open_private(temporary, os.O_WRONLY | os.O_EXCL), "wb") as file:
                encoder = msgspec.json.Encoder()
                for record in self._live_records():
                    file.write(encoder.encode(record))
                    file.write(b"\n")
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            replacement = Journal(temporary, first=_Beginning)
            with self._replacing:
                try:
                    temporary.replace(self._path)
                except BaseException:
                    replacement.close()
                    raise
                replacement.path = self._path
                replaced, self._journal = self._journal, replacement
                replaced.close()
        except OSError as error:
            raise write_refused(self._path, error) from error
        finally:
            _delete(temporary)
        self._size_when_compact = size

    def sync(self) -> None:
        """Have the disk store all that was written before. From any thread. Raises StoreError."""
        while self._unsynced:
            path = self._unsynced.popleft()
            with suppress(FileNotFoundError):  # deleted since
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    raise write_refused(path, error) from error
                finally:
                    os.close(descriptor)
        with self._replacing:
            self._journal.sync()

    def close(self) -> None:
        """Close the journal, and let others open it. Idempotent."""
        if hasattr(self, "_journal"):
            self._journal.close()
        self._lock.release()

    def _open_file(self) -> None:
        self._journal = Journal(self._path, first=_Beginning)
        if not self._path.stat().st_size:
            self._journal.append(_Beginning())

    def _write(self, record: _Record, path: Path | None, content: bytes | None) -> None:
        """Write a large content and then the record, or neither."""
        if path is not None and content is not None:
            try:
                with os.fdopen(open_private(path, os.O_WRONLY | os.O_TRUNC), "wb") as file:
                    file.write(content)
            except OSError as error:
                _delete(path)
                raise write_refused(path, error) from error
            self._unsynced.append(path)
        try:
            offset = self._journal.append(record)
        except StoreError:
            if path is not None and content is not None:
                _delete(path)
            raise
        if offset > max(_GROWN, 2 * self._size_when_compact):
            try:
                self.compact()
            except StoreError:  # the disk is full; what was written is whole
                self._size_when_compact = offset

    def _records(self) -> Iterator[_Record]:
        return (line.record for line in read_journal(self._path, _Record))

    def _live_records(self) -> Iterator[_Record]:
        """The records of futures that have not been removed, without bodies nobody needs.

        The file is read twice, so that not everything in it is in memory at once.
        """
        fates = self._fates()
        yield _Beginning(order=self._order)
        for record in self._records():
            if isinstance(record, Accepted | Answered) and record.request_id in fates:
                fate = fates[record.request_id]
                if isinstance(record, Answered) or fate.keeps_body(record):
                    yield record
                else:
                    yield msgspec.structs.replace(record, body=None)
                    if fate.body_forgotten:
                        yield _Forgotten(request_ids=[record.request_id])

    def _fates(self) -> dict[str, _Fate]:
        """What has become of each future that was not removed. Notes the last answer's order."""
        fates: dict[str, _Fate] = {}
        for record in self._records():
            match record:
                case _Beginning(order=order):
                    self._order = max(self._order, order)
                case Accepted(request_id=request_id):
                    fates[request_id] = _Fate()
                case Answered(request_id=request_id, order=order):
                    self._order = max(self._order, order)
                    if request_id in fates:
                        fates[request_id].answered = True
                case _Forgotten(request_ids=request_ids):
                    for request_id in fates.keys() & request_ids:
                        fates[request_id].body_forgotten = True
                case _Removed(request_ids=request_ids):
                    for request_id in fates.keys() & request_ids:
                        del fates[request_id]
        return fates


def _delete(path: Path) -> None:
    """Delete a file, if it exists. One that cannot be deleted is left to the next `entries`."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
