"""A user's script on the openai SDK over a real vLLM that is killed under it."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from tests.support import SUPPORT
from tests.support.command_line import House, until

pytestmark = pytest.mark.engine


def test_the_engine_is_killed(house: House):
    """Forty questions, forty answers, exit code 0; the script and the SDK notice nothing."""
    script = str(SUPPORT / "openai_questions.py")
    words = ("--dtype", "float32", "--max-model-len", "512")
    running = house.start("run-with", "smollm2", *words, "--", sys.executable, script, "40")
    until(lambda: len(running.out.read_text().splitlines()) >= 4, "no answers")
    (server,) = house.run("ps", "--json").report
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    done = running.end()
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(40))
    assert sum("Paris" in line for line in lines) > 20, done.out
    assert done.err.count("restarting it") == 1
    house.nothing_left()
