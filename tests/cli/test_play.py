"""`enginehouse play`: scripts, fake engines, refusals, interruptions, recordings."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from tests.support import redblackbench_files
from tests.support.command_line import House, until
from tests.support.leased_ports import free_port

from enginehouse.arena.records import CallRecord, HeaderRecord, MatchRecord, Record
from enginehouse.store.journal import read_journal
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.testing.fake_vendors import FakeAnthropic, FakeOpenRouter, running_fake_vendor

T = TypeVar("T")

SCRIPTS = {
    "game": {"team_size": 2},
    "team_a": {"agents": "always RED"},
    "team_b": {"agents": "tit for tat"},
}


@contextmanager
def threaded(opening: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """What `opening` yields, running in a thread of its own: the command has this one."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    opened: list[T] = []

    async def serve() -> None:
        async with opening as value:
            opened.append(value)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield opened[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextmanager
def engine(*flags: str, **more: Any) -> Iterator[str]:
    """The address of a fake engine."""
    with threaded(running_fake_engine(*flags, **{"model": "m"} | more)) as handle:
        yield f"{handle.url}/v1"


def small(url: str, **values: Any) -> dict[str, Any]:
    """Two teams of two LLMs, three rounds."""
    provider = {"type": "vllm", "model": "m", "base_url": url, "max_tokens": 32}
    game = {"num_rounds": 3, "team_size": 2}
    return {"default_provider": provider, "game": game} | values


def write(house: House, values: dict[str, Any], name: str = "trial") -> str:
    """An experiment's file."""
    return str(house.write(f"{name}.yaml", yaml.safe_dump(values)))


def records(run: Path) -> list[Record]:
    """The lines of a run's journal."""
    path = run / "journal.jsonl"
    return [entry.record for entry in read_journal(path, Record)]


def calls(run: Path) -> list[CallRecord]:
    """The calls in a run's journal."""
    return [record for record in records(run) if isinstance(record, CallRecord)]


def matches(run: Path) -> list[MatchRecord]:
    """The matches in a run's journal."""
    return [record for record in records(run) if isinstance(record, MatchRecord)]


def wait_for_calls(run: Path, count: int) -> None:
    """Until the journal has so many."""
    journal = run / "journal.jsonl"
    until(
        lambda: journal.exists() and journal.read_text().count('"type":"call"') >= count,
        "no calls",
    )


def test_scripts_play_without_a_model(house: House, call):
    """Both seatings on the same seeds; the run is listed, and can be shown and resumed."""
    file = write(house, SCRIPTS | {"num_games": 3, "seats": "paired"})
    done = call("play", file)
    assert done.code == 0, done.err
    (run,) = house.runs
    played = matches(run)
    assert [match.pairing for match in played] == ["team_a vs team_b", "team_b vs team_a"] * 3
    assert len({match.seed for match in played}) == 3
    assert calls(run) == []
    (listed,) = call("runs", "--json").report
    assert (listed["kind"], listed["status"], listed["tasks"]) == (
        "experiment",
        "complete",
        ["red_black"],
    )
    assert run.name in call("show", run.name).out
    again = call("resume", run.name)
    assert again.code == 0, again.err
    assert len(matches(run)) == 6
    assert "complete" in again.err


def test_an_experiment_is_not_an_evaluation(house: House, call):
    """Commands for the one refuse the other, and name the right command."""
    assert call("play", write(house, SCRIPTS)).code == 0
    (run,) = house.runs
    refused = call("compare", run.name, run.name)
    assert refused.code == 2
    assert f"enginehouse play analyze {run.name}" in refused.err
    assert call("rescore", run.name).code == 2
    assert call("show", run.name, "--sample", "1").code == 2


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["enginehouse", "enginehouse.facades.redblackbench"])
def test_the_quick_test_of_redblackbench(house: House, entry: str):
    """Its file unchanged but for the address: 42 calls without repetitions, then a report."""
    text = redblackbench_files.documented("vllm_qwen3_quick_test").read_text()
    model = "/workspace/models/Qwen3-14B"
    with engine(model=model) as url:
        file = house.write("quick.yaml", text.replace("http://localhost:8000/v1", url))
        words = ["play"] if entry == "enginehouse" else []
        program = [sys.executable, "-m", entry, *words, str(file)]
        done = house.start_program(program).end()
    assert done.code == 0, done.err
    (run,) = house.runs
    (match,) = matches(run)
    assert match.failure is None
    assert len(match.turns) == 3
    first = [record for record in calls(run) if record.key.attempt == 0]
    assert len(first) == 42
    header = next(record for record in records(run) if isinstance(record, HeaderRecord))
    assert header.spec.name == "vllm_qwen3_quick_test"
    assert header.spec.settings["multipliers"] == {"3": 2}


