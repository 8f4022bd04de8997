"""Run folders: one for each evaluation or experiment, found by its id."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
from filelock import FileLock, Timeout

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    EnginehouseError,
    HarnessError,
    OpenFilesError,
    RunLockedError,
    RunNotFoundError,
    ServerError,
    StoreError,
    nearest,
)
from enginehouse.core.incidents import Incident
from enginehouse.core.system_errors import advice
from enginehouse.store.files import write_whole
from enginehouse.store.holders import read_holder, write_holder
from enginehouse.store.layout import Layout
from enginehouse.store.private import make_private

RunKind = Literal["evaluation", "experiment"]
_LOCK_WAIT = 0.3  # seconds; longer than `is_held` holds the lock


class RunStatus(StrEnum):
    """A run's state. `unreadable` is never stored: it means that run.json cannot be read."""

    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    UNREADABLE = "unreadable"


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A process; start time and boot distinguish it from later ones with the same pid."""

    pid: int
    started: float
    boot: str = ""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The content of run.json. `server_log` is the path of the server's log, if we started it.

    `worker` is the process that works on the run, or did last: recorded before it starts a server.
    `incidents`: the deaths of our own servers while they worked for it. `left_out`: variables of
    the server's environment whose values are not kept in config.yaml. An experiment's `model` lists
    its models, and its only task is its game.
    """

    id: str
    status: RunStatus
    created: datetime
    model: str
    tasks: tuple[str, ...]
    versions: Mapping[str, str]
    finished: datetime | None = None
    server_log: str | None = None
    worker: Worker | None = None
    incidents: tuple[Incident, ...] = ()
    left_out: tuple[str, ...] = ()
    kind: RunKind = "evaluation"


class Run:
    """One run's folder. Anyone may read it; a process that works on it must hold it (`hold`)."""

    def __init__(self, folder: Path, info: RunInfo) -> None:
        self.folder = folder
        self.info = info
        self._lock = FileLock(folder / "lock", mode=0o600, thread_local=False)

    @property
    def reference(self) -> str:
        """What commands find it by: its id, or its folder if that has another name."""
        return self.info.id if self.folder.name == self.info.id else str(self.folder)

    @property
    def config_path(self) -> Path:
        """The resolved configuration, with which the run can be repeated."""
        return self.folder / "config.yaml"

    @property
    def journal_path(self) -> Path:
        """The journal; missing until the work begins."""
        return self.folder / "journal.jsonl"

    @property
    def report_path(self) -> Path:
        """The finished report as JSON, which can be rebuilt from the journal."""
        return self.folder / "report.json"

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, atomically. Raises StoreError."""
        info = msgspec.structs.replace(self.info, **changes)
        content = msgspec.json.format(msgspec.json.encode(info))
        write_whole(self.folder / "run.json", content, private=True)
        self.info = info

    def finish(self, status: RunStatus) -> None:
        """Record that the work on it has ended."""
        self.update(status=status, finished=datetime.now(UTC))

    def note_end(self, error: BaseException) -> None:
        """Record how the work ended: interrupted if resuming it may succeed, failed otherwise.

        Keeps an end that is already recorded.
        """
        if self.info.status is not RunStatus.RUNNING:
            return
        outside = (ServerError, BadRequestError, HarnessError, OpenFilesError)  # not its own fault
        stopped = isinstance(error, (*outside, asyncio.CancelledError, KeyboardInterrupt))
        try:
            self.finish(RunStatus.INTERRUPTED if stopped else RunStatus.FAILED)
        except EnginehouseError as second:  # a full disk must not hide the first error
            error.add_note(str(second))

    def write_report(self, report: bytes) -> None:
        """Keep the report (JSON), atomically. Raises StoreError."""
        write_whole(self.report_path, report, private=True)

    def require_kind(self, kind: RunKind, *, instead: str) -> None:
        """Raise ConfigurationError for a run of another kind; `instead` is the command for it."""
        if self.info.kind != kind:
            raise ConfigurationError(
                f"the run {self.info.id} is an {self.info.kind}, not an {kind}",
                fix=f"enginehouse {instead} {self.info.id}",
            )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Exclude everyone else who would work on this run, in this process and in others.

        Re-entrant for the same Run object. Raises RunLockedError, naming the holder, at once.
        The lock ends with its process, even by kill -9.
        """
        try:
            self._lock.acquire(timeout=_LOCK_WAIT, poll_interval=0.02)
        except Timeout:
            raise RunLockedError(
                f"run {self.info.id} is being worked on by {read_holder(self.folder)}",
                fix="wait until it ends, or stop that process",
            ) from None
        except OSError as error:
            raise StoreError(f"cannot lock {self.folder}", why=str(error)) from error
        try:
            write_holder(self.folder)
            yield
        finally:
            self._lock.release()

    @contextmanager
    def in_progress(self, **changes: Any) -> Iterator[None]:
        """Hold it, as a run that is worked on; if the block fails, record how it ended.

        Re-entrant as `hold` is. `changes` are made to run.json, too. Raises as `hold` and `update`.
        """
        with self.hold():
            try:
                self.update(status=RunStatus.RUNNING, finished=None, **changes)
                yield
            except BaseException as error:
                self.note_end(error)
                raise

    def is_held(self) -> bool:
        """Whether somebody works on it now."""
        if self._lock.is_locked:
            return True
        if not (self.folder / "lock").exists():
            return False
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # another user's run, which we may only read
            return False


