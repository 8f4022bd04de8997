"""Paths that the operating system refuses, given to every option: words, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support import SUPPORT
from tests.support.command_line import DEADLINE, SOURCE, House, sums
from tests.support.foreign_server import fake_engine

from enginehouse.cli.app import COMMANDS
from enginehouse.testing.fake_environment import make_fake_environment

NOBODY, STRANGER = 65534, 12345
_LOOK = "import sys, os, enginehouse.deployment.opening; os.stat(sys.executable)"
CODES = {0, *range(2, 14)}  # 1 is an error that nobody foresaw
OTHER_REASONS = (
    "without effect on a running server",
    "is not on this machine",  # of a server's checkpoint
    "was not ready after",
    "no Megatron server answers",
    "are for the tasks of a harness",
    "are for tasks of a harness",
)
LAUNCH = """
defaults: [{execution: local}, {deployment: vllm}, _self_]
execution: {output_dir: jobs, command: [no-such-program]}
deployment: {checkpoint_path: tiny}
evaluation: {tasks: [{name: sums.yaml}]}
"""
PROGRAM = SUPPORT / "hostile_words.py"
LEFT_OUT = {"install"}  # would build an environment for every value


class Place:
    """A user who is not root, and what that user may not use.

    Root becomes nobody, with the Python that runs the tests, or else (it may lie in root's home)
    with the system's of the same version. Where neither can be read, nobody is replaced by a root
    who has to obey permissions.
    """

    def __init__(self, folder: Path) -> None:
        self.house = House(folder / "house", python=None)
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = os.pathsep.join([str(SOURCE), *map(str, site.getsitepackages())])
        self.house.env |= {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(folder / "uv")}
        self.house.env["PYTHONPATH"] = packages
        folder.chmod(0o755)
        self._become, self._user = (), os.geteuid()
        self.python = sys.executable
        if self._user == 0:
            nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
            bound = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
            for become, user, python in (
                (nobody, NOBODY, sys.executable),
                (nobody, NOBODY, f"/usr/bin/{version}"),
                (bound, 0, sys.executable),
            ):
                self._become, self._user, self.python = become, user, python
                found = self.run([python, "-c", _LOOK])
                if found.returncode == 0:
                    break
            else:
                pytest.skip(f"nobody can run this checkout: {found.stderr.strip()[-300:]}")
        self._furnish(folder, packages.split(os.pathsep))

    def _furnish(self, folder: Path, packages: list[str]) -> None:
        environment = make_fake_environment(folder / "vllm")
        environment.unlink()
        environment.symlink_to(self.python)
        base = Path(self.python).resolve().parent
        (folder / "vllm/pyvenv.cfg").write_text(f"home = {base}\n")
        with next((folder / "vllm").rglob("enginehouse.pth")).open("a") as file:
            file.writelines(f"{line}\n" for line in packages)
        self.house.env["ENGINEHOUSE_VLLM_PYTHON"] = str(environment)
        self.house.model()
        items, _ = sums(right=1)
        self.house.task(items)
        self.house.write("game.yaml", "team_a: {agents: always RED}\nteam_b: {agents: random}\n")
        self.house.write("launch.yaml", LAUNCH)
        self.house.write("policy.yaml", "margin: 0.1\n")
        self.house.write("prompts.jsonl", '{"prompt": "a"}\n')
        self.house.write("locked/file", "{}")
        self.house.write("unreadable", "{}")
        work = self.house.work
        (work / "loop").symlink_to("loop")
        (work / "full").mkdir()
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                if not path.is_symlink():
                    os.chown(path, self._user, self._user)
            for name in ("locked", "locked/file", "unreadable"):
                os.chown(work / name, STRANGER, STRANGER)
        (work / "locked").chmod(0o700 if os.geteuid() == 0 else 0)
        (work / "unreadable").chmod(0)
        self.values = [
            f"{work}/locked/file",
            f"{work}/locked",
            f"{work}/unreadable",
            f"{work}/sums.yaml/below",
            f"{work}/loop",
            f"{work}/full",
            f"{work}/{'x' * 300}",
            f"{work}{'/x' * 3000}",
            "/proc/nothing/here",
        ]
        played = self.call("play", "game.yaml")
        assert played.returncode == 0, played.stderr
        evaluated = self.call("eval", "tiny", "--task", "sums.yaml", "--folder", "evaluated")
        assert evaluated.returncode == 0, evaluated.stderr

    def run(self, argv: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program as that user."""
        return subprocess.run(
            [*self._become, *argv],
            env=self.house.env | env,
            cwd=self.house.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=4 * DEADLINE,
            check=False,
        )

    def call(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as that user."""
        return self.run([self.python, "-m", "enginehouse", *words], **env)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Outside pytest's own folders, which only their owner may enter."""
    folder = Path(tempfile.mkdtemp(prefix="enginehouse-paths-"))
    try:
        yield Place(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def url(place: Place) -> Iterator[str]:
    """A server that answers."""
    with fake_engine() as url:
        yield url


def bases(place: Place, url: str) -> Mapping[str, list[str]]:
    """Words that make each command's call complete, so that it gets to what it is given."""
    task = ["--task", "sums.yaml"]
    tinker = ["--base-model", "tiny", "--trainer", "megatron", "--sampler", "hf"]
    tinker += ["--megatron-url", "http://127.0.0.1:9"]
    return {
        "eval": ["--url", url, *task],
        "gate": ["evaluated", "--baseline", "evaluated", "--policy", "policy.yaml"],
        "watch": ["full", "tiny", *task, "--once", "--start-timeout", "0.01"],
        "serve": ["tiny", "--start-timeout", "0.01"],
        "gateway": ["tiny", "--start-timeout", "0.01"],
        "run-with": ["tiny", "--start-timeout", "0.01", "--", "true"],
        "bench": ["--url", url, "--requests", "1", "--warmup", "0", "--output-tokens", "1"],
        "check": ["--url", url, "--users", "1"],
        "parity": ["tiny", "--start-timeout", "0.01"],
        "chat": ["--url", url],
        "arena serve": ["tiny", "--start-timeout", "0.01"],
        "play run": ["game.yaml"],
        "play analyze": [str(place.house.runs[0])],
        "sample": ["--url", url, "--prompts", "prompts.jsonl", "--out", "out.jsonl"],
        "tinker serve": tinker,
        "tinker keys add": ["ada"],
        "tinker keys revoke": ["12345678"],
        "launch run": ["--config", "launch.yaml"],
        "launch export": ["evaluated", "--to", "json", "--out", "figures.json"],
        "top": ["--once", "--interval", "0.1"],
        "doctor": [],
        "adapters load": [url],
        "adapters unload": [url],
        "adapters verify": [url],
        "weights swap": [url],
        "weights merge": ["tiny", "full", "out"],
    }


def tried(place: Place, names: list[str], url: str, values: list[str], **env: str) -> list[Any]:
    """The results of calling the commands with every value; only expected ends."""
    words = [json.dumps(given) for given in (names, bases(place, url), values)]
    done = place.run([place.python, str(PROGRAM), *words], **env)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r for r in results if "Traceback" in r["said"] or r["code"] not in CODES] == []
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in LEFT_OUT])
def test_every_option_of_every_command(place: Place, url: str, name: str):
    """A new command or option is tried, too: words, and a refusal names what it refuses."""
    results = tried(place, [name], url, place.values)
    assert [r for r in results if r["is_path"] and r["code"] and not names(r)] == []


