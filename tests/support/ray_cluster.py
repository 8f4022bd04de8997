"""A real Ray cluster of two nodes on this machine, whose jobs API is reached as any other's."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support import SUPPORT
from tests.support.leased_ports import LOOPBACK, leased_port
from tests.support.package_environment import ensure_packages

_START = 180.0  # seconds, on a machine that does much else
_STOP = 30.0
_HEAD = "127.0.0.2"  # Ray takes 127.0.0.1 for another name of the machine's own address


def ensure_ray() -> Path:
    """The interpreter of an environment with Ray, built on first use."""
    return ensure_packages("ray", requirements=SUPPORT / "ray-requirements.txt")


@dataclass(frozen=True)
class LocalCluster:
    """A cluster: the address of its dashboard, Ray's Python, and its folder."""

    address: str
    python: Path
    folder: Path
    gcs: str
    env: Mapping[str, str]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(3))

    def start_node(self, *, gpus: int = 0, **resources: int) -> subprocess.Popen[bytes]:
        """Another node, with resources of the cluster's own. `stop_node` ends it."""
        number = next(self.numbers)
        address = f"127.0.0.{number}"
        words = ["start", f"--address={self.gcs}", *_words(address, gpus, resources)]
        log = self.folder / f"node{number}.log"
        process = _ray(self.python, words, env=self.env, log=log)
        try:
            _wait(process, lambda: self.has(address), log=log)
        except BaseException:
            stop_node(process)
            raise
        return process

    def has(self, address: str) -> bool:
        """Whether the node with this address is alive."""
        nodes = json.loads(self.ask("/api/v0/nodes?limit=100") or b"{}")
        rows = nodes.get("data", {}).get("result", {}).get("result", [])
        return any(row["node_ip"] == address and row["state"] == "ALIVE" for row in rows)

    def ask(self, path: str) -> bytes | None:
        """What the dashboard answers; None for an error, or if it has only begun."""
        try:
            with urllib.request.urlopen(self.address + path) as reply:
                return bytes(reply.read())
        except OSError:
            return None


def stop_node(process: subprocess.Popen[bytes], *, number: int = signal.SIGTERM) -> None:
    """End a node's processes, all of them at once with SIGKILL, and wait until they are gone."""
    everything = _tree(process.pid)
    if number == signal.SIGTERM:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        everything |= _tree(process.pid)
        psutil.wait_procs(everything, timeout=_STOP)
    for one in everything:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(_STOP)
    psutil.wait_procs(everything, timeout=_STOP)


def _tree(pid: int) -> set[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


@contextmanager
def local_cluster(*, env: Mapping[str, str] | None = None) -> Iterator[LocalCluster]:
    """A cluster with two nodes, each of 4 CPUs and 2 GPUs that are not there.

    Its folder is short, as the names of sockets are; no job is left when the block ends.
    """
    python = ensure_ray()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "120000",  # a busy machine takes longer than 15 s
        **(env or {}),
    }
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        gcs, dashboard, client = (stack.enter_context(leased_port()) for _ in range(3))
        words = [
            "start",
            "--head",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-host={LOOPBACK}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={folder}",
            *_words(_HEAD, 2, {}),
        ]
        head = _ray(python, words, env=environment, log=folder / "head.log")
        stack.callback(stop_node, head)
        address = f"http://{LOOPBACK}:{dashboard}"
        cluster = LocalCluster(address, python, folder, f"{_HEAD}:{gcs}", environment)
        _wait(head, lambda: cluster.has(_HEAD), log=folder / "head.log")
        stack.callback(stop_node, cluster.start_node(gpus=2))
        yield cluster


def _words(address: str, gpus: int, resources: Mapping[str, int]) -> list[str]:
    return [
        "--block",
        "--disable-usage-stats",
        f"--node-ip-address={address}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--object-store-memory=80000000",
        "--num-cpus=4",
        f"--num-gpus={gpus}",
        f"--resources={json.dumps(resources)}",
    ]


def _ray(
    python: Path, words: list[str], *, env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(python.parent / "ray"), *words],
            env=dict(env),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _wait(process: subprocess.Popen[bytes], condition: Callable[[], bool], *, log: Path) -> None:
    """Wait for a node; what it printed is in the error if it does not come."""
    deadline = time.monotonic() + _START
    while not condition():
        lives = process.poll() is None and time.monotonic() < deadline
        assert lives, log.read_text(errors="replace")
        time.sleep(0.2)
