"""Folders that exist whole or not at all: locked, built elsewhere, renamed into place.

Under one parent, a folder's final place is `<parent>/<key>`. It is built in
`<parent>/.building/<key>/<random>` under the lock `<parent>/.locks/<key>`. A builder that is
killed leaves only a folder in `.building`, and perhaps a program that still writes to it; the next
builder under that parent removes both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

_BUILDING = ".building"
_LOCKS = ".locks"
_POLL_SECONDS = 0.1
_ORPHAN_SECONDS = 10.0


def _lock(parent: Path, key: str) -> FileLock:
    folder = parent / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{key}.lock")


@contextmanager
def locked(parent: Path, key: str) -> Iterator[None]:
    """Hold the key's lock, across processes; blocks until it is free."""
    with _lock(parent, key):
        yield


@asynccontextmanager
async def claimed(parent: Path, key: str, *, on_wait: Callable[[], None]) -> AsyncIterator[None]:
    """Hold the key's lock, across processes; calls `on_wait` once if another holds it."""
    lock = _lock(parent, key)
    waiting = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not waiting:
                on_wait()
                waiting = True
            await asyncio.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def new_folder(parent: Path, key: str) -> Path:
    """An empty folder to build `key` in. The caller holds the key's lock. Blocking.

    Leftovers of builders that were killed are removed, whatever they were building.
    """
    building = parent / _BUILDING
    building.mkdir(parents=True, exist_ok=True)
    for leftover in building.iterdir():
        if leftover.name == key:
            _remove_leftover(leftover)
            continue
        lock = _lock(parent, leftover.name)
        try:
            with lock.acquire(timeout=0):
                _remove_leftover(leftover)
        except Timeout:
            continue  # another process is building it now
    (building / key).mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=building / key))


def _remove_leftover(leftover: Path) -> None:
    """Remove a folder whose builder is dead: we hold its lock, so any user of it is an orphan."""
    prefix = f"{leftover}{os.sep}"
    orphans = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(prefix) for word in process.info["cmdline"] or ())
    ]
    for orphan in orphans:
        with contextlib.suppress(psutil.Error):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=_ORPHAN_SECONDS)
    shutil.rmtree(leftover, ignore_errors=True)


def publish(built: Path, parent: Path, key: str) -> Path:
    """Rename a built folder into its final place, replacing what is there. Blocking."""
    final = parent / key
    discard(parent, key)
    built.chmod(0o755)  # mkdtemp makes it 0o700
    built.rename(final)
    abandon(built)
    return final


def discard(parent: Path, key: str) -> None:
    """Remove the folder of `key`, atomically for others. The caller holds its lock."""
    final = parent / key
    if not final.exists():
        return
    building = parent / _BUILDING / key
    building.mkdir(parents=True, exist_ok=True)
    away = Path(tempfile.mkdtemp(dir=building)) / "removed"
    final.rename(away)
    abandon(away.parent)


def abandon(built: Path) -> None:
    """Remove a folder from `new_folder` if it still exists; never raises. Blocking."""
    shutil.rmtree(built, ignore_errors=True)
    try:
        built.parent.rmdir()
    except OSError:
        return  # another leftover is in it; the next builder removes it
