from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import IO

import psutil
import pytest
from tests.support.processes import command_of

from enginehouse.core.errors import HarnessError
from enginehouse.harnesses.base import HarnessProgress
from enginehouse.harnesses.program import run_program
from enginehouse.processes.tree import identify
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.programs import PAYLOADS

ENVIRONMENT = EngineEnvironment(
    engine="lm-eval",
    version="1",
    variant="any",
    executable=Path(sys.executable),
    key=None,
    flags={},
)
REPORTING = "import os, sys\nfrom harness_reports import Failure, run\n"


class Trial:
    """A program of the test's own, run as a harness's programs are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "harness.log"
        self.heard: list[HarnessProgress] = []
        self.stop_grace = 5.0

    async def run(self, code: str, **variables: str) -> None:
        """Run `code`, after what every such program imports."""
        payload = self.folder / "payload.py"
        payload.write_text(REPORTING + code)
        await run_program(
            payload,
            {"number": 7},
            environment=ENVIRONMENT,
            folder=self.folder,
            log=self.log,
            variables={"PYTHONPATH": str(PAYLOADS), **variables},
            progress=self.heard.append,
            stop_grace=self.stop_grace,
        )


@pytest.fixture
def trial(tmp_path):
    """A folder to run programs in."""
    return Trial(tmp_path)


async def test_a_program_is_given_its_request_and_reports_how_far_it_is(trial):
    """Each message reaches the caller, in order; a total may be unknown."""
    await trial.run(
        "def main(request, reports):\n"
        "    reports.progress('piqa', request['number'], 10)\n"
        "    reports.progress('piqa', 8, None)\n"
        "run(main)\n"
    )
    assert trial.heard == [
        HarnessProgress(task="piqa", done=7, total=10),
        HarnessProgress(task="piqa", done=8, total=None),
    ]


async def test_what_it_cannot_do_is_an_error_in_its_own_words(trial):
    """A Failure of the program becomes a HarnessError of the same kind, with the log."""
    with pytest.raises(HarnessError) as raised:
        await trial.run(
            "def main(request, reports):\n"
            "    raise Failure('no such task', kind='unknown_task', fix='did you mean piqa?')\n"
            "run(main)\n"
        )
    assert (raised.value.message, raised.value.kind) == ("no such task", "unknown_task")
    assert raised.value.fix == "did you mean piqa?"
    assert raised.value.log == trial.log


async def test_one_that_crashes_names_its_exit_and_its_last_line(trial):
    """The last line of a traceback says why."""
    with pytest.raises(HarnessError) as raised:
        await trial.run("run(lambda request, reports: 1 / 0)\n")
    assert raised.value.kind == "ended"
    assert raised.value.message == "lm-eval ended with exit code 1"
    assert raised.value.why == "ZeroDivisionError: division by zero"
    assert raised.value.log == trial.log


async def test_one_that_is_killed_names_the_signal(trial):
    """As after an out-of-memory kill."""
    with pytest.raises(HarnessError, match="SIGKILL") as raised:
        await trial.run("os.kill(os.getpid(), 9)\n")
    assert raised.value.kind == "ended"


async def test_cancelling_ends_it_with_what_it_has_started(trial):
    """Even if it ignores SIGTERM."""
    trial.stop_grace = 0.1
    begun = asyncio.Event()
    pids: list[int] = []

    def hear(progress: HarnessProgress) -> None:
        pids.append(progress.done)
        begun.set()

    trial.heard = type("Heard", (), {"append": staticmethod(hear)})()
    running = asyncio.create_task(
        trial.run(
            "import signal, subprocess\n"
            "def main(request, reports):\n"
            "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "    child = subprocess.Popen(['sleep', '600'])\n"
            "    reports.progress('x', child.pid, None)\n"
            "    child.wait()\n"
            "    signal.pause()\n"
            "run(main)\n"
        )
    )
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert identify(pids[0]) is None


async def test_it_sees_no_secrets_but_those_of_the_hub(trial, monkeypatch):
    """It needs the hub's token and a proxy's exceptions; the gateway is never behind a proxy."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    monkeypatch.setenv("HF_TOKEN", "hub")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    file = trial.folder / "seen.json"
    await trial.run(
        "import json\n"
        "def main(request, reports):\n"
        f"    open({str(file)!r}, 'w').write(json.dumps(dict(os.environ)))\n"
        "run(main)\n",
        OPENAI_API_KEY="given",
    )
    seen = json.loads(file.read_text())
    assert "ANTHROPIC_API_KEY" not in seen
    assert seen["HF_TOKEN"] == "hub"
    assert seen["NO_PROXY"] == "intranet,localhost,127.0.0.1,::1"
    assert seen["OPENAI_API_KEY"] == "given"


async def test_a_program_is_not_left_running_if_its_messages_cannot_be_read(trial, monkeypatch):
    """It is stopped before the error is raised."""

    async def refuse(_: object, pipe: IO[bytes]) -> None:
        pipe.close()
        raise OSError("no more pipes")

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_read_pipe", refuse)
    with pytest.raises(OSError, match="no more pipes"):
        await trial.run("import time\ntime.sleep(60)\n")
    commands = [command_of(child) for child in psutil.Process().children(recursive=True)]
    assert not any(str(trial.folder) in " ".join(command) for command in commands)
