"""Kill -9 of `enginehouse eval` and of its resumes, at every stage: nothing is lost or doubled."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.command_line import House, Running, journaled, sums, until

from enginehouse.testing.fake_environment import make_fake_environment

METRIC = """
import re, time
from pathlib import Path

def judge(text, item):
    with Path(__file__).with_name("scoring").open("a") as file:
        file.write("x")
    time.sleep(0.008)
    found = re.findall(r"\\d+", text)
    return found[-1] == item["right"] if found else None
"""
# Dies before or after it puts report.json in its place; run.json still says "running" then.
DIES_AT_REPORT = """
import os, signal, sys
from pathlib import Path
when = sys.argv.pop(1)
put = Path.replace
def replace(self, target):
    ours = Path(target).name == "report.json"
    if ours and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, target)
    if ours:
        os.kill(os.getpid(), signal.SIGKILL)
Path.replace = replace
from enginehouse.__main__ import main
main()
"""
COUNTS = {"correct": 18, "wrong": 9, "unparsable": 6, "truncated": 4, "failed": 3}


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """`eval` of forty samples, two at a time, with a metric that takes its time."""
    house.model()
    items, canned = sums(right=18, wrong=9, unparsable=6, truncated=4, failed=3)
    random.Random(1).shuffle(items)
    house.write("slow_metric.py", METRIC)
    task = str(house.task(items, metric="slow_metric:judge", trusted=True))
    words = ("eval", "tiny", "--task", task, "--concurrency", "2", "--max-failed", "0.1")
    words += ("--max-model-len", "512", "--env", house.answers(canned))
    return (*words, "--env", "VLLM_FAKE_TOKEN_LATENCY=0.003")


def said(text: str) -> Callable[[House, Running], object]:
    """The moment after it said `text`."""
    return lambda house, running: running.until(text)


def grown(file: Callable[[House], Path], amount: int) -> Callable[[House, Running], object]:
    """The moment when a file has grown by `amount` bytes."""

    def wait(house: House, running: Running) -> object:
        def size() -> int:
            return file(house).stat().st_size if file(house).exists() else 0

        before = size()
        return until(lambda: size() >= before + amount, running.err.read_text)

    return wait


def moments(*, many: bool) -> list[Callable[[House, Running], object]]:
    """Start-up, sampling and scoring, in a seeded order: five of them, or twenty."""
    rng = random.Random(7)

    def journal(house: House) -> Path:
        return house.runs[0] / "journal.jsonl"

    def scoring(house: House) -> Path:
        return house.work / "scoring"

    if not many:
        start = [said("run: "), said("starting vllm")]
        return [*start, grown(journal, 2000), grown(scoring, 1), grown(scoring, 2)]
    found = [said(text) for text in ("starting vllm", "starting vllm", "ready after")]
    found += [grown(journal, rng.randint(1, 4000)) for _ in range(8)]
    found += [grown(scoring, rng.randint(1, 2)) for _ in range(7)]
    rng.shuffle(found)
    return [said("run: "), said("engine: "), *found]


def slow_to_check(folder: Path) -> Path:
    """The Python of an environment whose check takes a second."""
    python = make_fake_environment(folder)
    (package,) = folder.glob("lib/*/site-packages/vllm/__init__.py")
    package.write_text(f"import time\ntime.sleep(1)\n{package.read_text()}")
    return python


def reaped(house: House, call) -> None:
    """Nobody does anything, and nothing is left: no process, no server that anybody lists."""
    until(lambda: not house.processes(), lambda: str(house.processes()))
    assert call("ps", "--json").report == []


@pytest.mark.slow
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_killed_at_every_stage(
    house: House, call, words: tuple[str, ...], tmp_path: Path, *, many: bool
):
    """After each kill a resume continues; in the end every sample is there once, and the counts."""
    unscored, servers = 0, 0
    slow = str(slow_to_check(tmp_path / "slow"))
    running = house.start(*words, ENGINEHOUSE_VLLM_PYTHON=slow)
    stages = moments(many=many)
    for number, moment in enumerate(stages):
        moment(house, running)
        assert running.kill().code == -signal.SIGKILL
        (run,) = house.runs
        until(lambda: call("runs", "--json").report[0]["status"] == "interrupted", "still held")
        state = journaled(run)
        assert max(state.samples.values(), default=1) == 1
        unscored += len(state.samples) - len(state.outcomes)
        servers += "starting vllm" in running.err.read_text()
        reaped(house, call)
        python = slow if number == 0 else house.env["ENGINEHOUSE_VLLM_PYTHON"]
        running = house.start("resume", run.name, ENGINEHOUSE_VLLM_PYTHON=python)
    assert unscored > 0
    assert servers >= (12 if many else 3)
    running.kill()
    reaped(house, call)
    for when in ("before", "after"):
        argv = [sys.executable, "-c", DIES_AT_REPORT, when, "resume", run.name]
        died = house.start_program(argv).end()
        assert died.code == -signal.SIGKILL, died.err
        reaped(house, call)
    done = call("resume", run.name, "--json")
    assert done.code == 0, done.err
    state = journaled(run)
    assert len(state.samples) == 40
    assert {*state.samples.values(), *state.scores.values()} == {1}
    assert state.counts() == COUNTS
    assert (run / "report.json").read_text() == done.out.rstrip("\n")
    assert call("runs", "--json").report[0]["status"] == "complete"
    undisturbed = call(*words, "--json").report
    assert done.report["tasks"] == undisturbed["tasks"]


@pytest.mark.slow
def test_resume_stops_a_server_that_was_left_behind_while_it_started(house: House, call):
    """The run knew neither its log nor its address yet."""
    house.model()
    items, canned = sums(right=3)
    task = str(house.task(items))
    words = ("eval", "tiny", "--task", task, "--env", house.answers(canned))
    running = house.start(*words, VLLM_FAKE_START_DELAY="inf")
    running.until("starting vllm")
    (reaper,) = (p for p in house.processes() if "enginehouse.processes.reaper" in p.cmdline())
    reaper.kill()
    running.kill()
    (left,) = call("ps", "--json").report
    assert (left["state"], left["abandoned"]) == ("starting", True)
    assert [p.pid for p in house.processes()] == left["pids"]
    other = house.start(*words, "--limit", "1", VLLM_FAKE_START_DELAY="inf")
    other.until("starting vllm")
    done = call("resume", house.runs[0].name, "--json")
    assert done.code == 0, done.err
    assert left["record"]["name"] in done.err
    assert done.report["tasks"][0]["outcomes"]["correct"] == 3
    (stays,) = call("ps", "--json").report
    assert stays["pids"], "another run's server is none of its business"
    other.interrupt()
    other.end()
