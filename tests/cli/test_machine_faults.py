"""A machine that fails its user: full disks, unreadable files, broken Pythons.

Every time: what happened, why, what to do next, the documented exit code, and nothing left behind.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.command_line import Finished, House, journaled, sums, until
from tests.support.small_disks import small_disk

from enginehouse.commands import evaluate as evaluating

Call = Callable[..., Finished]
# Root may read everything; without these capabilities it is a user like any other.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-m", "enginehouse", *sys.argv[1:]])
"""
READ_ALOUD = re.compile(r"error: (?P<what>.+)\n  why:  (?P<why>.+)\n(?:  seen: .+\n)?  next: .+")


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """An `eval` of sixty samples that would work."""
    house.model()
    items, canned = sums(right=60)
    house.task(items)
    answers = house.answers(canned)
    return ("eval", "tiny", "--task", "sums.yaml", "--concurrency", "4", "--env", answers)


def check(done: Finished, code: int, *parts: str) -> None:
    """The exit code, the whole message, no traceback, nothing on standard output."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert READ_ALOUD.search(done.err), done.err
    assert [part for part in parts if part not in done.err] == [], done.err
    assert done.out == ""


def unprivileged(house: House, *words: str) -> Finished:
    """Run `enginehouse WORDS` as somebody whom permissions bind."""
    return house.start_program([sys.executable, "-c", UNPRIVILEGED, *words]).end()


def a_program(house: House, text: str) -> str:
    """An executable of the user's own."""
    path = house.write("python", text)
    path.chmod(0o755)
    return str(path)


PYTHONS = [
    ("#!/bin/sh\necho hello\n", "'hello'"),
    ("#!/bin/sh\n", "nothing"),
    ("#!/bin/sh\nexit 3\n", "exit code 3"),
    ("#!/bin/sh\nkill -9 $$\n", "signal 9"),
    ("#!/nowhere/python\n", "No such file or directory"),
    ("#!/bin/sh\necho no such library >&2; exit 1\n", "no such library"),
]


@pytest.mark.parametrize("case", PYTHONS, ids=lambda case: case[0])
def test_a_python_without_an_engine(house: House, call: Call, words, case: tuple[str, str]):
    """What it did instead; a run that was asked for is kept, since a Python can be fixed."""
    program, why = case
    done = call(*words, "--python", a_program(house, program))
    check(done, 3, "(from --python)", why, "log:  ")
    assert "starting vllm" not in done.err
    (run,) = house.runs
    assert f"enginehouse resume {run.name}" in done.err
    assert not (run / "journal.jsonl").exists()


def test_a_python_without_vllm(house: House, call: Call, words):
    """The import's own error."""
    check(call(*words, "--python", sys.executable), 3, "No module named 'vllm'", "(from --python)")