def test_options_go_before_the_file(house: House, call):
    """The number of matches, the seed, and the seats."""
    done = call("play", write(house, SCRIPTS), "--num-games", "2", "--seed", "9", "--seats=paired")
    assert done.code == 0, done.err
    (run,) = house.runs
    header = next(record for record in records(run) if isinstance(record, HeaderRecord))
    assert (header.spec.matches, header.spec.seed, len(header.spec.pairings)) == (2, 9, 2)
    assert header.spec.name == "trial"
    stored = yaml.safe_load((run / "config.yaml").read_text())
    assert (stored["num_games"], stored["seed"]) == (2, 9)


def test_the_games_are_listed(call):
    """For people and for programs."""
    assert "red_black" in call("play", "--list").out
    games = {game["name"]: game for game in call("play", "--list", "--json").report}
    assert games["red_black"]["least_seats"] == 2


@pytest.mark.parametrize(
    ("values", "code", "says"),
    [
        ({"default_provider": {"type": "vlm", "model": "m"}}, 2, "did you mean 'vllm'"),
        ({"default_provider": {"type": "openai", "model": "m"}}, 2, "OPENAI_API_KEY"),
        (SCRIPTS | {"team_a": {"size": 0}}, 2, "at least one agent"),
        (SCRIPTS | {"game": {"multipliers": {11: 2}}}, 2, "11"),
        (SCRIPTS | {"num_gmes": 2}, 2, "did you mean 'num_games'"),
        (SCRIPTS | {"deliberation": {"tie": "PURPLE"}}, 2, "PURPLE"),
        (SCRIPTS | {"output_dir": "/proc/results"}, 8, "/proc/results"),
        (SCRIPTS | {"output_dir": "trial.yaml"}, 8, "trial.yaml"),
    ],
)
def test_what_is_wrong_leaves_no_run(house: House, call, values: Any, code: int, says: str):
    """It is said before anything is asked."""
    done = call("play", write(house, values))
    assert done.code == code
    assert says in done.err
    assert house.runs == []


def test_a_model_that_the_server_lacks_leaves_no_run(house: House, call):
    """The error names those that it has."""
    with engine() as url:
        values = small(url, team_b={"provider": {"model": "lora"}})
        done = call("play", write(house, values))
    assert done.code == 2
    assert "'lora'" in done.err
    assert "known: m" in done.err
    assert "is removed: nothing was asked" in done.err
    assert house.runs == []


def test_a_server_that_is_not_there(house: House, call):
    """Its address is named, and what can be done: the run goes on when it is."""
    port = free_port()
    file = write(house, small(f"http://127.0.0.1:{port}/v1"))
    done = call("play", file)
    assert done.code == 6
    assert f"127.0.0.1:{port}" in done.err
    assert "--serve" in done.err
    (run,) = house.runs
    with engine("--port", str(port)):
        resumed = call("resume", run.name)
    assert resumed.code == 0, resumed.err
    assert len(matches(run)) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nope.yaml",), "there is no file nope.yaml"),
        (("rum",), "did you mean enginehouse play run?"),
        ((), "Usage"),
        (("run",), "no experiment to play"),
    ],
)
def test_a_wrong_call_is_explained(call, words: tuple[str, ...], says: str):
    """With exit code 2."""
    done = call("play", *words)
    assert done.code == 2
    assert says in done.out + done.err


