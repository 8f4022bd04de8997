"""A file that several exports update: read, changed and replaced under a lock."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from enginehouse.core.errors import ExportError, StoreError
from enginehouse.core.system_errors import advice
from enginehouse.jobs.exporters.base import ExportSettings
from enginehouse.store.layout import Layout


class FileSettings(ExportSettings):
    """A file with the figures of one or more runs."""

    path: Path
    """The file; figures of other runs in it are kept."""


@contextmanager
def locked(path: Path) -> Iterator[bytes | None]:
    """The file's content, None if there is none. Inside the block nobody else exports to it.

    Blocks while somebody does. Raises StoreError.
    """
    locks = Layout.from_environment().locks
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"export-{name}.lock")
        lock.acquire()
    except OSError as error:
        raise StoreError(f"cannot lock {path}", why=str(error)) from error
    try:
        yield _content(path)
    finally:
        lock.release()


def not_ours(path: Path, why: str) -> ExportError:
    """A file that is there and was not written by an export."""
    return ExportError(
        f"{path} cannot be updated",
        kind="unreadable",
        why=why,
        fix="choose another path, or move the file away",
    )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() or None if path.is_file() else None
    except OSError as error:
        fix = advice(error, otherwise="choose another path")
        raise StoreError(f"cannot read {path}", why=error.strerror, fix=fix) from error
