from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.errors import StoreError
from enginehouse.tinker import future_journal
from enginehouse.tinker.future_journal import FutureJournal

LARGE = b"x" * 40_000


def accept(journal: FutureJournal, request_id: str, body: bytes = b"body", **more: Any) -> None:
    """A request; its body is kept after the answer only with replayed=True."""
    fields = {"key": request_id, "kind": "sample", "user": "ann", "content_type": "x"}
    journal.accept(
        request_id=request_id, body=body, details={}, **({"replayed": False} | fields | more)
    )


def answer(journal: FutureJournal, request_id: str, payload: bytes = b"y", **more: Any) -> int:
    """An answer; returns its order."""
    return journal.answer(
        request_id=request_id,
        outcome="finished",
        payload=payload,
        content_type="x",
        **({"replayed": False} | more),
    ).order


def lines(journal: FutureJournal) -> int:
    """How many records the journal has."""
    return (journal.folder / "journal.jsonl").read_bytes().count(b"\n")


def stored(journal: FutureJournal) -> list[tuple[str, bool, bool]]:
    """Per future: its id, whether it is answered, and whether its body is kept."""
    return [(e.accepted.request_id, e.answered is not None, e.body_kept) for e in journal.entries()]


def test_compacting_keeps_what_is_known(tmp_path):
    """And nothing else: not what was removed, and no body that nobody needs."""
    journal = FutureJournal.open(tmp_path)
    for name in ("waiting", "answered", "replayed", "forgotten", "removed"):
        accept(journal, name, replayed=name in ("replayed", "forgotten"))
    for name in ("answered", "replayed", "forgotten", "removed"):
        answer(journal, name, replayed=name in ("replayed", "forgotten"))
    journal.forget_bodies(["forgotten"])
    journal.remove(["removed"])
    expected = [
        ("waiting", False, True),
        ("answered", True, False),
        ("replayed", True, True),
        ("forgotten", True, False),
    ]
    assert stored(journal) == expected
    for _ in range(2):
        journal.compact()
        assert stored(journal) == expected
    assert [e.accepted.body for e in journal.entries()] == [b"body", None, b"body", None]
    assert lines(journal) == 9
    assert answer(journal, "waiting") == 5
    journal.close()


def test_the_journal_is_compacted_when_it_has_grown(tmp_path, monkeypatch):
    """So that it does not outgrow what it describes."""
    monkeypatch.setattr(future_journal, "_GROWN", 10_000)
    journal = FutureJournal.open(tmp_path)
    most = 0
    for number in range(200):
        accept(journal, str(number))
        answer(journal, str(number))
        journal.remove([str(number)])
        most = max(most, lines(journal))
    assert most < 100
    assert stored(journal) == []
    journal.close()


def test_a_compacted_journal_that_cannot_be_opened_is_not_used(tmp_path, monkeypatch):
    """The old one stays open, so nothing is refused until a restart."""
    journal = FutureJournal.open(tmp_path)

    def unopened(path: Path, **how: object) -> None:
        raise StoreError(f"cannot open {path}")

    with monkeypatch.context() as patch:
        patch.setattr(future_journal, "Journal", unopened)
        with pytest.raises(StoreError, match="cannot open"):
            journal.compact()
    accept(journal, "one")
    journal.compact()
    accept(journal, "two")
    journal.close()
    journal = FutureJournal.open(tmp_path)
    assert [name for name, _, _ in stored(journal)] == ["one", "two"]
    journal.close()


def test_a_disk_too_full_to_compact_loses_nothing(tmp_path, monkeypatch):
    """The old journal goes on, and compacting is tried again later."""
    monkeypatch.setattr(future_journal, "_GROWN", 0)
    journal = FutureJournal.open(tmp_path)
    real = Path.replace
    replaced: list[Path] = []

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    def replace(self: Path, target: Path) -> Path:
        replaced.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    accept(journal, "a")
    accept(journal, "b")
    assert lines(journal) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"journal.jsonl", "lock", "bodies", "answers"}
    monkeypatch.setattr(Path, "replace", replace)
    for number in range(10):
        accept(journal, str(number))
    assert replaced
    assert len(stored(journal)) == 12
    journal.close()


def test_large_contents_are_files(tmp_path):
    """Readable by their owner only, and deleted with what they belong to."""
    journal = FutureJournal.open(tmp_path)
    accept(journal, "a", LARGE)
    accept(journal, "b", LARGE)
    assert journal.body_path("a").read_bytes() == LARGE
    assert journal.body_path("a").stat().st_mode & 0o077 == 0
    assert tmp_path.stat().st_mode & 0o077 == 0
    answer(journal, "a", LARGE)
    assert not journal.body_path("a").exists()
    assert journal.answer_path("a").read_bytes() == LARGE
    journal.remove(["a", "b"])
    assert not journal.answer_path("a").exists()
    assert not journal.body_path("b").exists()
    journal.close()


def test_files_of_nobody_are_deleted(tmp_path):
    """A kill between the file and its record leaves one."""
    journal = FutureJournal.open(tmp_path)
    accept(journal, "a", LARGE)
    for stray in (journal.body_path("x"), journal.answer_path("a")):
        stray.write_bytes(b"stray")
    assert stored(journal) == [("a", False, True)]
    assert not journal.body_path("x").exists()
    assert not journal.answer_path("a").exists()
    assert journal.body_path("a").exists()
    journal.close()


def test_half_a_line_is_as_if_it_had_not_been_written(tmp_path):
    """A power cut in the middle of an append."""
    journal = FutureJournal.open(tmp_path)
    accept(journal, "a")
    accept(journal, "b")
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    journal = FutureJournal.open(tmp_path)
    assert stored(journal) == [("a", False, True)]
    accept(journal, "c")
    assert [name for name, *_ in stored(journal)] == ["a", "c"]
    journal.close()


def test_another_file_in_its_place_is_refused(tmp_path):
    """And left as it is."""
    (tmp_path / "journal.jsonl").write_bytes(b'{"type": "run"}\n')
    with pytest.raises(StoreError):
        FutureJournal.open(tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == b'{"type": "run"}\n'


def test_syncing_reaches_the_journal_and_new_files(tmp_path, monkeypatch):
    """Each file once; one that is gone is skipped."""
    journal = FutureJournal.open(tmp_path)
    accept(journal, "a", LARGE)
    accept(journal, "b", LARGE)
    journal.remove(["a"])
    synced: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink())
    )
    journal.sync()
    journal.sync()
    path = tmp_path / "journal.jsonl"
    assert synced == [journal.body_path("b"), path, path]
    journal.close()
