"""Ports, leased between processes: two servers that start at once never get the same one.

A lease is a file that names the process it belongs to; once that process is dead, the lease is
void. All homes of a user on one machine share one folder of leases, whose lock is held while ports
are chosen. Besides the HTTP port a lease covers a range for the engine's internal ports. Ports come
from outside the range that the kernel gives to outgoing connections, which could otherwise take one
between our check and the server's bind, seconds later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
from filelock import FileLock

from enginehouse.core.errors import PortError
from enginehouse.processes.tree import ProcessIdentity, is_alive, this_process
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout

INTERNAL_PORTS = 31
_BLOCK = INTERNAL_PORTS + 1
_LOWEST = 20_000
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where engines bind their internal ports; only probed
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortLease(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP port and INTERNAL_PORTS ports from `internal` on, for `owner` while it lives.

    `others` are further ports that were asked for. `home` is the state folder of the home that
    leased it.
    """

    name: str
    port: int
    internal: int
    owner: ProcessIdentity
    home: str = ""
    others: tuple[int, ...] = ()


def lease_ports(
    layout: Layout, *, host: str, wanted: int | None, name: str, others: Sequence[int] = ()
) -> PortLease:
    """A lease owned by this process, on `wanted` or on a free port. Blocks for milliseconds.

    `others` are ports that the server also needs, on every address. Raises PortError: who has a
    port that is asked for, that none is free, or that the folder of leases cannot be used;
    StoreError.
    """
    with _locked(layout):
        leases = live_leases(layout)
        _require_free(wanted, host=host, leases=leases, home=layout.state)
        for port in others:
            try:
                _require_free(port, host=_EVERYWHERE, leases=leases, home=layout.state)
            except PortError as error:
                error.message = f"the parts of the server cannot connect: {error.message}"
                error.fix = (
                    "stop the program that uses it, or choose another port; "
                    "a new job gets different ones"
                )
                raise
        taken = {port for lease in leases for port in _covered(lease)}.union(others)
        for base in _blocks():
            block = range(base, base + _BLOCK)
            if wanted in block or not taken.isdisjoint(block):
                continue
            if all(is_free(port, host=_EVERYWHERE) for port in block):
                lease = PortLease(
                    name=name,
                    port=base if wanted is None else wanted,
                    internal=base + 1,
                    owner=this_process(),
                    home=str(layout.state),
                    others=tuple(others),
                )
                _write(layout, lease)
                return lease
    raise PortError(
        f"no {_BLOCK} ports in a row are free for a server",
        why=f"{len(leases)} servers hold leases in {layout.ports}",
        fix="stop some: enginehouse ps, enginehouse stop NAME",
    )


def hand_over(layout: Layout, lease: PortLease, *, owner: ProcessIdentity) -> PortLease:
    """The same lease, held from now on by `owner` and so for as long as that lives."""
    lease = msgspec.structs.replace(lease, owner=owner)
    with _locked(layout):
        _write(layout, lease)
    return lease


def release_ports(layout: Layout, lease: PortLease) -> None:
    """Give the lease back. Idempotent."""
    with _locked(layout):
        _file(layout, lease).unlink(missing_ok=True)


def live_leases(layout: Layout) -> list[PortLease]:
    """The leases whose owners live, of every home of this user; removes the others' files."""
    leases = []
    for file in layout.ports.glob("*.json"):
        try:
            lease = msgspec.json.decode(file.read_bytes(), type=PortLease)
        except (msgspec.MsgspecError, OSError, RecursionError):
            lease = None  # cut short by a crash
        if lease is not None and is_alive(lease.owner):
            leases.append(lease)
        else:
            file.unlink(missing_ok=True)
    return leases


def is_free(port: int, *, host: str) -> bool:
    """Whether a server could listen on the port now."""
    try:
        _bind(port, host=host)
    except OSError:
        return False
    return True


def who_has(port: int) -> str | None:
    """The process that listens on the port ("python (pid 4711)"), if we may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def _require_free(port: int | None, *, host: str, leases: list[PortLease], home: Path) -> None:
    for lease in leases:
        if port in _covered(lease):
            stop = f"enginehouse stop {lease.name}"
            elsewhere = "" if lease.home == str(home) else f", with its state in {lease.home}"
            raise PortError(
                f"port {port} belongs to the server {lease.name} (pid {lease.owner.pid})",
                fix=f"stop it ({stop}{elsewhere}), or leave out the port",
            )
    try:
        _bind(port or 0, host=host)
    except OSError as error:
        raise _refused(port, host=host, error=error) from error


def _refused(port: int | None, *, host: str, error: OSError) -> PortError:
    if port is not None and error.errno == errno.EADDRINUSE:
        holder = who_has(port)
        return PortError(
            f"port {port} is taken" + (f" by {holder}" if holder else ""),
            why=None if holder else "the process that has it is another user's, or a container's",
            fix="stop it, name another port, or leave the port out for a free one",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return PortError(
            f"port {port} is reserved for the administrator", fix="use a port of 1024 or above"
        )
    return PortError(
        f"cannot listen on {host}",
        why=str(error),
        fix="is host an address of this machine? 127.0.0.1 always is",
    )


def _bind(port: int, *, host: str) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the server does it: a port in TIME_WAIT is free, a listening one is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _blocks() -> list[int]:
    low, high = 32_768, 60_999
    with contextlib.suppress(OSError, ValueError):
        low, high = (int(word) for word in _EPHEMERAL.read_text().split())
    ports = range(_LOWEST, low) if low - _LOWEST > 100 * _BLOCK else range(high + 1, 65_536)
    bases = list(ports[:-_BLOCK:_BLOCK]) or list(range(_LOWEST, 65_000, _BLOCK))
    random.shuffle(bases)  # other users lease from the same ports, and we don't see their leases
    return bases


def _covered(lease: PortLease) -> tuple[int, ...]:
    return (
        lease.port,
        *range(lease.internal, lease.internal + INTERNAL_PORTS),
        *lease.others,
    )


def _file(layout: Layout, lease: PortLease) -> Path:
    return layout.ports / f"{lease.internal}.json"


def _write(layout: Layout, lease: PortLease) -> None:
    write_whole(_file(layout, lease), msgspec.json.encode(lease), private=True)


def _locked(layout: Layout) -> FileLock:
    """The lock of the folder of leases, which is made if necessary.

    It lies in a folder for everybody, so another user may have made it, or a link to elsewhere.
    """
    folder = layout.ports
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise PortError(
            f"ports cannot be leased in {folder}",
            why=str(error),
            fix="make room or check the permissions",
        ) from error
    is_shared = status.st_mode & 0o077
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or is_shared:
        raise PortError(
            f"ports cannot be leased in {folder}",
            why="it is not a private folder of this user",
            fix="remove it, or have it removed by its owner or the administrator",
        )
    return FileLock(folder / "lock", timeout=30, mode=0o600)
