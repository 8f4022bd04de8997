"""What is known on disk of every server, so that other processes can list and stop it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.executors.tree import ProcessIdentity, ProcessTree, is_alive
from enginehouse.servers.ports import PortLease
from enginehouse.store.layout import Layout

KEPT_LOGS = 50
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One server of ours. The API key is in no record, only whether there is one.

    `starter` is the process that started it; unless `detached`, that process stops it, too.
    `started` is in seconds since the epoch.
    """

    name: str
    process: ProcessIdentity
    starter: ProcessIdentity
    detached: bool
    ready: bool
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


class ServerState(StrEnum):
    """`abandoned`: it runs, but the process that was to stop it is gone."""

    STARTING = "starting"
    READY = "ready"
    ABANDONED = "abandoned"
    DEAD = "dead"


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A record, and what is true of it now. `pids`: every process of it that is alive."""

    record: ServerRecord
    state: ServerState
    pids: tuple[int, ...]


def list_servers(layout: Layout) -> list[ServerStatus]:
    """Every server with a record, the oldest first; dead ones too, until they are stopped."""
    statuses = [_status(record) for record in _records(layout)]
    return sorted(statuses, key=lambda status: status.record.started)


def find_server(name: str, *, layout: Layout) -> ServerRecord:
    """The record of that name. Raises UnknownNameError, which lists the known ones."""
    record = _load(layout.servers / name / "server.json")
    if record is None:
        raise UnknownNameError("server", name, (r.name for r in _records(layout)))
    return record


def make_folder(layout: Layout, *, model: str, name: str | None) -> Path:
    """A new folder, its name wanted or made from the model's ("smollm2-7f3a").

    Raises ConfigurationError if the wanted name cannot be one, or belongs to a server that lives.
    """
    layout.servers.mkdir(parents=True, exist_ok=True)
    _forget_old_logs(layout)
    if name is not None:
        return _named_folder(layout, name)
    stem = re.sub(r"[^a-z0-9._]+", "-", model.rpartition("/")[2].lower()).strip("-._") or "server"
    while True:
        folder = layout.servers / f"{stem[:40]}-{secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def _named_folder(layout: Layout, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a server cannot be called {name!r}",
            fix="use small letters, digits, '.', '_' and '-', a letter or digit first",
        )
    folder = layout.servers / name
    record = _load(folder / "server.json")
    if record is not None:
        if _status(record).pids:
            raise ConfigurationError(
                f"there is a server called {name} (pid {record.process.pid})",
                fix=f"choose another name, or stop it: enginehouse stop {name}",
            )
        remove_record(layout, name)
    folder.mkdir(exist_ok=True)
    (folder / "server.log").unlink(missing_ok=True)
    return folder


def write_record(layout: Layout, record: ServerRecord) -> None:
    """Write it readable by its owner only, whole or not at all."""
    file = layout.servers / record.name / "server.json"
    new = file.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(record, enc_hook=str)))
    new.replace(file)


def remove_record(layout: Layout, name: str) -> None:
    """Forget the server; its log stays, for a while. Idempotent."""
    (layout.servers / name / "server.json").unlink(missing_ok=True)


def _status(record: ServerRecord) -> ServerStatus:
    pids = tuple(process.pid for process in ProcessTree(record.process).look())
    if not is_alive(record.process):
        state = ServerState.DEAD
    elif not record.detached and not is_alive(record.starter):
        state = ServerState.ABANDONED
    else:
        state = ServerState.READY if record.ready else ServerState.STARTING
    return ServerStatus(record=record, state=state, pids=pids)


def _records(layout: Layout) -> list[ServerRecord]:
    files = layout.servers.glob("*/server.json")
    return [record for file in files if (record := _load(file)) is not None]


def _load(file: Path) -> ServerRecord | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=ServerRecord, dec_hook=_decode)
    except (OSError, msgspec.MsgspecError):
        return None


def _decode(kind: type, value: Any) -> Any:
    return kind(value)  # Path is the one type that msgspec does not know


def _forget_old_logs(layout: Layout) -> None:
    ended = [f for f in layout.servers.iterdir() if f.is_dir() and not (f / "server.json").exists()]
    ended.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in ended[KEPT_LOGS:]:
        shutil.rmtree(folder, ignore_errors=True)
