"""Runs that start their own real vLLM: killed and resumed, and one that cannot start."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from tests.support.command_line import House, answered, journaled, port_is_free, until, url_of

pytestmark = pytest.mark.engine


def test_killed_and_resumed(house: House):
    """Kill -9 in the middle, of the engine and then of the command.

    vLLM is started again and goes on; then the reaper ends all of it, and `resume` the run.
    """
    words = ("--task", "instructions", "--limit", "12", "--concurrency", "2", "--max-tokens", "32")
    words += ("--max-model-len", "1024")
    running = house.start("eval", "smollm2", *words)
    running.until("ready after")
    (run,) = house.runs
    running.interrupt(signal.SIGSTOP)  # on a fast machine it would end while `ps` starts
    (server,) = house.run("ps", "--json").report
    running.interrupt(signal.SIGCONT)
    until(lambda: answered(run), "no sample is answered")
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    until(lambda: running.err.read_text().count("ready after") == 2, running.err.read_text)
    known = answered(run)
    until(lambda: answered(run) > known, "no sample is answered after the restart")
    killed = running.kill()
    assert killed.code == -signal.SIGKILL
    before = journaled(run)
    assert 2 <= len(before.samples) < 12
    until(lambda: not house.processes(), "the reaper has not ended vLLM")
    assert port_is_free(url_of(killed.err))
    assert house.run("ps", "--json").report == []
    house.nothing_left()
    done = house.run("resume", run.name, "--json")
    assert done.code == 0, done.err
    after = journaled(run)
    assert len(after.samples) == 12
    assert "failed" not in after.counts()
    assert {*after.samples.values(), *after.scores.values()} == {1}
    assert before.outcomes.items() <= after.outcomes.items()
    (incident,) = done.report["incidents"]
    assert (incident["kind"], incident["consequence"]) == ("killed", "started again")
    assert "killed" in house.run("show", run.name).out
    check_provenance(done.report["provenance"])
    house.nothing_left()


def check_provenance(found: list[dict[str, object]]) -> None:
    """Both sessions are there if their addresses differ; each says all that answered."""
    for provenance in found:
        assert provenance["engine"] == "vllm"
        assert re.match(r"\d+\.\d+", str(provenance["engine_version"]))
        assert re.fullmatch("[0-9a-f]{64}", str(provenance["weights_digest"]))
        assert re.fullmatch("[0-9a-f]{64}", str(provenance["chat_template_digest"]))
        arguments = provenance["engine_arguments"]
        assert isinstance(arguments, list)
        assert arguments[arguments.index("--max-model-len") + 1] == "1024"
        assert str(provenance["environment"]).startswith("vllm-")
    assert len({str(provenance["weights_digest"]) for provenance in found}) == 1


def test_a_start_that_vllm_refuses(house: House):
    """Exit code 5, vLLM's own first reason in words, its log; nothing is left."""
    done = house.run("serve", "smollm2", "--max-model-len", "1000000")
    assert done.code == 5
    assert "the server ended with exit code 1" in done.err
    assert "max_model_len (1000000) is greater than the derived max_model_len" in done.err
    log = re.findall(r"log:  (\S+)", done.err)[-1]
    assert "Traceback" in Path(log).read_text()
    house.nothing_left()


def test_a_flag_that_vllm_has_not(house: House):
    """Told from the list dumped at install, in a second, before anything is started."""
    done = house.run("serve", "smollm2", "--extra-args", "--swap-space 4")
    assert done.code == 2
    assert "no longer has --swap-space" in done.err
    wrong = house.run("serve", "smollm2", "--extra-args", "--kv-cache-dtype fp99")
    assert wrong.code == 2
    assert "--kv-cache-dtype cannot be 'fp99'" in wrong.err
    assert "starting vllm" not in done.err + wrong.err