def names(result: Any) -> bool:
    """Whether a refused call says which path it is about, or that no path was the reason."""
    said = result["said"].replace("\n", "")
    return result["value"][:200] in said or any(reason in said for reason in OTHER_REASONS)


@pytest.mark.slow
@pytest.mark.parametrize("home", ["locked/home", "unreadable", "sums.yaml/below", "loop"])
def test_a_home_that_cannot_be_used(place: Place, url: str, home: str):
    """What is kept cannot be read or written, by any command."""
    path = str(place.house.work / home)
    known = [name for name in COMMANDS if name not in LEFT_OUT]
    assert tried(place, known, url, [], ENGINEHOUSE_HOME=path)


@pytest.mark.slow
def test_a_folder_that_is_gone(place: Place):
    """The shell's own folder was removed under it."""
    gone = place.house.work / "gone"
    script = 'mkdir "$1" && cd "$1" && rmdir "$1" && shift && "$@"'
    for words in (["ps"], ["eval", "tiny", "--task", "sums.yaml"], ["show", "x"]):
        argv = ["/bin/sh", "-c", script, "sh", str(gone), place.python, "-P", "-m", "enginehouse"]
        done = place.run([*argv, *words])
        assert done.returncode in CODES
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_null_bytes_in_a_file(place: Place):
    """No path has one: refused by name, but for what is only said to a model."""
    place.house.write("null.yaml", 'model: "ti\\0ny"\ntasks: [sums.yaml]\n')
    done = place.call("eval", "--config", "null.yaml")
    assert (done.returncode, "'model' holds a null byte" in done.stderr) == (2, True)
    place.house.write("null.yaml", 'server: {env_vars: {A: "\\0"}}\ntasks: [sums.yaml]\n')
    done = place.call("eval", "--config", "null.yaml")
    assert (done.returncode, "'server.env_vars.A'" in done.stderr) == (2, True)
