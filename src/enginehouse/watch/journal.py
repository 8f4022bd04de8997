"""The results of a watch, kept so that they survive a kill at any moment."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from enginehouse.core.errors import RunLockedError, StoreError
from enginehouse.results.curve import Kind
from enginehouse.results.summary import Figure
from enginehouse.store.journal import Journal, Repair, read_journal
from enginehouse.store.layout import Layout
from enginehouse.store.private import make_private

_FORMAT = 1
_LOCK_WAIT = 0.3


class Status(StrEnum):
    """How far an attempt got; `begun`: it is running, or was interrupted."""

    BEGUN = "begun"
    EVALUATED = "evaluated"
    FAILED = "failed"


class TaskScore(msgspec.Struct, frozen=True, kw_only=True):
    """A task's headline; kept here, too, so that the curve outlives the runs."""

    task: str
    headline_name: str
    items: int
    samples_per_item: int
    score: Figure | None
    no_score: str | None


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="header", tag_field="record"):
    """The first line: what is evaluated, and how."""

    format: int
    created: datetime
    asked: dict[str, Any]


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, tag="attempt", tag_field="record"):
    """An attempt to evaluate a folder's content (`digest`); the last one of a name counts.

    `run` is its id or folder, None until there is one; `job` is that of the job that evaluates it.
    `failure` is there if it failed, `scores` if it was evaluated.
    """

    name: str
    kind: Kind
    step: int | None
    digest: str
    at: datetime
    status: Status
    run: str | None = None
    job: str | None = None
    failure: str | None = None
    scores: tuple[TaskScore, ...] = ()

    @property
    def key(self) -> str:
        """Identifies what was attempted: a later record of the same key replaces this one."""
        return "" if self.kind is Kind.BASE else self.name


class WatchJournal:
    """One watch's folder, held (`held_journal`). Blocking."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._journal = journal
        self._latest: dict[str, AttemptRecord] = {}
        self._finished: dict[str, AttemptRecord] = {}
        for entry in read_journal(journal.path, HeaderRecord | AttemptRecord):
            if isinstance(entry.record, AttemptRecord):
                self._keep(entry.record)

    @property
    def repair(self) -> Repair | None:
        """What was moved aside when the journal was opened, because its end was broken."""
        return self._journal.repair

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """The last finished attempt of each name, in the order in which the names appeared."""
        return tuple(self._finished[key] for key in self._latest if key in self._finished)

    @property
    def begun(self) -> tuple[AttemptRecord, ...]:
        """The attempts that have not ended."""
        return tuple(r for r in self._latest.values() if r.status is Status.BEGUN)

    def of(self, key: str) -> AttemptRecord | None:
        """The last record of a name ("" is the base)."""
        return self._latest.get(key)

    def add(self, record: AttemptRecord) -> None:
        """Keep it; when this returns it survives kill -9. Raises StoreError."""
        self._journal.append(record)
        self._keep(record)

    def _keep(self, record: AttemptRecord) -> None:
        self._latest[record.key] = record
        if record.status is not Status.BEGUN:
            self._finished[record.key] = record


@contextmanager
def held_journal(
    asked: dict[str, Any], *, directory: Path, layout: Layout
) -> Iterator[WatchJournal]:
    """The journal of a watch; one for which anything else is `asked` has another journal.

    Raises RunLockedError if another process watches, StoreError.
    """
    folder = layout.watches / f"{_slug(directory.name)}-{_digest(asked)[:12]}"
    try:
        layout.make_private(layout.watches)
        make_private(folder)
        lock = FileLock(folder / "lock", mode=0o600)
        held = lock.acquire(timeout=_LOCK_WAIT, poll_interval=0.02)
    except Timeout:
        raise RunLockedError(
            f"{directory} is already being watched by another process, with the same settings",
            fix="wait until it ends, or stop that process",
        ) from None
    except OSError as error:
        raise StoreError(f"cannot lock {folder}", why=str(error)) from error
    with held, Journal(folder / "journal.jsonl", first=HeaderRecord) as journal:
        if not journal.path.stat().st_size:
            journal.append(HeaderRecord(format=_FORMAT, created=datetime.now(UTC), asked=asked))
        yield WatchJournal(folder, journal)


def _digest(asked: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.")[:40] or "watch"
