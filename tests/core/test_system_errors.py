"""What the operating system refuses, in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.core.system_errors import advice, worded


def raised(number: int, path: object = None) -> OSError:
    """An error as the operating system gives it."""
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("path", ["/a/b", b"/a/b", Path("/a/b")])
def test_the_path_and_the_reason_are_named(path: object):
    """However the path was given."""
    error = worded(raised(errno.ENAMETOOLONG, path))
    assert type(error) is StoreError
    assert "/a/b" in error.message
    assert error.why == os.strerror(errno.ENAMETOOLONG)


def test_every_reason_has_its_own_advice():
    """None of the usual ones is left with the last resort."""
    usual = (errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
    usual += (errno.ELOOP, errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EDQUOT, errno.ESTALE)
    fixes = {number: worded(raised(number, "/a")).fix for number in usual}
    assert worded(raised(errno.EXDEV, "/a")).fix not in fixes.values()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_the_locked_folder_is_named(tmp_path: Path):
    """It need not be the last on the way."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(PermissionError) as refused:
        (locked / "a" / "b").read_bytes()
    assert f"{locked} cannot be entered" in str(worded(refused.value))


def test_without_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that was removed under its process is told from anything else."""
    assert "current folder" not in worded(raised(errno.EMFILE)).message
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="No such file") as refused:
        Path("here").absolute()
    assert "the current folder is gone" in worded(refused.value).message
    monkeypatch.chdir(tmp_path)


def test_advice_is_the_reasons_if_there_is_one():
    """The advice is to save a broken file again, but not one that may not be read."""
    assert advice(ValueError("x"), otherwise="save it again") == "save it again"
    assert advice(raised(errno.ENOENT, "/a"), otherwise="save it again") == "save it again"
    assert "permissions" in advice(raised(errno.EACCES, "/a"), otherwise="save it again")
