"""An OpenSSH server of the tests' own: a login node that is this machine.

It listens on a loopback port that the system chose, and lets in whoever has the key in its folder.
As on many login nodes, every command prints a greeting first.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START = 20.0  # seconds
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_CONFIGURATION = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv {environment}
ForceCommand echo "Welcome to the cluster"; eval "$SSH_ORIGINAL_COMMAND"
"""


class SSHMissingError(Exception):
    """There are no programs to start a server from; says which were looked for."""


@dataclass(frozen=True)
class SSHServer:
    """A running server, which ssh reaches at 127.0.0.1 by `options`."""

    folder: Path
    port: int

    @property
    def options(self) -> dict[str, str | int]:
        """The port and the keys."""
        return {
            "Port": self.port,
            "IdentityFile": str(self.folder / "user_key"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
        }


@contextmanager
def ssh_server(environment: Mapping[str, str]) -> Iterator[SSHServer]:
    """A server for the length of the block, whose users have these variables.

    Raises SSHMissingError.
    """
    sshd = shutil.which("sshd", path=_PATH)
    if sshd is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        raise SSHMissingError(
            "sshd, ssh or ssh-keygen not in PATH:"
            " apt-get install --no-install-recommends openssh-server openssh-client"
        )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start without it
    folder = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
    try:
        for name in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (folder / "sshd_config").write_text(
            _CONFIGURATION.format(port=port, folder=folder, environment=words)
        )
        key = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
        with _running([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], folder, port):
            yield SSHServer(folder, port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(argv: list[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd does not answer: {(folder / 'sshd.log').read_text()}")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(_START)
