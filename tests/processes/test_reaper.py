"""The reaper: whatever ends the parent, the tree does not outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from enginehouse.processes.tree import identify

# Starts, through the executor, a leader with a child in a session of its own; both are deaf to
# SIGTERM. Then it waits, or goes as it is told.
PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from enginehouse.processes.process import Command
from tests.support.processes import start_process
from enginehouse.processes import reaper

TREE = '''
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
code += "; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=-1)
child.stdout.readline()
print("child", child.pid, flush=True)
time.sleep(60)
'''

async def main(log, end):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, if it runs the tests, had it ignored
    command = Command(argv=(sys.executable, "-c", TREE), env={})
    process = start_process(command, log=log)
    while "child" not in log.read_text():
        await asyncio.sleep(0.01)
    print(process.pid, log.read_text().split()[-1], process._reaper._child.pid, flush=True)
    if end == "release":
        process.release()
    elif end == "exception":
        raise RuntimeError
    else:
        await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


def gone(pids, *, within: float = 30.0) -> bool:
    """Whether they all end in time."""
    deadline = time.monotonic() + within
    while any(identify(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def begin(tmp_path):
    """Start a parent; gives its process and the pids of leader, child and reaper."""
    pids: list[int] = []
    parents = []

    def start(end: str = "wait"):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path / "log"), end],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        parents.append(parent)
        pids.extend(map(int, parent.stdout.readline().split()))
        return parent, list(pids)

    yield start
    for parent in parents:
        parent.kill()
        parent.communicate()
    for pid in pids:
        if identify(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def short_grace(tmp_path, monkeypatch):
    """Ten seconds for a tree that ignores SIGTERM are too long for a test."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'enginehouse.processes.reaper' in sys.orig_argv:\n"
        "    import enginehouse.processes.tree as tree\n"
        "    stop = tree.ProcessTree.stop\n"
        "    tree.ProcessTree.stop = lambda self, *, grace, **more: stop(self, grace=0.3, **more)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_killed_parent_leaves_nothing(begin, tmp_path, number):
    """Leader, a child that hid in its own session, and the reaper itself are gone; the log says."""
    parent, pids = begin()
    parent.send_signal(number)
    assert gone(pids)
    assert (
        "the process that started this server is gone; ending 2 processes"
        in (tmp_path / "log").read_text()
    )


@pytest.mark.slow
def test_a_signal_to_the_whole_job_leaves_nothing(begin):
    """A batch system's SIGTERM reaches the reaper, too, in its first moment: it does its work."""
    parent, pids = begin()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pids[2], number)
    parent.kill()
    assert gone(pids)


def test_a_released_tree_outlives_its_parent(begin):
    """What is detached is left alone, and its reaper is gone."""
    parent, (leader, child, reaper) = begin("release")
    parent.wait(30)
    assert gone([reaper])
    assert identify(leader)
    assert identify(child)


@pytest.mark.slow
def test_an_exception_in_the_parent_leaves_nothing(begin):
    """Nobody called stop: the parent's end is enough."""
    parent, pids = begin("exception")
    assert parent.wait(30) != 0
    assert gone(pids)
