"""A Docker daemon of the tests' own, with an image that has nothing but folders.

The programs in a container are this machine's: its `/usr` is mounted. So nothing is pulled from
anywhere. The daemon has no network, and touches no rules of the firewall.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

IMAGE = "enginehouse-test"
_START, _STOP = 60.0, 30.0  # seconds


class DockerMissingError(Exception):
    """No daemon can be started here; the message says why."""


@dataclass(frozen=True)
class Daemon:
    """A daemon: what docker needs to find it, and its folder."""

    environment: Mapping[str, str]
    folder: Path

    def docker(self, *words: str, content: bytes | None = None) -> str:
        """What a docker command prints."""
        done = subprocess.run(
            ["docker", *words],
            env={**os.environ, **self.environment},
            input=content,
            capture_output=True,
            timeout=_START,
            check=True,
        )
        return done.stdout.decode()

    def clear(self) -> None:
        """Remove every container."""
        if names := self.docker("ps", "--all", "--quiet").split():
            self.docker("rm", "--force", *names)


def lives_in_a_container(pid: int) -> bool:
    """Whether a process has this number in the container that it is in."""
    for process in psutil.process_iter():
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        fields = dict(line.partition(":")[::2] for line in status.splitlines())
        numbers = fields.get("NSpid", "").split()
        if numbers[1:] == [str(pid)] and "Z" not in fields["State"]:
            return True
    return False


@contextmanager
def docker_daemon() -> Iterator[Daemon]:
    """A daemon and its image; nothing of it is left in the end. Raises DockerMissingError."""
    if os.geteuid() != 0:
        raise DockerMissingError("dockerd runs only as root")
    if missing := [name for name in ("dockerd", "containerd", "docker") if not shutil.which(name)]:
        raise DockerMissingError(f"not installed: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="dockerd"))
    socket = folder / "docker.sock"
    words = [
        "dockerd",
        f"--data-root={folder / 'data'}",
        f"--exec-root={folder / 'exec'}",
        f"--pidfile={folder / 'pid'}",
        f"--host=unix://{socket}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    daemon = Daemon({"DOCKER_HOST": f"unix://{socket}"}, folder)
    try:
        _await(daemon, process)
        daemon.docker("import", "-", IMAGE, content=_image())
        yield daemon
        daemon.clear()
    finally:
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _await(daemon: Daemon, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            daemon.docker("version")
        except subprocess.CalledProcessError:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (daemon.folder / "log").read_text(errors="replace")
                raise DockerMissingError(f"dockerd did not start:\n{log[-2000:]}") from None
            time.sleep(0.2)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    children = []
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(children, timeout=_STOP)
    for child in left:
        child.kill()


def _image() -> bytes:
    """A file system of empty folders, in which `/usr` takes the place of `/bin` and `/lib`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(folder)
        for name in ("bin", "lib", "lib64", "sbin"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(link)
        for name, text in (
            ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("hosts", "127.0.0.1 localhost\n"),
        ):
            file = tarfile.TarInfo(f"etc/{name}")
            file.size, file.mode = len(text), 0o644
            archive.addfile(file, io.BytesIO(text.encode()))
    return content.getvalue()