UNREADABLE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.mkdir(), "Is a directory"),
    (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    (lambda path: path.symlink_to("/proc/self/mem"), "Input/output error"),
    (lambda path: path.write_bytes(b"\xff\xfe"), "can't decode byte 0xff"),
    (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
]


@pytest.mark.parametrize("case", UNREADABLE, ids=lambda case: case[1])
def test_an_unreadable_task_file(
    house: House, call: Call, words, case: tuple[Callable[[Path], object], str]
):
    """The file and what the system says of it; the same for the task's data."""
    make, why = case
    make(house.work / "broken.yaml")
    check(call("eval", "tiny", "--task", "broken.yaml"), 2, "broken.yaml", why)
    make(house.work / "broken.jsonl")
    house.write("other.yaml", (house.work / "sums.yaml").read_text().replace("sums.", "broken."))
    check(call("eval", "tiny", "--task", "other.yaml"), 7, "broken.jsonl", why)
    assert house.runs == []


def test_an_empty_task_file(house: House, call: Call, words):
    """The error names the file, and says that it is empty and where its keys are listed."""
    house.write("empty.yaml", "")
    check(call("eval", "tiny", "--task", "empty.yaml"), 2, "empty.yaml", "is empty", "reference.md")


FORBIDDEN = [
    ("sums.yaml", 2),
    ("sums.jsonl", 7),
    ("tiny", 4),
    ("tiny/config.json", 4),
    ("tiny/model.safetensors", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", FORBIDDEN, ids=lambda case: case[0])
def test_what_the_user_may_not_read(house: House, words, case: tuple[str, int]):
    """Permission denied, and for which file; no run is left behind."""
    name, code = case
    path = house.work / name
    mode = path.stat().st_mode
    path.chmod(0)
    done = unprivileged(house, *words)
    path.chmod(mode)
    check(done, code, name, "Permission denied")
    assert house.runs == []


@pytest.mark.slow
def test_a_home_that_may_not_be_written(house: House, words):
    """Before anything is started, with the way to have another home."""
    house.home.mkdir()
    house.home.chmod(0o555)
    done = unprivileged(house, *words)
    house.home.chmod(0o755)
    check(done, 8, "Permission denied", "ENGINEHOUSE_HOME")
    assert list(house.home.iterdir()) == []


@pytest.mark.slow
def test_a_port_that_is_taken_in_the_last_moment(house: House, words):
    """By a program that came between our check and the engine's bind: its log says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = house.start(*words, "--port", str(port), "--env", "VLLM_FAKE_START_DELAY=1")
    running.until("starting vllm")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        done = running.end()
    check(done, 5, "exit code 1", "port")
    assert not (house.runs[0] / "journal.jsonl").exists()


@pytest.fixture
def disk(house: House, tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Give the user's home a disk of so many KB, or make it larger."""
    with small_disk(tmp_path / "disk") as own:

        def resize(size: int) -> None:
            own.resize(size)
            house.home = own.place
            house.env["ENGINEHOUSE_HOME"] = str(own.place)

        yield resize


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 16, 28, 36, 80])
def test_a_disk_that_is_full_at_any_stage(house: House, words, call: Call, disk, size: int):
    """From the run's folder over the engine's log to the journal: said, and nothing is left.

    With room again the run continues: every sample is there once.
    """
    disk(size)
    done = call(*words)
    assert done.code in (5, 8)
    check(done, done.code)
    assert any(said in done.err for said in ("No space left", "B free"))
    house.nothing_left()
    assert list((house.home / "state/runs").glob(".*")) == []
    disk(8192)
    resumed = call("resume", house.runs[0].name, "--json") if house.runs else call(*words, "--json")
    assert resumed.code == 0, resumed.err
    state = journaled(house.runs[0])
    assert state.counts() == {"correct": 60}
    assert {*state.samples.values(), *state.scores.values()} == {1}


@pytest.mark.slow
def test_a_disk_that_fills_while_it_works(house: House, words, call: Call, disk):
    """Somebody else takes the rest of it in the middle of a run."""
    disk(2048)
    running = house.start(*words, "--env", "VLLM_FAKE_TOKEN_LATENCY=0.01")
    running.until("ready after")
    (run,) = house.runs
    until(lambda: journaled(run).scores, "nothing is scored")
    filler = house.home / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    done = running.end()
    check(done, 8, "0.0 MB", "resume")
    house.nothing_left()
    filler.unlink()
    resumed = call("resume", run.name, "--json")
    assert resumed.code == 0, resumed.err
    state = journaled(run)
    assert state.counts() == {"correct": 60}
    assert {*state.samples.values(), *state.scores.values()} == {1}


def test_a_full_disk_under_a_library(
    house: House, words, call: Call, monkeypatch: pytest.MonkeyPatch
):
    """Wherever nobody foresaw it: the same exit code, and with -v the place."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(evaluating, "create_run", full)
    check(call(*words), 8, "'/somewhere'", "df -h")
    assert "Traceback" in call(*words, "-v").err
