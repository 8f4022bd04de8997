from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.core.errors import StoreError
from enginehouse.store import journal as journal_module
from enginehouse.store.journal import Journal, read_journal, read_record


class Line(msgspec.Struct):
    """A record of these tests."""

    number: int
    text: str = ""


def fill(path: Path, count: int) -> None:
    """`count` records."""
    with Journal(path, first=Line) as journal:
        for number in range(count):
            journal.append(Line(number, "é\n" * number))


def cut(journal: Journal) -> bytes:
    """What was moved aside when the journal was opened; nothing of it is lost."""
    if journal.repair is None:
        return b""
    kept = journal.repair.kept.read_bytes()
    assert journal.repair.size == len(kept)
    return kept


def numbers(path: Path) -> list[int]:
    """What the journal holds."""
    return [entry.record.number for entry in read_journal(path, Line)]


def test_what_is_appended_is_read_back(tmp_path):
    """Records come back in order, newlines in texts and all, and by their offsets."""
    path = tmp_path / "j.jsonl"
    with Journal(path, first=Line) as journal:
        offsets = [journal.append(Line(i, "a\nb\u2028c")) for i in range(3)]
    with Journal(path, first=Line) as journal:
        offsets.append(journal.append(Line(3)))
    entries = list(read_journal(path, Line))
    assert [e.record for e in entries] == [*(Line(i, "a\nb\u2028c") for i in range(3)), Line(3)]
    assert [e.offset for e in entries] == offsets
    assert read_record(path, Line, offset=offsets[2]) == Line(2, "a\nb\u2028c")


def test_missing_journal_is_empty(tmp_path):
    """A run killed before its first record has nothing, which is no error."""
    assert numbers(tmp_path / "none.jsonl") == []


def test_torn_last_line_at_every_byte(tmp_path):
    """Cut anywhere in the last record: readers see the others, opening repairs it."""
    path = tmp_path / "j.jsonl"
    fill(path, 4)
    whole = path.read_bytes()
    begin = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(begin, len(whole)):
        path.write_bytes(whole[:end])
        assert numbers(path) == [0, 1, 2]
        with Journal(path, first=Line) as journal:
            assert cut(journal) == whole[begin:end]
            journal.append(Line(9))
        assert numbers(path) == [0, 1, 2, 9]


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\0\0\n", b'{"number":\n', b"\xff\xfe\n{\n"])
def test_garbage_at_the_end_is_cut(tmp_path, tail):
    """What a power cut may leave (zeros, half blocks) is cut off, newline or not."""
    path = tmp_path / "j.jsonl"
    fill(path, 2)
    with path.open("ab") as file:
        file.write(tail)
    assert numbers(path) == [0, 1]
    with Journal(path, first=Line) as journal:
        assert cut(journal) == tail
    assert numbers(path) == [0, 1]


def test_only_garbage(tmp_path):
    """A journal whose very first line is torn becomes empty."""
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"num')
    with Journal(path, first=Line) as journal:
        assert cut(journal) == b'{"num'
    assert path.read_bytes() == b""


DEEP = b'{"number":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
GOOD = b'{"number":0,"text":"a"}\n'


@pytest.mark.parametrize(
    "content",
    [
        GOOD.decode().encode("utf-16"),
        GOOD.decode().encode("utf-16-le"),
        b"\xef\xbb\xbf" + GOOD,
        gzip.compress(GOOD * 9),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        b"version https://git-lfs.github.com/spec/v1",
        b"/annex/objects/SHA256E-s9--00.jsonl\n",
        b"\x28\xb5\x2f\xfd\0\0",
        b"\0" * 5000,
        b"\n" + GOOD,
        b"a note of mine",
        b"[]\n",
        b'{"later":1}\n',
        DEEP,
        b'{"numb\n' + GOOD,
    ],
    ids=range(15),
)
@pytest.mark.parametrize("linked", [False, True])
def test_what_never_was_a_journal_is_refused_untouched(tmp_path, content, linked):
    """Another encoding, a pointer, a lost first line: refused, nothing cut, through a link too."""
    path = target = tmp_path / "j.jsonl"
    if linked:
        target = tmp_path / "elsewhere.jsonl"
        path.symlink_to(target)
    target.write_bytes(content)
    with pytest.raises(StoreError):
        Journal(path, first=Line)
    with pytest.raises(StoreError):
        numbers(path)
    assert target.read_bytes() == content
    assert set(tmp_path.iterdir()) == {path, target}


def test_a_reader_refuses_a_deep_line_and_an_opener_keeps_it(tmp_path):
    """JSON nested beyond the recursion limit is one broken line, wherever it is; never cut."""
    path = tmp_path / "j.jsonl"
    for content in (GOOD + DEEP + GOOD, GOOD + DEEP):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="line 2"):
            numbers(path)
        with Journal(path, first=Line) as journal:
            assert journal.repair is None
        assert path.read_bytes() == content
        with pytest.raises(StoreError):
            read_record(path, Line, offset=len(GOOD))


