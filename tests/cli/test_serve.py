"""`enginehouse serve` in the foreground and detached; ps, logs, stop."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.support.command_line import House, port_is_free, until
from tests.support.tiny_adapters import write_adapter

CAUSE = "RuntimeError: CUDA error: an illegal memory access was encountered"


def ask(said: str, **env: str) -> dict[str, object]:
    """Run the curl line that `serve` printed, as its reader would."""
    line = re.search(r"^try: +(.*)$", said, re.MULTILINE)
    assert line is not None, said
    run = ["bash", "-c", line[1]]
    found = subprocess.run(
        run, capture_output=True, text=True, env={**os.environ, **env}, check=False
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
def test_in_the_foreground_until_ctrl_c(house: House):
    """It prints URL, models and a curl line that works; Ctrl-C ends it and all of it."""
    house.model()
    running = house.start("serve", "tiny", "--env", house.answers({"capital": "Paris."}))
    said = running.until("stop:   Ctrl-C")
    url = re.findall(r"^url: +(http://127\.0\.0\.1:\d+)/v1$", said, re.MULTILINE)[0]
    assert re.search(r"^models: tiny$", said, re.MULTILINE)
    reply = ask(said)
    assert reply["model"] == "tiny"
    assert reply["choices"][0]["text"] == "Paris."
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert done.err.splitlines()[-1].startswith("interrupted")
    house.nothing_left()
    assert port_is_free(url)


@pytest.mark.slow
def test_detached_then_ps_logs_stop(house: House, call):
    """It outlives the command; ps lists it, logs prints its log, stop proves that it is gone."""
    house.model()
    begun = call("serve", "tiny", "--detach", "--name", "mine", "--api-key", "k3y")
    assert begun.code == 0, begun.err
    assert "enginehouse stop mine" in begun.out
    assert ask(begun.out, ENGINEHOUSE_API_KEY="k3y")["model"] == "tiny"
    (server,) = call("ps", "--json").report
    assert (server["state"], server["record"]["detached"]) == ("ready", True)
    url = server["record"]["base_url"]
    table = call("ps").out.splitlines()
    assert table[0].split() == ["server", "state", "url", "pid", "model"]
    assert table[1].split()[:3] == ["mine", "ready", url]
    assert "Application startup complete." in call("logs", "mine").out
    assert call("serve", "tiny", "--detach", "--name", "mine").code == 2
    stopped = call("stop", "mine")
    assert stopped.code == 0
    assert "mine" in stopped.err
    house.nothing_left()
    assert port_is_free(url)
    assert call("stop", "mine").code == 2
    files = [file for file in house.home.rglob("*") if file.is_file()]
    assert not [file for file in files if "k3y" in file.read_text(errors="replace")]


PAUSE, LOAD, ANSWER = "/pause", "/v1/load_lora_adapter", "/v1/completions"


def status(url: str, path: str, key: str | None = None) -> int:
    """What a POST of somebody with that key gets."""
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, headers)) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.parametrize("user", [None, "k3y"])
def test_only_the_owner_administers(house: House, call, tmp_path: Path, user: str | None):
    """The key for that is in the owner's file; everybody may ask, or those with the API key."""
    house.model()
    words = ("--enable-lora", "--enable-weight-swap", *(("--api-key", user) if user else ()))
    begun = call("serve", "tiny", "-d", "--name", "mine", *words)
    assert begun.code == 0, begun.err
    (found,) = call("ps", "--json").report
    url, file = found["record"]["base_url"], Path(found["record"]["key_file"])
    assert f"key in {file}" in begun.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_text()
    assert key not in begun.out + begun.err + call("ps").out + json.dumps(found)
    assert status(url, ANSWER) == (200 if user is None else 401)
    assert status(url, ANSWER, user or key) == status(url, ANSWER, key) == 200
    for path in (PAUSE, LOAD, "/collective_rpc", "/reset_prefix_cache", "/sleep", "/whatever"):
        assert [status(url, path, one) for one in (None, "any", user)] == [401] * 3, path
    assert status(url, ANSWER, user) == 200, "nobody has paused it"
    table = call("ps")
    assert f"needs the key in {file}" in table.err
    assert ("API key" in table.err) == (user is not None)
    folder = write_adapter(tmp_path / "lora")
    for target in ("mine", url):
        done = call("adapters", "load", target, f"a-{len(target)}={folder}")
        assert done.code == 0, done.err
        assert call("weights", "info", target).code == 0
    (seen,) = call("top", "--once", "--json").report["servers"]
    assert (seen["problem"], seen["running"]) == (None, 0)
    assert status(url, PAUSE, key) == 200
    assert status(url, "/resume", key) == 200
    assert call("stop", "mine").code == 0
    assert not file.exists()


