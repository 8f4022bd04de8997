"""Files and folders that only their owner may read, since they hold prompts, answers and keys."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_OTHERS = 0o077


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, whatever the umask, or make it private.

    Missing parents are made in the same way. Raises OSError.
    """
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        each.chmod(0o700)
    if not missing and folder.stat().st_mode & _OTHERS:
        with suppress(PermissionError):  # it belongs to another user, who decides
            folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """os.open for writing; only the owner may read a file that it creates. Raises OSError."""
    existed = path.exists()
    opened = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not existed:
        os.fchmod(opened, 0o600)
    return opened
