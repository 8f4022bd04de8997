from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.processes import sandbox as sandbox_module
from enginehouse.processes.sandbox import bare_environment, confine, exposes_home, find_sandbox

LOOK = """
import json, os, pathlib, socket, sys
def writes(folder):
    try:
        pathlib.Path(folder, "written-by-a-test").touch()
    except OSError:
        return False
    return True
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5).close()
    connects = True
except OSError:
    connects = False
seen = [path for path in sys.argv[2:] if os.path.exists(path)]
tried = [sys.prefix, "/", "/usr", "/dev", "/dev/shm", *sys.argv[2:]]
written = [path for path in tried if writes(path)]
processes = sum(name.isdigit() for name in os.listdir("/proc")) if os.path.isdir("/proc") else 0
print(json.dumps([connects, seen, written, processes, sorted(os.environ)]))
"""


@pytest.fixture(autouse=True)
def fresh():
    """Every test looks for itself."""
    find_sandbox.cache_clear()
    yield
    find_sandbox.cache_clear()


def look(*paths: Path, readable=(), port=1):
    """What a confined Python sees: connection, paths, what it can write, processes, variables."""
    found = find_sandbox()
    if found.problem:
        pytest.skip("there is no sandbox on this machine")
    argv = (sys.executable, "-P", "-c", LOOK, str(port), *map(str, paths))
    done = subprocess.run(
        confine(argv, sandbox=found, readable=readable),
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_confined_program_sees_what_it_is_given_only(tmp_path, monkeypatch, unused_listener):
    """It reads that, writes nowhere, connects to nothing, and sees neither home nor secrets."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    given, other = tmp_path / "given", tmp_path / "other"
    given.mkdir()
    other.mkdir()
    connects, seen, written, processes, variables = look(
        given, other, Path.home() / ".cache", readable=[given], port=unused_listener
    )
    assert not connects
    assert seen == [str(given)]
    assert written == []
    assert processes < 5
    assert "HF_TOKEN" not in variables
    assert list(tmp_path.rglob("written*")) == []


@pytest.fixture
def unused_listener():
    """The port of a server on loopback."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_home_within_what_is_shown_is_hidden(tmp_path, monkeypatch):
    """Somebody's home may lie in a folder of packages."""
    home = tmp_path / "shown" / "home"
    (home / "secrets").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    _, seen, _, _, _ = look(home.parent, home / "secrets", home / "mine", readable=[home.parent])
    assert seen == [str(home.parent)]
    assert exposes_home(home.parent)
    assert not exposes_home(home / "mine")


def test_without_bubblewrap_the_reason_is_told(monkeypatch):
    """And nothing is put before the command."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = find_sandbox()
    assert found.problem == "bubblewrap is not installed"
    assert "apt-get install bubblewrap" in found.fix
    assert confine(("python", "x"), sandbox=found, readable=[Path("/x")]) == ("python", "x")


def test_a_bubblewrap_that_does_not_work_is_none(monkeypatch, tmp_path):
    """As in a container that allows no user namespaces; its words are kept."""
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'bwrap: No permissions to create namespace' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    assert "No permissions to create namespace" in find_sandbox().problem


def test_it_is_looked_for_once(monkeypatch):
    """Trying it takes time."""
    found = find_sandbox()
    monkeypatch.setattr(sandbox_module.subprocess, "run", None)
    assert find_sandbox() is found
