from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest
from tests.support.processes import start_process

from enginehouse.core.errors import StartError
from enginehouse.processes.process import Command, hold_process
from enginehouse.processes.tree import identify

DEADLINE = 20


async def until(condition) -> None:
    """Wait for a condition, at most DEADLINE seconds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - only the kernel knows
            await asyncio.sleep(0.02)


def python(code: str, **env: str) -> Command:
    """A Python program with exactly this environment."""
    return Command(argv=(sys.executable, "-c", code), env=env)


async def test_output_and_errors_are_appended_to_the_log(tmp_path):
    """Both streams go to the log, after what was there; missing folders are made."""
    log = tmp_path / "deep" / "server.log"
    for word in ("one", "two"):
        code = f"import sys; print('out {word}', flush=True); print('err {word}', file=sys.stderr)"
        process = start_process(python(code), log=log)
        await until(lambda process=process: process.exit_code() is not None)
        assert process.exit_code() == 0
        await process.stop(grace=1)
    assert log.read_text().split("\n")[:4] == ["out one", "err one", "out two", "err two"]


async def test_environment_is_exactly_what_was_given(tmp_path, monkeypatch):
    """Nothing of our own environment reaches the child."""
    monkeypatch.setenv("ENGINEHOUSE_SECRET", "x")
    log = tmp_path / "log"
    code = "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))"
    process = start_process(python(code, ONLY="this"), log=log)
    await until(lambda: process.exit_code() is not None)
    await process.stop(grace=1)
    assert log.read_text().strip() == "['ONLY']"


async def test_session_of_its_own(tmp_path):
    """The child leads a session, so a signal to ours does not reach it."""
    process = start_process(python("import time; time.sleep(60)"), log=tmp_path / "l")
    try:
        assert os.getsid(process.pid) == process.pid
        assert os.getpgid(process.pid) == process.pid
    finally:
        await process.stop(grace=5)


async def test_stop_is_idempotent_and_leaves_no_zombie(tmp_path):
    """After a stop the pid is gone for good; a second stop does nothing."""
    process = start_process(python("import time; time.sleep(60)"), log=tmp_path / "l")
    assert process.exit_code() is None
    await process.stop(grace=5)
    await process.stop(grace=5)
    assert process.exit_code() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.slow
async def test_child_that_left_session_and_parent_is_still_ended(tmp_path):
    """Noted while its parent lived, a daemon of the engine does not survive the stop."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = start_process(python(code), log=log)
    await until(lambda: log.read_text().strip().isdigit())
    child = int(log.read_text())
    await until(lambda: child in {p.pid for p in process._tree._seen})
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: process.exit_code() is not None)
    assert identify(child) is not None
    await process.stop(grace=5)
    assert identify(child) is None


async def test_a_program_that_is_not_there_is_a_start_error(tmp_path):
    """A missing interpreter gives a StartError that says what to do, not a traceback."""
    command = Command(argv=(str(tmp_path / "no" / "python"),), env={})
    with pytest.raises(StartError, match="cannot run") as caught:
        start_process(command, log=tmp_path / "log")
    assert caught.value.fix


async def test_released_process_lives_on(tmp_path):
    """Released, a child is neither watched nor ended by us."""
    process = start_process(python("import time; time.sleep(60)"), log=tmp_path / "l")
    process.release()
    assert identify(process.pid) == process.identity
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: os.waitpid(process.pid, os.WNOHANG)[0] == process.pid)


async def test_what_is_not_noted_does_not_begin(tmp_path):
    """If the note fails, the program was never there; what is noted is the process that runs."""
    made = tmp_path / "made"
    program = python(f"open({str(made)!r}, 'w').close()")
    with (
        pytest.raises(OSError, match="disk full"),
        hold_process(program, log=tmp_path / "log") as held,
    ):
        raise OSError("disk full")
    await until(lambda: identify(held.identity.pid) is None)
    assert not made.exists()
    with hold_process(program, log=tmp_path / "log") as held:
        noted = held.identity
        process = held.begin()
    await until(made.exists)
    assert noted == process.identity
    await process.stop(grace=1)


async def test_killed_before_it_noted_we_leave_no_process(tmp_path):
    """Kill -9 between the process's making and its record: the program never begins."""
    code = f"""
import os, signal, sys
from pathlib import Path
from enginehouse.processes.process import Command, hold_process
program = Command(argv=(sys.executable, "-c", "import time; time.sleep(60)"), env={{}})
with hold_process(program, log=Path({str(tmp_path / "log")!r})) as held:
    print(held.identity.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=env, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    assert child.returncode == -signal.SIGKILL
    await until(lambda: identify(int(output)) is None)
