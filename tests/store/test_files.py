"""Small files, whole or not at all."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.store.files import require_folder, write_whole


def test_written_and_replaced(tmp_path: Path):
    """With its folder; the last writer wins, and nothing else is left."""
    file = tmp_path / "new" / "file.json"
    for content in (b"one", b"two"):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_private(tmp_path: Path):
    """From the first byte on: there is no moment at which others may read it."""
    mask = os.umask(0o022)
    try:
        write_whole(tmp_path / "secret", b"key", private=True)
        write_whole(tmp_path / "open", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644


def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The error names the file; the old content stays, and no litter."""
    file = tmp_path / "file"
    write_whole(file, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match=re.escape(str(file))) as caught:
        write_whole(file, b"new")
    assert caught.value.why == "No space left on device"
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StoreError):
        write_whole(file / "below a file", b"")


def test_what_is_not_a_file_is_not_replaced_by_one(tmp_path: Path):
    """A pipe gets the content, a link stays a link, a loop does not, and a folder is refused."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    link = tmp_path / "link"
    link.symlink_to("file")
    for content in (b"one", b"two"):
        write_whole(link, content)
        assert (tmp_path / "file").read_bytes() == content
    assert link.is_symlink()
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    write_whole(loop, b"content")
    assert loop.read_bytes() == b"content"
    with pytest.raises(StoreError) as caught:
        write_whole(tmp_path, b"")
    assert "use a file" in caught.value.fix


def test_a_folder_that_takes_no_files_is_refused(tmp_path: Path):
    """One that is missing is created."""
    require_folder(tmp_path / "new" / "folder")
    write_whole(tmp_path / "new" / "folder" / "file", b"")
    with pytest.raises(StoreError):
        require_folder(tmp_path / "new" / "folder" / "file")
