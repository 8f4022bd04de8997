"""Small files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from enginehouse.core.errors import StoreError
from enginehouse.core.system_errors import advice
from enginehouse.store.private import open_private


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write or replace a file; the last writer wins.

    `private`: only its owner may read it, whatever the umask. Creates the folder. Raises
    StoreError, and keeps the previous content, if it cannot be written. A device or a pipe, such as
    /dev/stdout, is written to and not replaced; a link stays a link. Blocking.
    """
    place = path
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        if path.is_symlink():
            place = Path(os.path.realpath(path))  # unlike resolve(), without an error for a loop
    except OSError as error:
        raise write_refused(path, error) from error
    temporary = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(2)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        opened = open_private(temporary, flags) if private else os.open(temporary, flags, 0o666)
        with os.fdopen(opened, "wb") as file:
            file.write(content)
        temporary.replace(place)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise write_refused(path, error) from error


def require_folder(path: Path) -> None:
    """Create a folder unless it exists. Raises StoreError if files cannot be put into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    except OSError as error:
        raise StoreError(
            f"cannot write into {path}",
            why=error.strerror,
            fix=advice(error, otherwise="choose another folder"),
        ) from error


def write_refused(path: Path, error: OSError) -> StoreError:
    """The error of a file or folder that could not be written, with what to do about it."""
    return StoreError(
        f"cannot write {path}",
        why=error.strerror or str(error),
        fix=advice(error, otherwise="free disk space, or check the permissions"),
    )
