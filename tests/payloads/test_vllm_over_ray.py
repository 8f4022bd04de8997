"""The program that joins the machines of one server by Ray; two of them are this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(port) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


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
