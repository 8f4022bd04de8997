"""Files and folders that only their owner may read, whatever the umask."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse.store.files import write_whole
from enginehouse.store.journal import Journal
from enginehouse.store.layout import Layout
from enginehouse.store.private import make_private, open_private
from enginehouse.store.runs import create_run


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The process's umask, from the most open one to the most closed."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    """The permission bits."""
    return path.stat().st_mode & 0o777


def test_folders_and_files(tmp_path: Path, umask: int):
    """Also those on the way; what was open is closed."""
    make_private(tmp_path / "a" / "b")
    os.close(open_private(tmp_path / "a" / "b" / "file", os.O_WRONLY))
    write_whole(tmp_path / "a" / "b" / "whole", b"", private=True)
    assert [mode(tmp_path / p) for p in ("a", "a/b", "a/b/file", "a/b/whole")] == [
        *(0o700, 0o700),
        *(0o600, 0o600),
    ]
    (tmp_path / "a").chmod(0o755)
    make_private(tmp_path / "a")
    assert mode(tmp_path / "a") == 0o700


def test_a_users_own_file_keeps_its_permissions(tmp_path: Path):
    """Only what is made here is closed."""
    (tmp_path / "out").touch(mode=0o640)
    (tmp_path / "out").chmod(0o640)
    os.close(open_private(tmp_path / "out", os.O_WRONLY))
    assert mode(tmp_path / "out") == 0o640


@pytest.mark.parametrize("umask", [0o000, 0o022], indirect=True)
def test_a_run(tmp_path: Path, umask: int):
    """Its folder, everything in it, and the state in which it lies."""
    layout = Layout(cache=tmp_path / "c", state=tmp_path / "s", config=tmp_path / "k")
    layout.state.mkdir(mode=0o755)
    run = create_run(layout, model="m", tasks=["t"], config="a: 1\n", versions={})
    with run.hold(), Journal(run.journal_path, first=type(run.info)):
        run.write_report(b"{}")
        run.update(model="n")
        files = [path for path in run.folder.iterdir() if path.name != "lock.tmp"]
        assert {path.name: mode(path) for path in files} == {path.name: 0o600 for path in files}
        names = {"run.json", "config.yaml", "journal.jsonl", "report.json", "holder.json", "lock"}
        assert names <= {path.name for path in files}
    assert [mode(p) for p in (layout.state, layout.runs, run.folder)] == [0o700] * 3
