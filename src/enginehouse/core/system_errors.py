"""Readable messages for errors of the operating system."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from enginehouse.core.errors import EnginehouseError, StoreError

_FIXES = {
    errno.EACCES: "check the permissions of it and of the folders above it",
    errno.EPERM: "check the permissions of it and of the folders above it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EROFS: "choose a writable place; ENGINEHOUSE_HOME moves everything that is stored",
    errno.ENOTDIR: "a part of the path is a file, not a folder: correct it",
    errno.EISDIR: "it is a folder: use a file",
    errno.ELOOP: "its symbolic links form a loop: remove one",
    errno.ENOENT: "check the path",
    errno.EIO: "check the disk: the kernel's log (dmesg) says more",
    errno.EMFILE: "allow more open files (ulimit -n), or use a smaller concurrency",
    errno.ENFILE: "close other programs: the whole machine has too many files open",
    errno.ESTALE: "the network file system has changed: mount it again",
}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def worded(error: OSError) -> EnginehouseError:
    """An error that names the path, the reason and what to do.

    A disk may be full and a path may be locked wherever something is read or written, including in
    libraries.
    """
    reason = error.strerror or str(error) or type(error).__name__
    path = _path(error)
    if error.errno in _FULL:
        fix = "make room (`df -h ~ /tmp` shows where), then run it again, or resume the run"
        return StoreError("a disk is full", why=str(error), fix=fix)
    fix = _FIXES.get(error.errno or 0, "-v shows where it happened")
    if path is None and _is_homeless():
        return StoreError("the current folder is gone", why=reason, fix="cd to one that exists")
    if path is None:
        return StoreError("the operating system refused something", why=reason, fix=fix)
    if error.errno in (errno.EACCES, errno.EPERM):
        locked = _locked_folder(path)
        reason += f" for {_user()}" + (f": {locked} cannot be entered" if locked else "")
    return StoreError(f"cannot use {path}", why=reason, fix=fix)


def advice(error: Exception, *, otherwise: str) -> str:
    """What to do about a file that could not be read or written; `otherwise` by default."""
    if not isinstance(error, OSError) or error.errno == errno.ENOENT:
        return otherwise
    return _FIXES.get(error.errno or 0, otherwise)


def _path(error: OSError) -> str | None:
    name = error.filename
    if isinstance(name, bytes | str | os.PathLike):
        return os.fsdecode(name)
    return None


def _locked_folder(path: str) -> Path | None:
    """The folder above `path` that cannot be entered, if any."""
    for folder in Path(path).absolute().parents:
        with suppress(OSError):
            folder.stat()
            return None if os.access(folder, os.X_OK) else folder
    return None


def _is_homeless() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _user() -> str:
    number = os.geteuid()
    with suppress(ImportError, KeyError):
        import pwd

        return f"the user {pwd.getpwuid(number).pw_name}"
    return f"user {number}"