def test_hosted_models_play_against_each_other(house: House, call):
    """A smoke test of RedBlackBench's, with two vendors; each is asked with its own key."""
    values = redblackbench_files.everything()["routed_smoke"]
    values["default_provider"] = {"type": "openrouter", "include_reasoning": True}
    values["team_b"]["provider"] = {"type": "anthropic", "model": "fake-model"}
    values["team_a"]["provider"]["model"] = "fake-model"
    del values["output_dir"]
    with (
        threaded(running_fake_vendor(FakeOpenRouter(key="sk-or"))) as router,
        threaded(running_fake_vendor(FakeAnthropic(key="sk-ant"))) as anthropic,
    ):
        keys = {"OPENROUTER_API_KEY": "sk-or", "ANTHROPIC_API_KEY": "sk-ant"}
        urls = {"OPENROUTER_BASE_URL": router.url, "ANTHROPIC_BASE_URL": anthropic.url}
        done = call("play", write(house, values), **keys, **urls)
    assert done.code == 0, done.err
    (match,) = matches(house.runs[0])
    assert match.failure is None
    assert all(body["include_reasoning"] is True for body in router.bodies)
    assert router.bodies
    assert anthropic.bodies


def test_keys_are_not_stored(house: House, call):
    """Nor is the value of a variable that may be a secret; its name is, to ask for it again."""
    secret = "sk-canary-4711"
    with engine("--api-key", secret) as url:
        values = small(url)
        variables = {"MY_TOKEN": secret, "OMP_NUM_THREADS": "1"}
        values["default_provider"] |= {"api_key": secret, "server": {"env_vars": variables}}
        done = call("play", write(house, values))
        assert done.code == 0, done.err
    (run,) = house.runs
    content = {path.name: path.read_bytes() for path in run.iterdir()}
    assert [name for name, text in content.items() if secret.encode() in text] == []
    stored = (run / "config.yaml").read_text()
    assert "api_key, env_vars.MY_TOKEN" in stored.splitlines()[1]
    assert yaml.safe_load(stored)["default_provider"]["server"] == {
        "env_vars": {"OMP_NUM_THREADS": "1"}
    }
    (listed,) = call("runs", "--json").report
    assert listed["left_out"] == ["MY_TOKEN"]


@pytest.mark.slow
class TestInterrupted:
    """Ctrl-C and kill -9 lose nothing."""

    @pytest.mark.parametrize("how", ["ctrl-c", "kill"])
    def test_an_interrupted_experiment_goes_on(self, house: House, how: str):
        """Recorded calls are not made again, and the servers end."""
        server = {"env_vars": {"VLLM_FAKE_TOKEN_LATENCY": "0.005"}, "max_model_len": 4096}
        provider = {
            "type": "vllm",
            "model": str(house.model()),
            "serve": True,
            "max_tokens": 16,
            "server": server,
        }
        values = {
            "default_provider": provider,
            "game": {"num_rounds": 4, "team_size": 2},
            "num_games": 4,
        }
        running = house.start("play", write(house, values))
        running.until("run: ")
        (run,) = house.runs
        wait_for_calls(run, 20)
        if how == "ctrl-c":
            running.interrupt()
            ended = running.end()
            assert ended.code == 130, ended.err
            assert f"enginehouse resume {run.name}" in ended.err
            house.nothing_left()
        else:
            running.kill()
        before = len(calls(run))
        assert before >= 20
        resumed = house.run("resume", run.name)
        assert resumed.code == 0, resumed.err
        keys = [record.key for record in calls(run)]
        assert len(keys) == len(set(map(repr, keys)))
        assert len(matches(run)) == 4
        assert all(match.failure is None for match in matches(run))

    def test_a_server_that_dies_is_started_again(self, house: House, call):
        """No match fails, and the run names the death."""
        faults = json.dumps([{"fault": "die", "nth": [30]}])
        variables = {
            "VLLM_FAKE_FAULTS": faults,
            "VLLM_FAKE_STATE": str(house.work / "state.json"),
        }
        provider = {
            "type": "vllm",
            "model": str(house.model()),
            "serve": True,
            "max_tokens": 16,
            "server": {"env_vars": variables, "max_model_len": 4096},
        }
        values = {
            "default_provider": provider,
            "game": {"num_rounds": 3, "team_size": 2},
            "num_games": 3,
        }
        done = call("play", write(house, values))
        assert done.code == 0, done.err
        (run,) = house.runs
        assert [match.failure for match in matches(run)] == [None] * 3
        (listed,) = call("runs", "--json").report
        assert len(listed["incidents"]) == 1


