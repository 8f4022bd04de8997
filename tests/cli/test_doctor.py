"""`enginehouse doctor`: what it prints, and its exit codes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginehouse.doctor.findings import Verdict


def test_what_is_found_is_printed(call, house):
    """One line per check, the next step below it, the counts last; nothing is left behind."""
    done = call("doctor")
    lines = done.out.splitlines()
    assert any(line.startswith("ok       Python") for line in lines)
    engine = next(line for line in lines if "environment" in line)
    assert "vllm" in engine
    assert "from ENGINEHOUSE_VLLM_PYTHON" in engine
    assert lines[-1].startswith(f"checks: {sum(line[:9].strip() != '' for line in lines) - 1}, ")
    assert done.code == (3 if "\nproblem " in f"\n{done.out}" else 0)
    assert not (house.home / "cache/environments").exists()


def test_a_problem_is_the_exit_code(call, tmp_path: Path):
    """Status 3, and the problem says what to do; the other checks are done all the same."""
    done = call("doctor", "--python", str(tmp_path / "nowhere"))
    assert done.code == 3
    problem = done.out.partition("problem  environment")[2].splitlines()
    assert "nowhere" in problem[0]
    assert problem[1].strip().startswith("next: ")
    assert "servers" in done.out


def test_json_has_the_same(call, tmp_path: Path):
    """--json is a list of findings for programs."""
    done = call("doctor", "--json", "--python", str(tmp_path / "nowhere"))
    assert done.code == 3
    findings = done.report
    assert {"check", "verdict", "says", "fix"} == set(findings[0])
    assert {finding["verdict"] for finding in findings} <= set(Verdict)
    assert all(finding["fix"] for finding in findings if finding["verdict"] != "ok")


def test_an_unknown_version(call):
    """One that is neither pinned nor installed is wrong usage, before anything is looked at."""
    done = call("doctor", "--version", "0.1.0")
    assert done.code == 2
    assert "0.1.0" in done.err


@pytest.mark.slow
def test_a_server_that_is_left_behind_is_named(house, call):
    """A detached server that was killed is a warning, with the command that clears it away."""
    assert call("serve", str(house.model()), "--name", "mine", "--detach").code == 0
    record = next(house.home.glob("state/servers/mine/server.json"))
    pid = int(record.read_text().partition('"pid": ')[2].partition(",")[0])
    os.kill(pid, 9)
    done = call("doctor")
    assert "warning  servers" in done.out
    assert "`enginehouse stop mine`" in done.out
    assert call("stop", "mine").code == 0
    assert "enginehouse stop" not in call("doctor").out