def test_what_cannot_be_moved_aside_is_not_cut(tmp_path, monkeypatch):
    """A disk without room for the torn end: the journal stays as it is."""
    path = tmp_path / "j.jsonl"
    content = GOOD + b'{"num'
    path.write_bytes(content)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        Journal(path, first=Line)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_cut_does_not_replace_the_first(tmp_path):
    """Every torn end has a file of its own, which only its owner may read."""
    path = tmp_path / "j.jsonl"
    for tail in (b'{"num', b'{"number":1,"te'):
        with path.open("ab") as file:
            file.write((GOOD if not path.stat().st_size else b"") + tail)
        with Journal(path, first=Line):
            pass
    kept = sorted(tmp_path.glob("j.jsonl.cut*"))
    assert [k.read_bytes() for k in kept] == [b'{"num', b'{"number":1,"te']
    assert {k.stat().st_mode & 0o777 for k in kept} == {0o600}


def test_only_a_full_disk_asks_for_room(tmp_path, monkeypatch):
    """A journal that may not be read lacks a permission, whatever is free on its disk."""
    path = tmp_path / "journal.jsonl"
    fill(path, 1)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(StoreError) as forbidden:
            list(read_journal(path, Line))
    assert forbidden.value.why == "Permission denied"
    assert "permissions" in str(forbidden.value.fix)
    assert "room" not in str(forbidden.value.fix)
    with Journal(Path("/dev/full"), first=Line) as full, pytest.raises(StoreError) as no_room:
        full.append(Line(1))
    assert "make room" in str(no_room.value.fix)


def test_long_lines_are_repaired(tmp_path):
    """The last line may be longer than any block that is read at once."""
    path = tmp_path / "j.jsonl"
    with Journal(path, first=Line) as journal:
        journal.append(Line(0, "x" * 300_000))
        journal.append(Line(1, "y" * 300_000))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with Journal(path, first=Line) as journal:
        assert len(cut(journal)) > 300_000
    assert numbers(path) == [0]


def test_broken_line_in_the_middle_is_an_error(tmp_path):
    """File and line are named, and nothing is cut."""
    path = tmp_path / "j.jsonl"
    fill(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"number": 1\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=r"j\.jsonl, line 2"):
        numbers(path)
    with Journal(path, first=Line) as journal:
        assert journal.repair is None


def test_foreign_record_is_an_error_even_at_the_end(tmp_path):
    """Whole JSON that is no record is of another version, not torn: it must not be cut."""
    path = tmp_path / "j.jsonl"
    fill(path, 2)
    with path.open("ab") as file:
        file.write(b'{"later": 1}\n')
    with Journal(path, first=Line) as journal:
        assert journal.repair is None
    with pytest.raises(StoreError, match="line 3"):
        numbers(path)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.integers(0, 400))
def test_any_cut_loses_only_what_is_after_it(tmp_path_factory, count, end):
    """Truncate a journal anywhere: exactly the whole lines before the cut survive."""
    path = tmp_path_factory.mktemp("j") / "j.jsonl"
    fill(path, count)
    whole = path.read_bytes()
    path.write_bytes(whole[:end])
    with Journal(path, first=Line):
        pass
    assert numbers(path) == list(range(whole[:end].count(b"\n")))


