"""Small files, whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.store.files import write_whole


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
    with pytest.raises(StoreError, match=r"cannot write .*file") as caught:
        write_whole(file, b"new")
    assert caught.value.why == "[Errno 28] No space left on device"
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(StoreError):
        write_whole(file / "below a file", b"")
