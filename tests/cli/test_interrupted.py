"""Ctrl-C and SIGTERM: what was started is stopped, and the run can be resumed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.support.command_line import House, journaled, scored, sums, until

from enginehouse.testing.fake_environment import make_fake_environment

RESUME = "enginehouse resume {}"
STOPPED = "interrupted"


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`eval` of ten samples that take half a second each, two at a time."""
    house.model()
    items, canned = sums(right=10)
    task = str(house.task(items))
    return ("eval", "tiny", "--task", task, "--concurrency", "2", "--env", house.answers(canned))


def slow(seconds: float) -> tuple[str, str]:
    """Arguments for a server that takes `seconds` per token."""
    return ("--env", f"VLLM_FAKE_TOKEN_LATENCY={seconds}")


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def test_while_python_imports(house: House):
    """Ctrl-C in the first moments shows no traceback."""
    code = "import signal, sys; from enginehouse.__main__ import main\n"
    code += "import enginehouse.cli\n"
    code += "class Late:\n    def find_spec(self, name, *_):\n"
    code += "        if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
    code += "sys.meta_path.insert(0, Late())\nmain()\n"
    done = house.start_program([sys.executable, "-c", code, "ps"]).end()
    assert (done.code, done.out, done.err) == (-signal.SIGINT, "", "")


@pytest.mark.slow
def test_while_the_environment_is_checked(house: House, words: tuple[str, ...], tmp_path: Path):
    """The Python that imports the engine is ended, too."""
    python = make_fake_environment(tmp_path / "slow")
    (package,) = (tmp_path / "slow").glob("lib/*/site-packages/vllm/__init__.py")
    package.write_text("import time\ntime.sleep(60)\n")
    running = house.start(*words, "--python", str(python))
    until(
        lambda: any(str(python) in process.cmdline() for process in house.processes()[1:]),
        "the check does not begin",
    )
    running.interrupt()
    check_end(house, running.end(), 130)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_while_the_server_starts(
    house: House, words: tuple[str, ...], number: signal.Signals, code: int
):
    """A server that never becomes ready is stopped at once."""
    running = house.start(*words, "--env", "VLLM_FAKE_START_DELAY=inf")
    running.until("starting vllm")
    running.interrupt(number)
    check_end(house, running.end(), code)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_while_sampling(
    house: House, call, words: tuple[str, ...], number: signal.Signals, code: int
):
    """What was answered is kept; a resume asks the rest, once."""
    running = house.start(*words, *slow(0.05))
    running.until("ready after")
    (run,) = house.runs
    until(lambda: scored(run) >= 2, "no sample is scored")
    running.interrupt(number)
    check_end(house, running.end(), code)
    assert 2 <= len(journaled(run).outcomes) < 10
    done = call("resume", run.name, "--json")
    assert done.report["tasks"][0]["outcomes"]["correct"] == 10
    assert set(journaled(run).samples.values()) == {1}


def check_end(house: House, done, code: int) -> None:
    """The exit code, the way on, no traceback, and nothing left."""
    (run,) = house.runs
    assert done.code == code, done.err
    assert RESUME.format(run.name) in done.err
    assert done.err.splitlines()[-1].startswith(STOPPED)
    assert "Traceback" not in done.err
    assert done.out == ""
    house.nothing_left()


@pytest.mark.slow
def test_interrupted_again_while_stopping(house: House, words: tuple[str, ...]):
    """A second Ctrl-C does not wait for a server that is deaf to SIGTERM, and still ends it."""
    deaf = ("--env", "VLLM_FAKE_IGNORE_SIGTERM=1", "--env", "VLLM_FAKE_CHILD=session")
    running = house.start(*words, *slow(0.3), *deaf)
    running.until("ready after")
    running.interrupt()
    running.until("stopping the server")
    running.interrupt()
    check_end(house, running.end(), 130)


@pytest.mark.slow
def test_the_server_dies_while_sampling(house: House, call, words: tuple[str, ...]):
    """It is started again, no sample is lost, doubled or failed for it, and the report names it."""
    running = house.start(*words, *slow(0.05), "--json")
    running.until("ready after")
    (run,) = house.runs
    (server,) = call("ps", "--json").report
    until(lambda: scored(run) >= 2, "no sample is scored")
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    done = running.end()
    assert done.code == 0, done.err
    assert done.report["tasks"][0]["outcomes"]["correct"] == 10
    assert {*journaled(run).samples.values()} == {1}
    (incident,) = done.report["incidents"]
    assert incident["kind"] == "killed"
    assert incident["consequence"] == "started again"
    house.nothing_left()


@pytest.mark.slow
def test_the_server_dies_and_is_not_to_be_restarted(house: House, call, words: tuple[str, ...]):
    """Exit code 5, no sample counted as failed for it, and a resume finishes the run."""
    running = house.start(*words, *slow(0.05), "--max-restarts", "0")
    running.until("ready after")
    (run,) = house.runs
    (server,) = call("ps", "--json").report
    until(lambda: scored(run) >= 2, "no sample is scored")
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    done = running.end()
    assert done.code == 5, done.err
    assert f"log:  {server['record']['log']}" in done.err
    assert RESUME.format(run.name) in done.err
    assert "failed" not in journaled(run).counts()
    house.nothing_left()
    resumed = call("resume", run.name, "--json")
    assert resumed.report["tasks"][0]["outcomes"]["correct"] == 10