def test_full_device_names_path_and_free_space():
    """/dev/full refuses every write: a StoreError that says where and how much is free."""
    with Journal(Path("/dev/full"), first=Line) as journal, pytest.raises(StoreError) as caught:
        journal.append(Line(1))
    assert "/dev/full" in str(caught.value)
    assert "MB free" in str(caught.value)
    assert "No space left" in str(caught.value)


def test_part_of_a_line_is_taken_back(tmp_path, monkeypatch):
    """A disk that takes half the line, or half of it and then fails: nothing of it stays."""
    path = tmp_path / "j.jsonl"
    real_write = os.write

    def half(file: int, data: bytes) -> int:
        return real_write(file, data[: len(data) // 2])

    def half_then_fail(file: int, data: bytes) -> int:
        half(file, data)
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path, first=Line) as journal:
        journal.append(Line(0))
        for broken in (half, half_then_fail):
            monkeypatch.setattr(journal_module.os, "write", broken)
            with pytest.raises(StoreError, match="cannot append"):
                journal.append(Line(1))
            assert numbers(path) == [0]
            assert path.read_bytes().endswith(b"\n")
            monkeypatch.setattr(journal_module.os, "write", real_write)
        journal.append(Line(2))
    assert numbers(path) == [0, 2]


def test_file_size_limit_leaves_whole_lines(tmp_path):
    """The kernel itself cuts a write short at RLIMIT_FSIZE: the journal stays whole."""
    path = tmp_path / "j.jsonl"
    program = (
        "import sys, resource, signal; from pathlib import Path\n"
        "from enginehouse.store.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from enginehouse.core.errors import StoreError\n"
        "import msgspec; Line = msgspec.defstruct('Line', ['number', 'text'])\n"
        "journal = Journal(Path(sys.argv[1]), first=Line)\n"
        "try:\n"
        "    while True: journal.append({'number': 1, 'text': 'x' * 77})\n"
        "except StoreError as error: print(error.message)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    out = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot append" in out.stdout
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines
    assert all(json.loads(line) for line in lines)
    assert lines[-1].endswith(b"\n")


def test_killed_writer_loses_nothing_that_append_returned(tmp_path):
    """Kill -9 in the middle of appending: every record that was reported is there, in order."""
    path = tmp_path / "j.jsonl"
    program = (
        "import sys; from pathlib import Path\n"
        "from enginehouse.store.journal import Journal\n"
        "import msgspec; Line = msgspec.defstruct('Line', ['number', 'text'])\n"
        "journal = Journal(Path(sys.argv[1]), first=Line)\n"
        "for i in range(10**9):\n"
        "    journal.append({'number': i, 'text': 'x' * (i % 5000)})\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for _ in range(200):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    reported = int(rest[-1]) if rest else 199
    with Journal(path, first=Line):
        pass
    found = numbers(path)
    assert found == list(range(len(found)))
    assert len(found) >= reported


def test_unwritable_folder_is_a_store_error(tmp_path):
    """A folder that is not there: the message names the path."""
    with pytest.raises(StoreError, match="cannot open"):
        Journal(tmp_path / "no" / "j.jsonl", first=Line)


def test_sync_reaches_the_disk_or_says_so(tmp_path, monkeypatch):
    """A disk that cannot store what was written is an error."""
    synced: list[int] = []
    with Journal(tmp_path / "j.jsonl", first=Line) as journal:
        monkeypatch.setattr(journal_module.os, "fsync", synced.append)
        journal.sync()
        assert synced == [journal._file]

        def fail(file: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(journal_module.os, "fsync", fail)
        with pytest.raises(StoreError, match="cannot sync"):
            journal.sync()


def test_close_is_idempotent(tmp_path):
    """Closing twice is fine, and changes nothing."""
    path = tmp_path / "j.jsonl"
    journal = Journal(path, first=Line)
    journal.append({"a": 1})
    journal.close()
    journal.close()
    assert path.read_bytes() == b'{"a":1}\n'
