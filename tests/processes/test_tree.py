from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import msgspec
import psutil
import pytest

from enginehouse.core.errors import StopError
from enginehouse.processes.tree import ProcessIdentity, ProcessTree, identify, is_alive

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN_PROGRAM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(60)
"""
STUBBORN = [sys.executable, "-c", STUBBORN_PROGRAM]
PARENT = """
import subprocess, sys, time
child = subprocess.Popen({child!r}, stdout=subprocess.PIPE, start_new_session={apart})
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def spawn():
    """Start a session leader, wait for its first line, and leave nothing of it behind."""
    children: list[subprocess.Popen[str]] = []
    strays: list[int] = []

    def start(argv: list[str]) -> tuple[subprocess.Popen[str], str]:
        child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        children.append(child)
        assert child.stdout is not None
        line = child.stdout.readline().strip()
        if line.isdigit():
            strays.append(int(line))
        return child, line

    yield start
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    for pid in strays:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def gone(pid: int) -> bool:
    """Whether no live process has the pid."""
    return identify(pid) is None


def test_identity_outlives_writing_and_reading(spawn):
    """An identity written to disk and read again is still that of the live process."""
    child, _ = spawn(SLEEPER)
    identity = identify(child.pid)
    copy = msgspec.json.decode(msgspec.json.encode(identity), type=ProcessIdentity)
    assert copy == identity
    assert is_alive(copy)


def test_recycled_pid_is_another_process(spawn):
    """A live process of the same pid but another start is not the one that was meant."""
    child, _ = spawn(SLEEPER)
    identity = identify(child.pid)
    assert identity is not None
    assert not is_alive(msgspec.structs.replace(identity, started=identity.started - 5))
    assert not is_alive(msgspec.structs.replace(identity, boot="another"))


def test_zombie_is_dead(spawn):
    """A process that has ended but was not waited for counts as ended."""
    child, _ = spawn(SLEEPER)
    identity = identify(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_alive(identity)


async def test_stop_of_a_recycled_pid_touches_nothing(spawn):
    """A record whose pid now belongs to somebody else never leads to a signal."""
    child, _ = spawn(SLEEPER)
    identity = identify(child.pid)
    stale = msgspec.structs.replace(identity, started=identity.started - 5)
    await ProcessTree(stale).stop(grace=0.1)
    assert child.poll() is None
    assert ProcessTree(stale).look() == ()


@pytest.mark.parametrize("apart", [False, True], ids=["same session", "own session"])
async def test_stop_ends_a_child_that_ignores_sigterm(spawn, apart):
    """The leader obeys SIGTERM, its child does not: both are gone, in whatever session."""
    leader, child = spawn([sys.executable, "-c", PARENT.format(child=STUBBORN, apart=apart)])
    family = ProcessTree(identify(leader.pid), orphan_grace=0.2)
    assert {p.pid for p in family.look()} == {leader.pid, int(child)}
    await family.stop(grace=5, reap=leader.poll)
    assert gone(int(child))
    assert leader.returncode == -signal.SIGTERM


async def test_stop_finds_the_orphans_of_a_killed_leader(spawn):
    """After kill -9 of the leader its children, now of init, are found by session and ended."""
    leader, child = spawn([sys.executable, "-c", PARENT.format(child=STUBBORN, apart=False)])
    identity = identify(leader.pid)
    leader.kill()
    leader.wait()
    family = ProcessTree(identity, orphan_grace=0.2)
    assert {p.pid for p in family.look()} == {int(child)}
    await family.stop(grace=60)
    assert gone(int(child))


async def test_stop_remembers_an_orphan_that_left_the_session(spawn):
    """A child in a session of its own is ended although its parent died, for it was seen before."""
    leader, child = spawn([sys.executable, "-c", PARENT.format(child=STUBBORN, apart=True)])
    family = ProcessTree(identify(leader.pid), orphan_grace=0.2)
    family.look()
    leader.kill()
    leader.wait()
    await family.stop(grace=60)
    assert gone(int(child))


async def test_stop_kills_after_the_grace(spawn):
    """A leader that ignores SIGTERM is killed once the grace is over, and no sooner."""
    leader, _ = spawn(STUBBORN)
    began = time.monotonic()
    await ProcessTree(identify(leader.pid)).stop(grace=0.3, reap=leader.poll)
    assert time.monotonic() - began >= 0.3
    assert leader.returncode == -signal.SIGKILL


async def test_stop_cancelled_leaves_nothing(spawn):
    """Cancelled while it waits, a stop kills at once instead of leaving the processes."""
    leader, child = spawn([sys.executable, "-c", PARENT.format(child=STUBBORN, apart=True)])
    leader.send_signal(signal.SIGSTOP)  # so SIGTERM has no effect, and the stop has to wait
    family = ProcessTree(identify(leader.pid))
    stopping = asyncio.create_task(family.stop(grace=60, reap=leader.poll))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert gone(leader.pid)
    assert gone(int(child))


async def test_what_cannot_be_killed_is_named(spawn, monkeypatch):
    """A process that survives SIGKILL leads to StopError with its pid and name."""
    leader, _ = spawn(SLEEPER)
    monkeypatch.setattr(psutil.Process, "send_signal", lambda *_: None)
    with pytest.raises(StopError, match=rf"{leader.pid} \(.*python"):
        await ProcessTree(identify(leader.pid), kill_wait=0.1).stop(grace=0.1)