def test_a_recording_replays_without_a_model(house: House, call):
    """The same matches, though the server is gone; without a recording nobody answers."""
    with engine() as url:
        file = write(house, small(url))
        assert call("play", file).code == 0
    (first,) = house.runs
    replayed = call("play", file, "--cassette", first.name, "--offline")
    assert replayed.code == 0, replayed.err
    (second,) = {*house.runs} - {first}
    one, other = matches(first)[0], matches(second)[0]
    assert (one.turns, one.scores) == (other.turns, other.scores)
    assert call("play", file, "--offline").code == 2


def test_a_recording_answers_until_another_team_makes_a_difference(house: House, call):
    """The unchanged team's calls are not made again before that, and the record says where."""
    with engine() as url:
        values = small(url)
        assert call("play", write(house, values)).code == 0
        (first,) = house.runs
        values["team_b"] = {"agents": "always RED"}
        done = call("play", write(house, values), "--cassette", first.name)
    assert done.code == 0, done.err
    (second,) = {*house.runs} - {first}
    (match,) = matches(second)
    assert match.failure is None
    replayed = [record for record in calls(second) if record.replayed]
    asked = [record for record in calls(second) if not record.replayed]
    assert {record.key.turn for record in replayed} >= {0}
    assert {record.key.seat for record in (*replayed, *asked)} == {"team_a"}
    others = [turn.decisions["team_b"].action for turn in matches(first)[0].turns]
    if others == ["RED"] * 3:  # then the script says nothing new
        assert (match.diverged, asked) == ({}, [])
    else:
        assert match.diverged["team_a"] == min((r.key for r in asked), key=lambda key: key.turn)


@pytest.mark.slow
def test_a_person_plays_at_the_terminal(house: House):
    """Their answers come from standard input, a line each; its end is an error."""
    values = SCRIPTS | {"team_a": {"agents": ["human"]}, "game": {"num_rounds": 2}}
    file = write(house, values)
    program = [sys.executable, "-c", PIPED, "play", file]
    done = house.start_program(program, ANSWERS="RED\nBLACK\n").end()
    assert done.code == 0, done.err
    (match,) = matches(house.runs[-1])
    assert [turn.decisions["team_a"].action for turn in match.turns] == ["RED", "BLACK"]
    assert "Round 1 of 2" in done.err
    ended = house.start_program(program, ANSWERS="RED\n").end()
    assert ended.code == 5
    assert "standard input has ended" in ended.err
    assert "> the run is kept" not in ended.err


PIPED = """
import os, subprocess, sys
words = [sys.executable, "-m", "enginehouse", *sys.argv[1:]]
sys.exit(subprocess.run(words, input=os.environ["ANSWERS"].encode()).returncode)
"""


def test_output_dir_gets_the_results(house: House, call):
    """In a folder named after the run, which is kept in its own place, too."""
    done = call("play", write(house, SCRIPTS | {"output_dir": "results"}), "--json")
    assert done.code == 0, done.err
    (run,) = house.runs
    folder = house.work / "results" / run.name
    assert json.loads((folder / "report.json").read_text()) == done.report
    assert (folder / "figures.csv").read_text().count("\n") > 2
    assert "<html" in (folder / "replay.html").read_text()
    assert json.loads((run / "report.json").read_text()) == done.report


def test_an_experiment_whose_matches_all_failed_has_its_own_exit_code(house: House, call):
    """9, with the first cause; the matches are played again with --retry-failed."""
    refusal = {"fault": "status", "match": "RED", "status": 400, "first": 1}
    with engine(faults=[refusal]) as url:
        done = call("play", write(house, small(url)))
        assert done.code == 9, done.err
        (run,) = house.runs
        assert f"enginehouse resume {run.name} --retry-failed" in done.err
        assert call("resume", run.name).code == 9  # a match that failed has ended
        again = call("resume", run.name, "--retry-failed", "--json")
    assert again.code == 0, again.err
    assert (again.report["finished"], again.report["failures"]) == (1, [])
