from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import psutil
import pytest

from enginehouse.provisioning.programs import new_log, python_environ, run_program
from enginehouse.store.layout import Layout


async def test_output_goes_to_the_caller_and_the_log(tmp_path: Path):
    """Both streams are kept apart for the caller and together, with the command, in the log."""
    lines: list[str] = []
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    finished = await run_program(
        [sys.executable, "-c", script],
        env=os.environ,
        cwd=tmp_path,
        log=tmp_path / "log",
        on_line=lines.append,
    )
    assert (finished.returncode, finished.output, finished.errors) == (3, "out\n", "err\n")
    assert lines == ["err"]
    assert finished.why() == "err"
    log = (tmp_path / "log").read_text()
    assert log.startswith("$ ")
    assert "out\n" in log
    assert "err\n" in log


async def test_long_lines_are_no_problem(tmp_path: Path):
    """A list of flags is one line of more than 64 KiB."""
    finished = await run_program(
        [sys.executable, "-c", "print('x' * 300_000)"],
        env=os.environ,
        cwd=tmp_path,
        log=tmp_path / "log",
    )
    assert len(finished.output) == 300_001


@pytest.mark.slow
async def test_a_cancelled_program_is_killed_with_its_children(tmp_path: Path):
    """Cancelling kills the whole process group, and waits for it."""
    script = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'input()'], "
        "stdin=subprocess.PIPE); print(child.pid, file=sys.stderr, flush=True); child.wait()"
    )
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_program(
            [sys.executable, "-c", script],
            env=os.environ,
            cwd=tmp_path,
            log=tmp_path / "log",
            on_line=lambda line: started.set_result(int(line)),
        )
    )
    child = psutil.Process(await asyncio.wait_for(started, timeout=30))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_another_python_does_not_inherit_our_imports(monkeypatch: pytest.MonkeyPatch):
    """PYTHONPATH and its like would change what the other Python imports."""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONPATH" not in python_environ(write_bytecode=False)
    assert python_environ(write_bytecode=False)["PYTHONDONTWRITEBYTECODE"] == "1"
    assert "PYTHONDONTWRITEBYTECODE" not in python_environ(write_bytecode=True)


def test_logs_lie_in_the_layouts_folder(layout: Layout):
    """The folder of the logs is made on the way."""
    log = new_log(layout, "install-x")
    assert log.parent == layout.logs
    assert layout.logs.is_dir()