@pytest.mark.slow
def test_a_server_that_nobody_administers(house: House, call):
    """Without adapters and swaps there is no key to show, and nothing that it opens."""
    house.model()
    assert call("serve", "tiny", "-d", "--name", "mine").code == 0
    (found,) = call("ps", "--json").report
    record = found["record"]
    assert (record["key_file"], record["has_api_key"]) == (None, False)
    assert not list(house.home.rglob("admin.key"))
    assert [status(record["base_url"], path) for path in (ANSWER, PAUSE, LOAD)] == [200, 401, 401]
    assert call("ps").err == ""
    refused = call("weights", "swap", "mine", "tiny")
    assert refused.code != 0
    assert "--enable-weight-swap" in refused.err
    refused = call("adapters", "load", "mine", "new=tiny")
    assert refused.code != 0
    assert "--enable-lora" in refused.err
    assert call("stop", "mine").code == 0


@pytest.mark.slow
def test_logs_follow(house: House, call):
    """`logs -f` continues with what is written, until Ctrl-C."""
    house.model()
    call("serve", "tiny", "-d", "--name", "mine", "-q")
    following = house.start("logs", "mine", "-f")
    following.until("Application startup complete.")
    with (house.home / "state/servers/mine/server.log").open("a") as log:
        log.write("one more line\n")
    following.until("one more line")
    following.interrupt()
    assert following.end().code in (130, -signal.SIGINT)
    assert call("stop", "mine").code == 0


@pytest.mark.slow
def test_json(house: House, call):
    """--json is one document on standard output, for programs."""
    house.model()
    begun = call("serve", "tiny", "-d", "--json", "-q", "--served-model-name", "other")
    facts = begun.report
    assert facts["models"] == ["other"]
    assert begun.err == ""
    assert call("stop", facts["name"]).code == 0


@pytest.mark.slow
def test_the_server_dies_by_itself(house: House, call):
    """Exit code 5, the engine's own first cause, the log; nothing is left."""
    house.model()
    words = ("--max-restarts", "0", "--env", "VLLM_FAKE_CHILD=group")
    running = house.start("serve", "tiny", "--name", "mine", *words)
    running.until("Ctrl-C")
    log = house.home / "state/servers/mine/server.log"
    with log.open("a") as file:
        file.write(f"(EngineCore pid=7) ERROR 11-21 03:52:51 [core.py:1132] {CAUSE}\n")
    (server,) = call("ps", "--json").report
    os.kill(server["record"]["process"]["pid"], signal.SIGKILL)
    done = running.end()
    assert done.code == 5
    assert CAUSE in done.err
    assert str(log) in done.err
    house.nothing_left()


@pytest.mark.slow
def test_a_start_that_fails(house: House, call):
    """Exit code 5, the engine's own first cause, the log; detached as well."""
    house.model()
    cause = "ValueError: nobody has seen this before"
    for words in ((), ("--detach",)):
        done = call("serve", "tiny", *words, "--env", f"VLLM_FAKE_START_ERROR={cause}")
        assert done.code == 5
        assert f"why:  {cause}" in done.err
        assert re.search(r"log:  \S+/server\.log", done.err)
        house.nothing_left()


def test_what_runs_elsewhere(house: House, call):
    """A hosted engine is not served."""
    assert call("serve", "gpt-4", "--engine", "openai").code == 2


@pytest.mark.slow
def test_a_start_that_takes_too_long(house: House, call):
    """--start-timeout ends it, and says so."""
    house.model()
    words = ("--start-timeout", "1", "--env", "VLLM_FAKE_START_DELAY=inf")
    done = call("serve", "tiny", *words)
    assert done.code == 5
    assert "after 1 s" in done.err
    house.nothing_left()


@pytest.mark.slow
def test_its_controller_is_killed(house: House, call):
    """Nobody does anything, and its server is gone; that it ended can still be seen."""
    house.model()
    running = house.start("serve", "tiny", "--name", "mine")
    running.until("Ctrl-C")
    running.kill()
    until(lambda: not house.processes(), lambda: str(house.processes()))
    assert call("ps", "--json").report == []
    (server,) = call("ps", "--all", "--json").report
    assert (server["record"]["name"], server["state"]) == ("mine", "stopped")
    house.nothing_left()


@pytest.mark.slow
def test_stopped_by_another(house: House, call):
    """A server that was stopped by name is not started again: its controller ends and says so."""
    house.model()
    running = house.start("serve", "tiny", "--name", "mine")
    running.until("Ctrl-C")
    assert call("stop", "mine").code == 0
    done = running.end()
    assert done.code == 5
    assert "enginehouse stop" in done.err
    house.nothing_left()


@pytest.mark.slow
def test_it_dies_and_is_started_again(house: House, call):
    """The same name and URL, without a word of the user."""
    house.model()
    running = house.start("serve", "tiny", "--name", "mine", "--json")
    running.until('"pid"')
    (before,) = call("ps", "--json").report
    os.kill(before["record"]["process"]["pid"], signal.SIGKILL)
    until(lambda: running.err.read_text().count("ready after") == 2, "it is not ready again")
    (after,) = call("ps", "--json").report
    assert after["state"] == "ready"
    assert after["record"]["base_url"] == before["record"]["base_url"]
    assert after["record"]["process"] != before["record"]["process"]
    running.interrupt()
    assert running.end().code == 130
    house.nothing_left()
