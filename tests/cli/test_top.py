"""`enginehouse top`: one reading for scripts, readings one after the other, Ctrl-C."""

from __future__ import annotations

import json

import pytest
from tests.support.foreign_server import fake_engine


def test_one_reading(house, call):
    """Two looks an interval apart, so that there are rates; a line for each server."""
    with fake_engine() as url:
        done = call("top", "--once", "--interval", "0.1", "--url", url, "--url", url + "/v1")
        told = call("top", "--once", "--interval", "0.1", "--url", url, "--json")
    assert done.code == 0, done.err
    assert sum(line.startswith(url.partition("//")[2]) for line in done.out.splitlines()) == 2
    (server,) = told.report["servers"]
    assert (server["state"], server["running"]) == ("ready", 0)
    assert server["output_tokens_per_second"] == 0.0
    assert told.report["gpus"] == []


def test_without_servers(call):
    """Status 0 and the next step."""
    done = call("top", "--once", "--interval", "0.1")
    assert (done.code, done.err) == (0, "")
    assert "enginehouse serve" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--url", "nowhere"), "nowhere"), (("-i", "0"), "0.1")],
)
def test_wrong_usage(call, words: tuple[str, ...], said: str):
    """Status 2."""
    done = call("top", "--once", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.slow
def test_ctrl_c_is_its_end(house):
    """Quietly, with status 0; until then a line of JSON per reading, even if a server dies."""
    with fake_engine() as url:
        running = house.start("top", "--json", "--interval", "0.1", "--url", url)
        running.until('"state":"ready"')
    running.until('"state":"degraded"')
    running.interrupt()
    done = running.end()
    assert (done.code, done.err) == (0, "")
    readings = [json.loads(line) for line in done.out.splitlines()]
    assert {reading["servers"][0]["state"] for reading in readings} == {"ready", "degraded"}
    assert "/health" in readings[-1]["servers"][0]["problem"]


@pytest.mark.slow
def test_a_server_of_ours(house, call):
    """By its name, with the memory of its processes; a pipe gets tables."""
    assert call("serve", str(house.model()), "--name", "mine", "--detach").code == 0
    running = house.start("top", "--interval", "0.1")
    running.until("mine")
    running.interrupt(15)
    assert running.end().code == 143
    (server,) = call("top", "--once", "--interval", "0.1", "--json").report["servers"]
    assert (server["name"], server["state"]) == ("mine", "ready")
    assert server["rss_bytes"] > 10 << 20
    assert server["cpu"] is not None
    assert call("stop", "mine").code == 0
