"""Standard streams that are closed, full, or that nobody reads."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
from tests.support.command_line import Finished, House, sums

ENTRY = shlex.join([sys.executable, "-m", "enginehouse"])
CLOSED = ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-")
NOISE = ("Traceback", "Exception ignored", "Broken pipe", "assert", "Aborted")


def shell(house: House, line: str) -> Finished:
    """A line of bash; `eh` is the command line."""
    script = f'set -o pipefail\neh() {{ {ENTRY} "$@"; }}\n{line}\n'
    done = house.start_program(["/bin/bash", "-c", script]).end()
    assert [word for word in NOISE if word in done.out + done.err] == []
    return done


@pytest.mark.slow
@pytest.mark.parametrize("closed", CLOSED)
def test_a_closed_stream_is_the_null_device(house: House, closed: str):
    """What is asked for is done, errors have their codes, and nothing aborts."""
    assert shell(house, f"eh ps {closed}").code == 0
    assert shell(house, f"eh tasks --json {closed}").code == 0
    assert shell(house, f"eh eval x --task sums --limit 0 {closed}").code == 2
    assert shell(house, f"eh --help {closed}").code == 0
    if ">&-" not in closed.replace("2>&-", ""):
        assert shell(house, f"eh tasks {closed}").out


@pytest.mark.slow
@pytest.mark.parametrize("closed", [CLOSED[0], CLOSED[-1]])
def test_servers_and_children_have_streams(house: House, closed: str):
    """An evaluation, and a detached server that outlives the command that started it."""
    house.model()
    items, canned = sums(right=3)
    words = shlex.join(["tiny", "--task", str(house.task(items)), "--env", house.answers(canned)])
    assert shell(house, f"eh eval {words} {closed}").code == 0
    (run,) = house.runs
    assert json.loads((run / "report.json").read_bytes())["complete"]
    assert shell(house, f"eh serve tiny --detach --name left {closed}").code == 0
    (server,) = house.run("ps", "--json").report
    descriptors = Path(f"/proc/{server['record']['process']['pid']}/fd")
    log = server["record"]["log"]
    assert [str((descriptors / n).readlink()) for n in "012"] == [os.devnull, log, log]
    assert shell(house, f"eh stop left {closed}").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", ["tasks", "tasks --json", "engines", "eval --help"])
def test_nobody_reads_the_rest(house: House, words: str):
    """`| head -1` gets its line, and the command ends without a word."""
    done = shell(house, f'eh {words} | (read -r line; echo "$line"); exit ${{PIPESTATUS[0]}}')
    assert done.out.strip()
    assert done.err == ""
    assert done.code in (0, 1, 128 + signal.SIGPIPE)  # 0: it was faster; 1 is typer's, for --help


def test_nobody_ever_reads(house: House):
    """The pipe is closed before anything is written: the code of a program that SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    os.set_inheritable(writing, True)
    argv = ["/bin/bash", "-c", f"exec {ENTRY} tasks >&{writing}"]
    pid = os.posix_spawn(argv[0], argv, house.env)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGPIPE


@pytest.mark.slow
def test_notes_that_nobody_reads_do_not_end_a_run(house: House):
    """Standard error broken or full: the evaluation continues, and its result is printed."""
    house.model()
    items, canned = sums(right=3)
    words = shlex.join(["tiny", "--task", str(house.task(items)), "--env", house.answers(canned)])
    for away in ("2> >(exec true)", "2>/dev/full"):
        done = shell(house, f"eh eval {words} --json {away}")
        assert done.code == 0
        assert done.report["complete"]


@pytest.mark.slow
def test_a_full_standard_output(house: House):
    """Is an error in words, with the code of a full disk; a full standard error changes nothing."""
    for words in ("tasks", "tasks --json", "ps --json"):
        done = shell(house, f"eh {words} >/dev/full")
        assert done.code == 8
        assert done.err.startswith("error: ")
    assert shell(house, "eh eval x --limit 0 2>/dev/full").code == 2


def test_a_terminal_that_lacks_letters(house: House):
    """What the encoding has not is an escape, not an exception."""
    house.write("größe→.yaml", "tasks: [x]\nwröng: 1\n")
    done = house.run("eval", "--config", "größe→.yaml", PYTHONIOENCODING="ascii:strict")
    assert done.code == 2
    assert "gr\\xf6\\xdfe\\u2192.yaml" in done.err
