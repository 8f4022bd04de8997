"""lm-evaluation-harness as itself on the real vLLM, as tasks of ordinary runs."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests.support.command_line import House, SharedServer, sums, until
from tests.support.lm_eval_tasks import write_tasks

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]
ITEMS = 12


def recorded(run: Path) -> int:
    """How many answers the gateways of a run have recorded."""
    files = run.glob("harnesses/*/answers/*.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def harness_processes(house: House) -> list[int]:
    """The pids of lm-eval's processes."""
    pids = []
    for process in house.processes():
        with suppress(psutil.Error):
            if any(Path(word).name == "run_lm_eval.py" for word in process.cmdline()):
                pids.append(process.pid)
    return pids


def running_engine(house: House, *, killed: set[int]) -> int:
    """The pid of the running server, once it is ready, unless it was killed before."""

    def ready() -> int | None:
        for server in house.run("ps", "--json").report:
            pid: int = server["record"]["process"]["pid"]
            if server["state"] == "ready" and pid not in killed:
                return pid
        return None

    pid: int = until(ready, "the engine is not started again", patience=600)
    return pid


@pytest.mark.soak
def test_the_engine_is_killed_twice_in_sixty_items(house: House):
    """Exit code 0, and the same scores as an undisturbed run, in two kinds of tasks."""
    folder = write_tasks(house.work / "lm-sixty", items=30)
    words = (
        *("eval", "smollm2", "--dtype", "float32", "--max-model-len", "1024"),
        *("--task", "lm-eval:sums", "--task", "lm-eval:capitals"),
        *("--include-path", str(folder), "--concurrency", "2", "--json"),
    )
    undisturbed = house.run(*words)
    assert undisturbed.code == 0, undisturbed.err
    killed = set[int]()
    known = house.runs
    running = house.start(*words)
    (run,) = until(
        lambda: [one for one in house.runs if one not in known], "no run is begun", patience=900
    )
    for answers in (10, 60):
        pid = running_engine(house, killed=killed)
        until(lambda n=answers: recorded(run) >= n, "it asks nothing", patience=900)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    done = running.end()
    assert done.code == 0, done.err
    assert len(done.report["incidents"]) == 2
    for whole, disturbed in zip(undisturbed.report["tasks"], done.report["tasks"], strict=True):
        assert disturbed["samples"] == disturbed["items"] == 30
        for key in ("task", "headline", "outcomes", "metrics", "digest"):
            assert disturbed[key] == whole[key]
        assert disturbed["harness"]["figures"] == whole["harness"]["figures"]
    house.nothing_left()


def test_killed_resumed_and_compared(plain_vllm: SharedServer):
    """A native task and two of lm-eval, which is killed in the middle; nothing is asked twice."""
    house = plain_vllm.house
    items, _ = sums(right=3)
    folder = write_tasks(house.work / "lm-tasks", items=ITEMS)
    words = (
        *("eval", "--url", plain_vllm.url, "--concurrency", "1", "--json"),
        *("--task", str(house.task(items)), "--task", "lm-eval:sums", "--task", "lm-eval:capitals"),
        *("--include-path", str(folder)),
    )
    known = house.runs
    running = house.start(*words)
    (run,) = until(
        lambda: [one for one in house.runs if one not in known], "no run is begun", patience=900
    )
    until(lambda: recorded(run) >= 4, "lm-eval has asked nothing", patience=900)
    for pid in harness_processes(house):
        os.kill(pid, signal.SIGKILL)
    done = running.end()
    assert done.code == 14, done.err
    assert "signal 9" in done.err.lower() or "sigkill" in done.err.lower(), done.err
    before = recorded(run)

    resumed = house.run("resume", run.name, "--json")
    assert resumed.code == 0, resumed.err
    native, first, second = resumed.report["tasks"]
    assert (first["task"], second["task"]) == ("lm-eval:capitals", "lm-eval:sums")
    assert native["samples"] == 3
    for task in (first, second):
        assert task["items"] == ITEMS
        assert sum(task["outcomes"].values()) == ITEMS
        own = task["harness"]["figures"]
        (headline,) = (f for f in own if f["name"] == task["headline_name"])
        assert headline["value"] == pytest.approx(task["headline"]["value"])
    asked = second["harness"]["requests"] + second["harness"]["replayed"]
    assert second["harness"]["replayed"] >= 1
    assert asked == ITEMS
    assert recorded(run) >= before
    again = house.run("resume", run.name, "--json")
    assert "nothing to ask" in again.err
    assert again.report["tasks"] == resumed.report["tasks"]
    shown = house.run("show", run.name, "--sample", str(3 + ITEMS + 1)).out
    assert "[prompt]" in shown
    assert "[answer]" in shown

    other = house.run(*words)
    assert other.code == 0, other.err
    compared = house.run("compare", run.name, other.report["run"], "--json")
    assert compared.code == 0, compared.err
    names = {task["task"] for task in compared.report["tasks"]}
    assert names == {"sums", "lm-eval:sums", "lm-eval:capitals"}
    assert all(task["headline"]["difference"] == 0 for task in compared.report["tasks"])
    assert harness_processes(house) == []
