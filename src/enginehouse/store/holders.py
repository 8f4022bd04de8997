"""Who holds a folder's lock, for the message to those who have to wait."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.store.files import write_whole

_NAME = "holder.json"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that works in a folder."""

    pid: int
    host: str
    since: datetime


def write_holder(folder: Path) -> None:
    """Note that it is this process, which has just taken the lock. Blocking."""
    holder = Holder(pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC))
    with suppress(StoreError):  # it only improves an error message; the disk may be full
        write_whole(folder / _NAME, msgspec.json.encode(holder), private=True)


def read_holder(folder: Path) -> str:
    """The process that took the lock last, in words. Blocking."""
    try:
        holder = msgspec.json.decode((folder / _NAME).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError, RecursionError):
        return "another process"
    return f"process {holder.pid} on {holder.host}, since {holder.since:%Y-%m-%d %H:%M:%S} UTC"
