"""Joins the machines of one vLLM server by a Ray cluster of its own.

Run by the Python that has vLLM and Ray, on the first machine as

    python vllm_over_ray.py head --address IP --port PORT --nodes N --patience S -- COMMAND …

which starts Ray's head there, waits for the others (a child of it, `count`, does), and then runs
COMMAND, the server, with RAY_ADDRESS set. On each of the others it is

    python vllm_over_ray.py worker --address IP --head HOST --port PORT --patience S

Each ends with an error when its part of Ray ends by itself, and ends Ray when it ends. The port and
the next one must be free on the first machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SECRETS = ("GUARD_ADMIN_KEY", "GUARD_API_KEY")
_PATIENT = {"RAY_agent_register_timeout_ms": "120000"}  # a busy machine takes longer than 15 s
_LONGEST_START = 60.0  # seconds: Ray gives up after 30, without saying by its exit code why
_AGAIN = "Ray did not start on this machine; trying again"
_OVER = "and the time to start is over"
_POLL = 0.2
_GRACE = 6.0  # seconds: two of them must fit into what a server gets to stop


class _NotStartedError(Exception):
    """Ray ended before it had begun."""


def main() -> None:
    """Run this machine's part until it ends, or until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("head", "worker", "count"))
    parser.add_argument("--address", required=True, help="this machine's")
    parser.add_argument("--head", help="the first machine's name")
    parser.add_argument("--port", type=int, required=True, help="of Ray's head")
    parser.add_argument("--nodes", type=int, help="how many machines there are")
    parser.add_argument("--patience", type=float, required=True, help="seconds until all are there")
    words, command = sys.argv[1:], []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    given = parser.parse_args(words)
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    signal.signal(signal.SIGTERM, _on_stop)
    deadline = time.monotonic() + given.patience
    if given.role == "worker":
        sys.exit(_worker(given, deadline=deadline))
    if given.role == "count":
        _count(given, deadline=deadline)
        return
    sys.exit(_head(given, command, deadline=deadline))


def _on_stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not interrupt the tidying up
    sys.exit(128 + signal.SIGTERM)


def _worker(given: argparse.Namespace, *, deadline: float) -> int:
    head = _address_of(given.head, deadline=deadline)
    words = (f"--address={head}:{given.port}",)
    while True:
        _await_port(head, given.port, deadline=deadline)
        began = time.monotonic()
        with _ray(words, given, removes=head != given.address) as process:
            code = process.wait()
        now = time.monotonic()
        if now - began > _LONGEST_START or now > deadline:
            return code or 1
        print(_AGAIN, flush=True)


def _head(given: argparse.Namespace, command: Sequence[str], *, deadline: float) -> int:
    words = (
        "--head",
        f"--port={given.port}",
        f"--ray-client-server-port={given.port + 1}",
        "--include-dashboard=false",
        f"--temp-dir={_folder(given.port)}",
    )
    address = f"{given.address}:{given.port}"
    while True:
        try:
            with _ray(words, given, removes=True) as process:
                _await_port(given.address, given.port, deadline=deadline, process=process)
                _await_nodes(given, deadline=deadline, process=process)
                return _serve(command, address=address, process=process)
        except _NotStartedError:
            print(_AGAIN, flush=True)


def _serve(command: Sequence[str], *, address: str, process: subprocess.Popen[bytes]) -> int:
    """The server's exit code."""
    with _running(command, {**os.environ, "RAY_ADDRESS": address}) as server:
        while (code := server.poll()) is None:
            if process.poll() is not None:
                sys.exit("Ray's head has ended by itself")
            time.sleep(_POLL)
        return code if code >= 0 else 128 - code


@contextmanager
def _ray(
    words: Sequence[str], given: argparse.Namespace, *, removes: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """This machine's part of the cluster; with `removes`, its folder is removed at the end."""
    command = (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *("--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"),
        f"--node-ip-address={given.address}",
        *words,
    )
    try:
        with _running(command, {**_PATIENT, **_without_secrets()}) as ray:
            yield ray
    finally:
        if removes:
            shutil.rmtree(_folder(given.port), ignore_errors=True)


def _without_secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def _folder(port: int) -> Path:
    """Ray's folder, alike on all machines. Short, as the names of sockets are.

    Its default, /tmp/ray, may be another user's.
    """
    return Path(f"/tmp/ray-{os.getuid()}-{port}")  # noqa: S108 - alike on all machines


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_port(
    host: str, port: int, *, deadline: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Wait until Ray's head listens."""
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=5):
            return
        _require_patience(f"Ray's head at {host}:{port} does not answer", deadline, process)


def _await_nodes(
    given: argparse.Namespace, *, deadline: float, process: subprocess.Popen[bytes]
) -> None:
    """Wait until all machines have joined.

    A child asks: a call of Ray's may take minutes, and notices neither a signal nor that the head
    has ended meanwhile.
    """
    command = (
        *(sys.executable, __file__, "count", "--address", given.address),
        *("--port", str(given.port), "--nodes", str(given.nodes)),
        *("--patience", str(deadline - time.monotonic())),
    )
    with _running(command, _without_secrets()) as child:
        while (code := child.poll()) is None and process.poll() is None:
            if time.monotonic() > deadline + _GRACE:
                sys.exit(f"Ray's head at {given.address} does not answer, {_OVER}")
            time.sleep(_POLL)
    if code == 0:
        return
    if time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):  # it may end just after the child that noticed
            process.wait(_GRACE)
            raise _NotStartedError
    sys.exit(code or 1)


def _count(given: argparse.Namespace, *, deadline: float) -> None:
    """Return when all machines have joined."""
    ray = importlib.import_module("ray")
    address = f"{given.address}:{given.port}"
    while not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except Exception:  # noqa: BLE001 - whatever it is, Ray's own output says more
            _require_patience(f"Ray's head at {address} does not answer", deadline)
    said = 0
    while (there := sum(node["Alive"] for node in ray.nodes())) < given.nodes:
        if there != said:
            print(f"{there} of {given.nodes} machines have joined the Ray cluster", flush=True)
        said = there
        _require_patience(f"{there} of {given.nodes} machines have joined", deadline)
    ray.shutdown()
    print(f"all {given.nodes} machines have joined the Ray cluster at {address}", flush=True)


def _address_of(host: str, *, deadline: float) -> str:
    while True:
        with suppress(OSError):
            return socket.gethostbyname(host)
        _require_patience(f"the name {host} is not known here", deadline)


def _require_patience(
    problem: str, deadline: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Sleep for a moment. Exits if there is no time left; raises if Ray has ended."""
    if process is not None and process.poll() is not None and time.monotonic() < deadline:
        raise _NotStartedError
    if time.monotonic() > deadline:
        sys.exit(f"{problem}, {_OVER}")
    time.sleep(_POLL)


if __name__ == "__main__":
    main()
