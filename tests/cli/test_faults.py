"""Whole evaluations on an engine that fails in every way it can: no sample is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import Finished, House, journaled, sums, until
from tests.support.foreign_server import fake_engine, fake_engine_process

from enginehouse.client import sampler as sampling
from enginehouse.client.retry import Retries
from enginehouse.client.transport import Timeouts
from enginehouse.deployment import preparation
from enginehouse.evaluation.records import Failure, Record, SampleRecord
from enginehouse.servers.server import OwnedServer
from enginehouse.servers.timings import Timings
from enginehouse.store.journal import read_journal

ITEMS = 50
Call = Callable[..., Finished]
TWO = r"Sum number (7|33):"  # the requests of two samples
LOST = {"7", "33"}


@pytest.fixture
def words(house: House) -> tuple[str, ...]:
    """A task of fifty items; the engine knows all the answers."""
    items, canned = sums(right=ITEMS)
    house.answers(canned)
    return ("--task", str(house.task(items)), "--concurrency", "8", "--max-failed", "0.1", "--json")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts, and what hangs, take less of the test's time."""
    monkeypatch.setattr(sampling, "Retries", partial(Retries, base=0.01))
    monkeypatch.setattr(sampling, "Timeouts", partial(Timeouts, total=1.0))


def variables(house: House, *faults: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a fake engine that knows the answers and has these faults."""
    answers = str(house.work / "answers.json")
    return {"VLLM_FAKE_ANSWERS": answers, "VLLM_FAKE_FAULTS": json.dumps(faults)}


def failures(run: Path) -> dict[str, Failure]:
    """The failed samples by the number in their question."""
    found = {}
    for entry in read_journal(run / "journal.jsonl", Record):
        record = entry.record
        if isinstance(record, SampleRecord) and record.failure is not None:
            asked = json.dumps(record.requests[0], default=str)
            found[re.findall(r"Sum number (\d+):", asked)[0]] = record.failure
    return found


def check(house: House, done: Finished, *, failed: set[str]) -> dict[str, Failure]:
    """All fifty are in the journal, once; all but `failed` are answered rightly and scored once."""
    (run,) = house.runs
    state = journaled(run)
    assert len(state.samples) == ITEMS
    assert {*state.samples.values(), *state.scores.values()} == {1}
    counts = {"correct": ITEMS - len(failed)} | ({"failed": len(failed)} if failed else {})
    assert state.counts() == counts
    assert len(state.scores) == ITEMS - len(failed)
    found = failures(run)
    assert set(found) == failed
    outcomes = {name: count for name, count in done.report["tasks"][0]["outcomes"].items() if count}
    assert outcomes == counts
    return found


PASSING: list[dict[str, Any]] = [
    {"fault": "status", "status": 500, "every": 7},
    {"fault": "status", "status": 503, "first": 12},
    {"fault": "status", "status": 429, "retry_after": "0.05", "first": 200},
    {"fault": "status", "status": 503, "retry_after": "0.05", "every": 2},
    {"fault": "reset", "every": 5},
    {"fault": "close", "reused": True},
    {"fault": "hang", "seconds": 0.3, "every": 10},
    {"fault": "hang", "path": "/metrics"},
    {"fault": "status", "status": 500, "path": "/metrics"},
    {"fault": "hang", "seconds": 0.3, "path": "/health"},
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING, ids=json.dumps)
def test_what_passes_costs_no_sample(house: House, call: Call, words, fault: dict[str, Any]):
    """However often it happens: every sample is answered in the end."""
    with fake_engine(**variables(house, fault)) as url:
        done = call("eval", "--url", url, *words)
    assert done.code == 0, done.err
    check(house, done, failed=set())


LASTING: list[tuple[dict[str, Any], str, int | None]] = [
    ({"fault": "status", "status": 500}, "ServerFaultError", 500),
    ({"fault": "status", "status": 400}, "BadRequestError", 400),
    ({"fault": "status", "status": 429, "retry_after": "900"}, "RateLimitedError", 429),
    ({"fault": "reset"}, "ConnectionFailedError", None),
    ({"fault": "reset", "at": "body"}, "MalformedResponseError", None),
    ({"fault": "truncate"}, "MalformedResponseError", None),
    ({"fault": "hang"}, "RequestTimeoutError", None),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", LASTING, ids=lambda case: json.dumps(case[0]))
def test_what_lasts_costs_only_the_samples_that_it_hits(
    house: House, call: Call, words, case: tuple[dict[str, Any], str, int | None]
):
    """Two are failed, with the error's class, stage and status; the score says so."""
    fault, error, status = case
    with fake_engine(**variables(house, fault | {"match": TWO})) as url:
        done = call("eval", "--url", url, *words)
    assert done.code == 0, done.err
    for failure in check(house, done, failed=LOST).values():
        assert (failure.error, failure.stage, failure.status) == (error, "wire", status)
    (run,) = house.runs
    with fake_engine(**variables(house)) as url:
        config = run / "config.yaml"
        config.write_text(re.sub(r"url: \S+", f"url: {url}", config.read_text()))
        again = call("resume", run.name, "--retry-failed", "--json")
    assert again.report["tasks"][0]["outcomes"]["correct"] == ITEMS
    assert set(journaled(run).scores.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("reply", ["500", "reset"])
def test_somebody_elses_server_that_dies(house: House, call: Call, words, reply: str):
    """Nobody restarts it: exit code 5, what could not be asked is missing and not failed."""
    death = {"fault": "die", "nth": [20], "reply": reply, "linger": 0}
    with fake_engine_process(house, **variables(house, death)) as (url, _):
        done = call("eval", "--url", url, *words)
    assert done.code == 5, done.err
    assert "enginehouse resume" in done.err
    (run,) = house.runs
    before = journaled(run)
    assert set(before.samples.values()) == {1}
    assert len(before.scores) >= 10
    with fake_engine(**variables(house)) as url:
        config = run / "config.yaml"
        config.write_text(re.sub(r"url: \S+", f"url: {url}", config.read_text()))
        done = call("resume", run.name, "--retry-failed", "--json")
    assert done.code == 0, done.err
    after = journaled(run)
    assert len(after.samples) == ITEMS
    assert set(after.scores.values()) == {1}
    assert after.counts() == {"correct": ITEMS}


def ours(house: House, *faults: Mapping[str, Any], **env: str) -> Sequence[str]:
    """The words of an `eval` whose own server has these faults; counts go on over restarts."""
    house.model()
    values = (
        variables(house, *faults)
        | {
            "VLLM_FAKE_STATE": str(house.work / "state"),
            "VLLM_FAKE_TOKEN_LATENCY": "0.01",
        }
        | env
    )
    given = [word for name, value in values.items() for word in ("--env", f"{name}={value}")]
    return ("eval", "tiny", *given)


def incidents(run: Path) -> list[dict[str, Any]]:
    """The deaths that the run notes."""
    noted: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["incidents"]
    return noted


DEATHS: list[dict[str, Any]] = [
    {"reply": "500"},
    {"reply": "reset", "linger": 0},
    {"signal": int(signal.SIGKILL)},
    {"exit_code": 3},
    {"reply": "500", "lives": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS, ids=json.dumps)
def test_a_server_of_ours_that_dies_twice(house: House, call: Call, words, death: dict[str, Any]):
    """Under the twelfth and the fortieth request, whichever they are: restarted both times."""
    done = call(*ours(house, {"fault": "die", "nth": [12, 40], **death}), *words)
    assert done.code == 0, done.err
    check(house, done, failed=set())
    assert len(incidents(house.runs[0])) == 2
    house.nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("death", [{"reply": "500"}, {"signal": int(signal.SIGKILL)}], ids=str)
def test_a_request_that_kills(house: House, call: Call, words, death: dict[str, Any]):
    """One of fifty kills the engine whenever it is asked: it is failed, all others are answered."""
    done = call(*ours(house, {"fault": "die", "match": "Sum number 7:", **death}), *words)
    assert done.code == 0, done.err
    (failure,) = check(house, done, failed={"7"}).values()
    assert (failure.error, failure.stage) == ("EngineKilledError", "engine")
    assert len(incidents(house.runs[0])) == 3  # among others, then twice alone
    house.nothing_left()


@pytest.mark.slow
def test_an_engine_core_killed_by_somebody(house: House, words):
    """As kill -9 of vLLM's EngineCore: the server says 500, ends, and is started again."""
    command = ours(house, VLLM_FAKE_CHILD="core", VLLM_FAKE_TOKEN_LATENCY="0.05")
    running = house.start(*command, *words)
    running.until("ready after")
    (run,) = house.runs
    until(lambda: journaled(run).scores, "nothing is scored")
    (core,) = [p for p in house.processes() if "VLLM::EngineCore" in p.cmdline()]
    os.kill(core.pid, signal.SIGKILL)
    done = running.end()
    assert done.code == 0, done.err
    check(house, done, failed=set())
    assert len(incidents(run)) == 1
    house.nothing_left()


@pytest.mark.slow
def test_a_restart_that_fails(house: House, call: Call, words):
    """The second start finds no memory: that is noted, and the third continues the work."""
    cause = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    no_start = {"fault": "no_start", "nth": [2], "cause": cause}
    done = call(*ours(house, {"fault": "die", "nth": [12]}, no_start), *words)
    assert done.code == 0, done.err
    check(house, done, failed=set())
    died, failed = incidents(house.runs[0])
    assert (died["kind"], failed["kind"]) == ("engine_died", "out_of_memory")
    assert failed["in_flight"] == 0
    house.nothing_left()


@pytest.mark.slow
def test_a_health_that_lies(house: House, call: Call, words, monkeypatch: pytest.MonkeyPatch):
    """200 for an engine that answers nobody: no token for so long, so it is started again."""
    timings = Timings(canary=0.5, degraded_after=1.0, look=0.2)
    monkeypatch.setattr(preparation, "OwnedServer", partial(OwnedServer, timings=timings))
    monkeypatch.setattr(sampling, "Timeouts", Timeouts)
    lie = {"fault": "die", "nth": [12], "reply": "hang", "lives": True, "health": 200}
    done = call(*ours(house, lie), *words, "--progress-timeout", "2")
    assert done.code == 0, done.err
    check(house, done, failed=set())
    assert len(incidents(house.runs[0])) == 1
    house.nothing_left()
