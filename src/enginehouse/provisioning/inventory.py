"""The installed engine environments, and their removal."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import psutil

from enginehouse.core.errors import ProvisioningError, UnknownNameError
from enginehouse.provisioning import content_folders
from enginehouse.provisioning.building import read_record
from enginehouse.store.layout import Layout


class InstalledEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """A finished environment. `created` in seconds since 1970, `used_by` are process ids."""

    key: str
    engine: str
    version: str
    variant: str
    executable: Path
    size_bytes: int
    created: float
    used_by: tuple[int, ...]

    @property
    def in_use(self) -> bool:
        """Whether a process runs from it."""
        return bool(self.used_by)


def list_environments(layout: Layout) -> list[InstalledEnvironment]:
    """Every finished environment, by key, without half-built ones. Blocking.

    Sizes are those on disk; files that uv shares with its cache count in full.
    """
    if not layout.environments.is_dir():
        return []
    installed = []
    for folder in sorted(layout.environments.iterdir()):
        if folder.name.startswith(".") or (record := read_record(folder)) is None:
            continue
        installed.append(
            InstalledEnvironment(
                key=folder.name,
                engine=record.engine,
                version=record.version,
                variant=record.variant,
                executable=record.executable(folder),
                size_bytes=_size(folder),
                created=record.created,
                used_by=_users(folder),
            )
        )
    return installed


def remove_environment(key: str, *, layout: Layout) -> None:
    """Remove an environment, atomically for others. Blocking.

    Raises UnknownNameError, and ProvisioningError while a process runs from it.
    """
    parent = layout.environments
    keys = [path.name for path in parent.iterdir()] if parent.is_dir() else []
    keys = [name for name in keys if not name.startswith(".")]
    if key not in keys:
        raise UnknownNameError("engine environment", key, keys)
    with content_folders.locked(parent, key):
        if users := _users(parent / key):
            raise ProvisioningError(
                f"{key} is in use by process {', '.join(map(str, users))}",
                fix="stop the server first: `enginehouse ps` and `enginehouse stop`",
            )
        content_folders.discard(parent, key)


def _size(folder: Path) -> int:
    total, pending = 0, [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


def _users(folder: Path) -> tuple[int, ...]:
    """The processes whose command or mapped files lie in `folder`, if we may see them."""
    prefix = f"{folder}/"
    return tuple(pid for pid in psutil.pids() if pid != os.getpid() and _uses(pid, prefix))


def _uses(pid: int, prefix: str) -> bool:
    try:
        if any(word.startswith(prefix) for word in psutil.Process(pid).cmdline()[:1]):
            return True
        # vLLM's workers overwrite their command line, but not what they have loaded.
        return prefix in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    except (psutil.Error, OSError):
        return False
