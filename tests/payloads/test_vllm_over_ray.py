"""The program that joins the machines of one server by Ray; two of them are this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.command_line import until
from tests.support.leased_ports import leased_port
from tests.support.ray_cluster import ensure_ray

from enginehouse.provisioning.programs import PAYLOADS

PROGRAM = str(PAYLOADS / "vllm_over_ray.py")
SERVER = "import ray, time; ray.init(); print(len(ray.nodes()), 'nodes', flush=True); {then}"


def start(python: Path | str, *words: str, log: Path) -> subprocess.Popen[bytes]:
    """A part, whose output is in `log`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(python), PROGRAM, *words, "--patience", "280"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "GUARD_ADMIN_KEY": "s3cret"},
        )


@pytest.fixture(scope="session")
def python() -> Path:
    """That of an environment with Ray."""
    return ensure_ray()


def parts(python: Path, folder: Path, *, port: int, then: str) -> list[subprocess.Popen[bytes]]:
    """Both parts of a server whose program does `then` when it knows the cluster."""
    common = ("--port", str(port))
    worker = start(
        python,
        *("worker", "--address", "127.0.0.3", "--head", "127.0.0.2", *common),
        log=folder / "worker.log",
    )
    with (folder / "head.log").open("wb") as output:
        words = ("head", "--address", "127.0.0.2", "--nodes", "2", *common, "--patience", "280")
        server = (str(python), "-c", SERVER.format(then=then))
        head = subprocess.Popen(
            [str(python), PROGRAM, *words, "--", *server],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    return [head, worker]


def left(port: int) -> list[psutil.Process]:
    """Every process of the cluster with this port."""
    named = re.compile(rf"(--port[= ]|:|ray-\d+-){port}(?!\d)")
    found = []
    for process in psutil.process_iter():
        try:
            if named.search(" ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


FAKE_RAY = """
import os, time
from pathlib import Path

_joined = []

def is_initialized():
    return bool(_joined)

def init(**options):
    while Path(os.environ["FAKE_RAY"], "hang").exists():
        time.sleep(0.01)
    _joined.append(options)

def nodes():
    return [{"Alive": True}] * int(Path(os.environ["FAKE_RAY"], "nodes").read_text())

def shutdown():
    _joined.clear()
"""
FAKE_START = """
import os, signal, socket, sys, time
from pathlib import Path

flags = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
folder = Path(os.environ["FAKE_RAY"])
starts = folder / "starts"
starts.write_text(starts.read_text() + "x")
if len(starts.read_text()) <= int((folder / "failures").read_text()):
    sys.exit(7)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if "head" in flags:
    Path(flags["temp-dir"]).mkdir()
    listening = socket.create_server((flags["node-ip-address"], int(flags["port"])))
while not (folder / "die").exists():
    time.sleep(0.01)
sys.exit(9)
"""


class FakeRay:
    """A Ray of which a test says how many machines it has, how often it fails, and when it dies."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder = folder
        self.port = port
        self.log = folder / "log"
        for name, text in {
            "ray/__init__.py": FAKE_RAY,
            "ray/scripts/__init__.py": "",
            "ray/scripts/scripts.py": FAKE_START,
            "starts": "",
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.say(nodes=1, failures=0)

    def say(self, **numbers: int) -> None:
        """How it is from now on."""
        for name, number in numbers.items():
            (self.folder / name).write_text(str(number))

    def start(self, *words: str, patience: float = 60) -> subprocess.Popen[bytes]:
        """A part with it."""
        common = ("--address", "127.0.0.1", "--port", str(self.port), "--patience", str(patience))
        role, *others = words
        with self.log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, PROGRAM, role, *common, *others],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "FAKE_RAY": str(self.folder), "PYTHONPATH": str(self.folder)},
            )

    def head(self, then: str, *, nodes: int = 1, patience: float = 60) -> subprocess.Popen[bytes]:
        """The first machine's part, whose server does `then`."""
        server = (sys.executable, "-c", f"import signal, sys, time; {then}")
        words = ("--nodes", str(nodes), "--", *server, f"--port={self.port}")
        return self.start("head", *words, patience=patience)

    def worker(self, *, patience: float) -> subprocess.Popen[bytes]:
        """Another machine's part."""
        return self.start("worker", "--head", "127.0.0.1", patience=patience)

    def said(self, text: str) -> bool:
        """Whether a part has said it."""
        return text in self.log.read_text()

    def nothing_left(self) -> None:
        """Assert that every process and the folder of Ray are gone."""
        assert not left(self.port)
        assert not Path(f"/tmp/ray-{os.getuid()}-{self.port}").exists()


@pytest.fixture
def fake_ray(tmp_path: Path) -> Iterator[FakeRay]:
    """In place of Ray's package."""
    with leased_port() as port:
        yield FakeRay(tmp_path, port=port)
        for process in left(port):
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 3])
def test_ray_that_does_not_start_at_once(fake_ray: FakeRay, code: int) -> None:
    """It is tried again; then the exit code is the server's."""
    fake_ray.say(failures=1)
    assert fake_ray.head(f"sys.exit({code})").wait(60) == code
    assert fake_ray.said("trying again")
    assert fake_ray.said("all 1 machines have joined")
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_head_that_ends_while_it_is_asked(fake_ray: FakeRay) -> None:
    """It is noticed although Ray's own call hangs, and the head is tried again."""
    fake_ray.say(hang=1)
    head = fake_ray.head("sys.exit(0)")
    until(lambda: any("count" in part.cmdline() for part in left(fake_ray.port)), "nobody asks")
    fake_ray.say(die=1)
    until(lambda: fake_ray.said("trying again"), "its end is not noticed")
    for name in ("die", "hang"):
        (fake_ray.folder / name).unlink()
    assert head.wait(60) == 0
    assert fake_ray.said("all 1 machines have joined")
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_machine_that_never_joins(fake_ray: FakeRay) -> None:
    """The head gives up when its time is over, and says who is missing; no server was started."""
    assert fake_ray.head("print('served')", nodes=2, patience=2).wait(60) == 1
    assert fake_ray.said("1 of 2 machines have joined, and the time to start is over")
    assert not fake_ray.said("served")
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_head_whose_ray_dies(fake_ray: FakeRay) -> None:
    """Its server ends, too, and the reason is said."""
    head = fake_ray.head("print('serving', flush=True); time.sleep(1000)")
    until(lambda: fake_ray.said("serving"), "no server")
    fake_ray.say(die=1)
    assert head.wait(60) == 1
    assert fake_ray.said("Ray's head has ended by itself")
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_second_signal_while_the_server_ends(fake_ray: FakeRay) -> None:
    """Does not cut that short: nothing is left."""
    head = fake_ray.head(
        "signal.signal(15, lambda *_: (print('ending', flush=True), time.sleep(1), "
        "print('ended', flush=True), sys.exit(0))); print('serving', flush=True); time.sleep(1000)"
    )
    until(lambda: fake_ray.said("serving"), "no server")
    head.send_signal(signal.SIGTERM)
    until(lambda: fake_ray.said("ending"), "it does not end")
    head.send_signal(signal.SIGTERM)
    assert head.wait(60) == 128 + signal.SIGTERM
    assert fake_ray.said("ended")
    fake_ray.nothing_left()


