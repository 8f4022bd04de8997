"""The program that runs a job's command on a node of a Ray cluster, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from tests.support.command_line import until

from enginehouse.provisioning.programs import PAYLOADS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it asks /proc for descendants")


@contextmanager
def node(folder: Path, script: str, **order: object) -> Iterator[subprocess.Popen[bytes]]:
    """The program with its order, as the actor starts it."""
    process = subprocess.Popen(
        (sys.executable, "-c", (PAYLOADS / "ray_node.py").read_text()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    given = {
        "folder": str(folder / "job"),
        "files": {"script.sh": script},
        "before": "",
        "command": ["/bin/sh", "script.sh"],
        "environment": {},
        "from_machine": {},
        "grace": 0.5,
        **order,
    }
    with process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()


def _pids(process: subprocess.Popen[bytes], *, count: int) -> list[int]:
    """The numbers in the first lines of its output."""
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


def _gone(pids: list[int]) -> None:
    until(lambda: not any(map(psutil.pid_exists, pids)), lambda: f"left: {pids}", patience=10)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_codes(tmp_path: Path, script: str, code: int):
    """That of the command, as a shell counts signals."""
    with node(tmp_path, script) as process:
        assert process.wait(30) == code


@pytest.mark.slow
def test_many_short_commands(tmp_path: Path):
    """A command may have ended before anybody waits for it."""
    for _ in range(10):
        with node(tmp_path, "exit 3", command=["/bin/false"]) as process:
            assert process.wait(30) == 1


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The machine's variables without Ray's own, then the job's; `before` sees them all."""
    monkeypatch.setenv("RAY_JOB_ID", "1")
    monkeypatch.setenv("SCRATCH", "/scratch")
    order = {
        "environment": {"A": "it's $HOME"},
        "from_machine": {"TMP_FOLDER": "SCRATCH", "NONE": "NOT_SET_ANYWHERE"},
        "before": 'B="$A, again"\nexport B',
    }
    script = 'echo "$A|$B|$TMP_FOLDER|${NONE-unset}|${RAY_JOB_ID-unset}"; pwd; ls'
    with node(tmp_path, script, **order) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert said.decode().splitlines() == [
        "it's $HOME|it's $HOME, again|/scratch|unset|unset",
        str(tmp_path / "job"),
        "script.sh",
    ]


@pytest.mark.slow
def test_the_end_of_its_input_ends_everything(tmp_path: Path):
    """Also what has a session of its own, and what ignores SIGTERM."""
    script = "trap '' TERM\nsetsid sleep 600 &\necho $!\nsleep 600 &\necho $!\necho $$\nwait\nwait"
    with node(tmp_path, script) as process:
        pids = _pids(process, count=3)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 137
        assert not any(map(psutil.pid_exists, pids))


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path):
    """Although the command itself was a success."""
    with node(tmp_path, "setsid sleep 600 > /dev/null 2>&1 &\necho $!") as process:
        pids = _pids(process, count=1)
        assert process.wait(30) == 0
        assert not any(map(psutil.pid_exists, pids))


def test_the_process_that_ray_knows_is_killed(tmp_path: Path):
    """As it is with its worker: then the pipe closes, and the other process ends the command."""
    with node(tmp_path, "sleep 600 &\necho $!\necho $$\nwait") as process:
        pids = _pids(process, count=2)
        os.kill(process.pid, 9)
        assert process.stdin is not None
        process.stdin.close()
        _gone(pids)


def test_an_order_that_never_comes(tmp_path: Path):
    """Whoever started it is gone already: it runs nothing."""
    program = (PAYLOADS / "ray_node.py").read_text()
    words = (sys.executable, "-c", program)
    done = subprocess.run(words, input=b'{"folder"', timeout=30, check=False)
    assert done.returncode == 1
