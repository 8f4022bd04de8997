"""What is recorded on disk about every server, so that other processes can list and stop it."""

from __future__ import annotations

import re
import secrets
import shutil
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, StoreError, UnknownNameError
from enginehouse.processes.tree import ProcessIdentity, ProcessTree, is_alive
from enginehouse.servers.ports import PortLease
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.store.private import make_private

KEPT_LOGS = 50
_CURRENT, _ENDED, _STOP = "server.json", "ended.json", "stop"
_WEIGHTS, _KEY = "weights.json", "admin.key"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)


class ServerState(StrEnum):
    """A server's state.

    `degraded`: it is alive but does not answer as it should; it may recover. `failed`: it ended by
    itself, or its engine is dead. `stopped`: we ended it.
    """

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One of our own servers. It contains no key, only whether the user set one (`has_api_key`).

    `key_file` holds the administrative key, if the server has endpoints that load adapters or
    replace weights; `swaps_weights` says whether it has the latter. `health_path` is where it says
    that it is well.
    `starter` is the process that started it; unless `detached`, that process also stops it and
    keeps `state` up to date. `started` is in seconds since the epoch.
    """

    name: str
    process: ProcessIdentity
    starter: ProcessIdentity
    detached: bool
    state: ServerState
    base_url: str
    host: str
    models: tuple[str, ...]
    engine: str
    version: str
    environment: str
    model: str
    command: tuple[str, ...]
    has_api_key: bool
    lease: PortLease
    log: Path
    started: float
    key_file: Path | None = None
    swaps_weights: bool = False
    health_path: str | None = None


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A record and its present state. `pids`: every process of it that is alive.

    `abandoned`: it runs although the process that was to stop it is gone, and its reaper too.
    """

    record: ServerRecord
    state: ServerState
    pids: tuple[int, ...]
    abandoned: bool = False


def list_servers(layout: Layout, *, ended: bool = False) -> list[ServerStatus]:
    """Every server with a record, the oldest first; failed ones included, until they are stopped.

    `ended` adds those that were stopped, as long as their logs are kept. A server that its reaper
    ended counts as stopped.
    """
    statuses = []
    for record in _records(layout, _CURRENT):
        status = _status(record)
        if not status.pids and not record.detached and not is_alive(record.starter):
            remove_record(layout, record.name)
        else:
            statuses.append(status)
    if ended:
        statuses += [
            ServerStatus(record=record, state=record.state, pids=())
            for record in _records(layout, _ENDED)
        ]
    return sorted(statuses, key=lambda status: status.record.started)


def find_server(name: str, *, layout: Layout, ended: bool = False) -> ServerRecord:
    """The record of that name, with `ended` also of a stopped server.

    Raises UnknownNameError, which lists the known ones.
    """
    kinds = (_CURRENT, _ENDED) if ended else (_CURRENT,)
    for kind in kinds:
        if record := _load(layout.servers / name / kind):
            return record
    known = (record.name for kind in kinds for record in _records(layout, kind))
    raise UnknownNameError("server", name, known)


def make_folder(layout: Layout, *, model: str, name: str | None) -> Path:
    """A new folder called `name`, or after the model ("smollm2-7f3a").

    Raises ConfigurationError if the name is invalid, or belongs to a live server.
    """
    layout.make_private(layout.servers)
    ended = [f for f in layout.servers.iterdir() if f.is_dir() and not (f / _CURRENT).exists()]
    ended.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in ended[KEPT_LOGS:]:
        shutil.rmtree(folder, ignore_errors=True)
    if name is not None:
        return _named_folder(layout, name)
    stem = re.sub(r"[^a-z0-9._]+", "-", model.rpartition("/")[2].lower()).strip("-._") or "server"
    while True:
        folder = layout.servers / f"{stem[:40]}-{secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        folder.chmod(0o700)
        return folder


def _named_folder(layout: Layout, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a server cannot be called {name!r}",
            fix="use lower-case letters, digits, '.', '_' and '-'; begin with a letter or digit",
        )
    folder = layout.servers / name
    record = _load(folder / _CURRENT)
    if record is not None:
        if _status(record).pids or (not record.detached and is_alive(record.starter)):
            raise ConfigurationError(
                f"there is already a server called {name} (pid {record.process.pid})",
                fix=f"choose another name, or stop it: enginehouse stop {name}",
            )
        remove_record(layout, name)
    make_private(folder)
    for old in (folder / _STOP, folder / _WEIGHTS, folder / _KEY, *folder.glob("server*.log")):
        old.unlink(missing_ok=True)
    return folder


def write_record(layout: Layout, record: ServerRecord) -> None:
    """Write it readable by its owner only, whole or not at all. Raises StoreError."""
    _write(layout.servers / record.name / _CURRENT, record)


def _write(file: Path, record: ServerRecord) -> None:
    content = msgspec.json.format(msgspec.json.encode(record, enc_hook=str))
    write_whole(file, content, private=True)


def weights_file(layout: Layout, name: str) -> Path:
    """The file that names the weights swapped into the server, for its restarts."""
    return layout.servers / name / _WEIGHTS


def key_file(layout: Layout, name: str) -> Path:
    """The file with a server's administrative key, which only its owner can read."""
    return layout.servers / name / _KEY


def read_key(record: ServerRecord) -> str | None:
    """The administrative key that was generated for the server; None if there is none."""
    if record.key_file is None:
        return None
    try:
        return record.key_file.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def mark_stopped(layout: Layout, name: str) -> None:
    """Tell the process that supervises it not to start it again. Idempotent."""
    (layout.servers / name / _STOP).touch()


def is_marked_stopped(layout: Layout, name: str) -> bool:
    """Whether it was stopped, or is about to be."""
    folder = layout.servers / name
    return (folder / _STOP).exists() or not (folder / _CURRENT).exists()


def remove_record(layout: Layout, name: str, *, state: ServerState = ServerState.STOPPED) -> None:
    """Count the server among the ended ones, whose logs stay for a while. Idempotent."""
    folder = layout.servers / name
    if record := _load(folder / _CURRENT):
        with suppress(StoreError):  # a full disk must not keep an ended server among the live ones
            _write(folder / _ENDED, msgspec.structs.replace(record, state=state))
    for file in (folder / _CURRENT, folder / _KEY):
        file.unlink(missing_ok=True)


def _status(record: ServerRecord) -> ServerStatus:
    pids = tuple(process.pid for process in ProcessTree(record.process).look())
    return ServerStatus(
        record=record,
        state=record.state if is_alive(record.process) else ServerState.FAILED,
        pids=pids,
        abandoned=bool(pids) and not record.detached and not is_alive(record.starter),
    )


def _records(layout: Layout, kind: str) -> list[ServerRecord]:
    files = layout.servers.glob(f"*/{kind}")
    return [record for file in files if (record := _load(file)) is not None]


def _load(file: Path) -> ServerRecord | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=ServerRecord, dec_hook=_decode)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


def _decode(kind: type, value: Any) -> Any:
    return kind(value)  # Path is the only type that msgspec does not know