def test_a_signal_before_all_machines_have_joined(fake_ray: FakeRay) -> None:
    """Ends Ray, and nothing was served."""
    head = fake_ray.head("print('served')", nodes=2)
    until(lambda: fake_ray.said("1 of 2 machines have joined"), "it does not start")
    head.send_signal(signal.SIGTERM)
    assert head.wait(60) == 128 + signal.SIGTERM
    assert not fake_ray.said("served")
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_worker_without_a_head(fake_ray: FakeRay) -> None:
    """It gives up when its time is over."""
    assert fake_ray.worker(patience=1).wait(60) == 1
    assert fake_ray.said(
        f"127.0.0.1:{fake_ray.port} does not answer, and the time to start is over"
    )
    fake_ray.nothing_left()


@pytest.mark.slow
def test_a_worker_that_cannot_join(fake_ray: FakeRay) -> None:
    """It tries until its time is over, and ends with Ray's exit code."""
    fake_ray.say(failures=1000)
    with socket.create_server(("127.0.0.1", fake_ray.port)):
        assert fake_ray.worker(patience=5).wait(60) == 7
    assert fake_ray.said("trying again")
    fake_ray.nothing_left()


def test_an_environment_without_ray(tmp_path: Path) -> None:
    """It says what is missing, as an import does, which the diagnosis knows."""
    log = tmp_path / "log"
    words = ("worker", "--address", "127.0.0.1", "--head", "127.0.0.1", "--port", "1")
    assert start(sys.executable, *words, log=log).wait(60) == 1
    assert "No module named 'ray'" in log.read_text()


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.parametrize("code", [0, 3])
def test_the_server_sees_all_machines(python: Path, tmp_path: Path, code: int) -> None:
    """It starts when all have joined, and its exit code is the head's, which ends Ray."""
    with leased_port() as port:
        head, worker = parts(python, tmp_path, port=port, then=f"raise SystemExit({code})")
        try:
            assert head.wait(300) == code, (tmp_path / "head.log").read_text()
            assert "2 nodes" in (tmp_path / "head.log").read_text()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 128 + signal.SIGTERM
            until(lambda: not left(port), lambda: str(left(port)))
            assert not Path(f"/tmp/ray-{os.getuid()}-{port}").exists()
        finally:
            for process in left(port):
                process.kill()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_head_that_is_told_to_stop(python: Path, tmp_path: Path) -> None:
    """It ends its server and Ray."""
    with leased_port() as port:
        head, worker = parts(python, tmp_path, port=port, then="time.sleep(1000)")
        try:
            until(lambda: "2 nodes" in (tmp_path / "head.log").read_text(), "no", patience=300)
            for part in (head, worker):
                part.send_signal(signal.SIGTERM)
            assert head.wait(60) == 128 + signal.SIGTERM
            worker.wait(60)
            until(lambda: not left(port), lambda: str(left(port)))
        finally:
            for process in left(port):
                process.kill()
