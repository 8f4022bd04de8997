"""A real control plane on loopback: etcd, kube-apiserver and kube-controller-manager."""

from __future__ import annotations

import os
import secrets
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.leased_ports import leased_port

PROGRAMS = Path(
    os.environ.get("KUBERNETES_PROGRAMS", Path.home() / ".cache/enginehouse/test-kubernetes")
)
_NAMES = ("etcd", "kube-apiserver", "kube-controller-manager")
_LONGEST = 120.0


def is_installed() -> bool:
    """Whether tools/build_kubernetes.sh has built the programs."""
    return all((PROGRAMS / name).exists() for name in _NAMES)


@dataclass(frozen=True)
class ControlPlane:
    """Where a cluster answers, and for whom."""

    address: str
    token: str
    stranger: str
    """The token of somebody who may do nothing."""

    def kubeconfig(self, *, token: str | None = None) -> dict[str, Any]:
        """A kubeconfig that leads here."""
        cluster = {"server": self.address, "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "real",
            "clusters": [{"name": "real", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": token or self.token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "me"}}],
        }


@contextmanager
def running_control_plane(folder: Path) -> Iterator[ControlPlane]:
    """A cluster without nodes while the block lasts; `folder` is for its data and logs."""
    with ExitStack() as stack:
        ports = [stack.enter_context(leased_port()) for _ in range(3)]
        plane = ControlPlane(
            f"https://127.0.0.1:{ports[2]}", secrets.token_hex(16), secrets.token_hex(16)
        )
        (folder / "tokens.csv").write_text(
            f'{plane.token},me,me,"system:masters"\n{plane.stranger},stranger,stranger\n'
        )
        (folder / "kubeconfig").write_text(yaml.safe_dump(plane.kubeconfig()))
        key = folder / "accounts.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
        )
        store, peers = (f"http://127.0.0.1:{port}" for port in ports[:2])
        commands = {
            "etcd": [
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={store}",
                f"--advertise-client-urls={store}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
                "--unsafe-no-fsync",
            ],
            "kube-apiserver": [
                f"--etcd-servers={store}",
                f"--secure-port={ports[2]}",
                "--bind-address=127.0.0.1",
                f"--cert-dir={folder / 'certificates'}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--disable-admission-plugins=ServiceAccount",
            ],
            "kube-controller-manager": [
                f"--kubeconfig={folder / 'kubeconfig'}",
                "--controllers=job,garbagecollector,namespace",
                "--leader-elect=false",
                "--port=0",
                "--secure-port=0",
                f"--cert-dir={folder / 'certificates'}",
                "--concurrent-gc-syncs=2",
            ],
        }
        for name, flags in commands.items():
            stack.enter_context(_running(name, flags, folder))
            if name == "kube-apiserver":
                _await_ready(plane, folder / f"{name}.log")
        yield plane


@contextmanager
def _running(name: str, flags: list[str], folder: Path) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        command = [str(PROGRAMS / name), *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(plane: ControlPlane, log: Path) -> None:
    tls = ssl._create_unverified_context()
    request = urllib.request.Request(
        f"{plane.address}/api/v1/namespaces/default",
        headers={"Authorization": f"Bearer {plane.token}"},
    )
    deadline = time.monotonic() + _LONGEST
    while True:
        try:
            with urllib.request.urlopen(request, context=tls, timeout=5):
                return
        except (OSError, urllib.error.HTTPError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