def create_run(
    place: Layout | Path,
    *,
    model: str,
    tasks: Sequence[str],
    config: str,
    versions: Mapping[str, str],
    left_out: Sequence[str] = (),
    kind: RunKind = "evaluation",
    title: str | None = None,
) -> Run:
    """Create a run's folder with run.json and config.yaml; it appears whole or not at all.

    The id is `<UTC time>-<model>-<first task>[+<further tasks>]-<4 random hex digits>`, with
    `title` in place of the model if there is one; ids sort by time. `place` is the run's folder,
    missing or empty, or a layout: then its name is the id, and it is among the other runs. Raises
    StoreError.
    """
    created = datetime.now(UTC)
    more = f"+{len(tasks) - 1}" if len(tasks) > 1 else ""
    stem = f"{created:%Y%m%d-%H%M%S}-{_slug(title or model)}-{_slug(tasks[0])}{more}"
    name = f"{stem}-{secrets.token_hex(2)}"
    while isinstance(place, Layout) and (place.runs / name).exists():
        name = f"{stem}-{secrets.token_hex(2)}"
    info = RunInfo(
        id=name,
        status=RunStatus.RUNNING,
        created=created,
        model=model,
        tasks=tuple(tasks),
        versions=versions,
        left_out=tuple(left_out),
        kind=kind,
    )
    folder = place.runs / name if isinstance(place, Layout) else place
    unfinished = folder.with_name(f".{name}")
    try:
        if isinstance(place, Layout):
            place.make_private(place.runs)
        make_private(unfinished)
        write_whole(unfinished / "config.yaml", config.encode(), private=True)
        write_whole(
            unfinished / "run.json",
            msgspec.json.format(msgspec.json.encode(info)),
            private=True,
        )
        unfinished.rename(folder)
    except (OSError, StoreError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise StoreError(
            f"cannot create the run folder {folder}",
            why=getattr(error, "why", None) or str(error),
            fix="make room or check the permissions; ENGINEHOUSE_HOME moves everything",
        ) from error
    return Run(folder, info)


def open_run(layout: Layout, reference: str) -> Run:
    """The run with that id, that unique beginning of an id, or that folder.

    Raises RunNotFoundError, naming the nearest id or the several that match.
    """
    folder = Path(reference).expanduser()
    if (folder / "run.json").is_file():
        return _load(folder.absolute())
    known = _folders(layout)
    matches = [f for f in known if f.name == reference] or [
        f for f in known if reference and f.name.startswith(reference)
    ]
    if len(matches) == 1:
        return _load(matches[0])
    if matches:
        names = ", ".join(f.name for f in matches[:5])
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        raise RunNotFoundError(
            f"{len(matches)} runs begin with {reference!r}", fix=f"name one: {names}{more}"
        )
    ids = [f.name for f in known]
    close = nearest(reference, ids)
    latest = ", ".join(sorted(ids, reverse=True)[:5])
    raise RunNotFoundError(
        f"there is no run {reference!r}",
        why=f"{layout.runs} holds {len(known)} runs",
        fix=(f"did you mean {close!r}? " if close else "")
        + (f"the latest are {latest}" if latest else "start one with `enginehouse eval`"),
    )


def list_runs(layout: Layout) -> list[RunInfo]:
    """Every run, the latest first. A run whose process is gone is shown as interrupted."""
    return [_info(folder) for folder in sorted(_folders(layout), reverse=True)]


def _info(folder: Path) -> RunInfo:
    try:
        run = _load(folder)
    except StoreError:
        return RunInfo(
            id=folder.name,
            status=RunStatus.UNREADABLE,
            created=datetime.fromtimestamp(folder.stat().st_mtime, UTC),
            model="",
            tasks=(),
            versions={},
        )
    if run.info.status is RunStatus.RUNNING and not run.is_held():
        return msgspec.structs.replace(run.info, status=RunStatus.INTERRUPTED)
    return run.info


def _folders(layout: Layout) -> list[Path]:
    try:
        entries = list(os.scandir(layout.runs))
    except FileNotFoundError:
        return []
    except OSError as error:
        fix = advice(error, otherwise="ENGINEHOUSE_HOME names another place")
        raise StoreError(f"cannot read {layout.runs}", why=str(error), fix=fix) from error
    return [Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir()]


def _load(folder: Path) -> Run:
    path = folder / "run.json"
    try:
        return Run(folder, msgspec.json.decode(path.read_bytes(), type=RunInfo))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read", why=str(error), fix=advice(error, otherwise="check the disk")
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(
            f"{path} cannot be read",
            why=str(error),
            fix="restore the file from a backup; the answers are in journal.jsonl beside it",
        ) from error


def _slug(name: str) -> str:
    last = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9._]+", "-", last).strip("-.")[:40] or "model"
