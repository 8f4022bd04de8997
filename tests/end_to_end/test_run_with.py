"""A user's script on the openai SDK over a real vLLM that is killed under it."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.support import SUPPORT
from tests.support.command_line import House, until

pytestmark = pytest.mark.engine


def test_the_engine_is_killed_twice(house: House):
    """Forty questions, forty answers, exit code 0; the script and the SDK notice nothing."""
    script = str(SUPPORT / "openai_questions.py")
    words = ("--dtype", "float32", "--max-model-len", "512")
    running = house.start("run-with", "smollm2", *words, "--", sys.executable, script, "40")
    killed: set[int] = set()

    def alive() -> int | None:
        (server,) = house.run("ps", "--json").report
        pid = server["record"]["process"]["pid"]
        return pid if server["state"] == "ready" and pid not in killed else None

    for answers in (4, 16):
        until(lambda n=answers: len(running.out.read_text().splitlines()) >= n, "no answers")
        pid = until(alive, "it is not started again")
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    done = running.end()
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(40))
    assert sum("Paris" in line for line in lines) > 20, done.out
    assert done.err.count("starting it again") == 2
    house.nothing_left()
