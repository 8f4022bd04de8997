"""Ports, leased between processes: two servers that start at once never want the same one.

A lease is a file below `layout.ports`, written under a lock, that names the process it belongs to;
a lease whose owner is dead is no lease. Besides the HTTP port it covers a range for the engine's
internal ports. Ports come from outside the range that the kernel gives to outgoing connections,
for those could take one between our look and the server's bind, seconds later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from pathlib import Path

import msgspec
import psutil
from filelock import FileLock

from enginehouse.core.errors import PortError
from enginehouse.processes.tree import ProcessIdentity, identify, is_alive
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout

INTERNAL_PORTS = 31
_BLOCK = INTERNAL_PORTS + 1
_LOWEST = 20_000
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - where engines bind their internal ports; only probed
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortLease(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP port and INTERNAL_PORTS ports from `internal` on, for `owner` while it lives."""

    name: str
    port: int
    internal: int
    owner: ProcessIdentity


def lease_ports(layout: Layout, *, host: str, wanted: int | None, name: str) -> PortLease:
    """A lease owned by this process, on `wanted` or on a free port. Blocks for milliseconds.

    Raises PortError: who has the wanted port, or that none is free; StoreError.
    """
    owner = identify(os.getpid())
    assert owner is not None
    with _locked(layout):
        leases = _live_leases(layout)
        _demand_free(wanted, host=host, leases=leases)
        taken = {port for lease in leases for port in _covered(lease)}
        for base in _blocks():
            if wanted in range(base, base + _BLOCK) or taken & {*range(base, base + _BLOCK)}:
                continue
            if all(_free(port, host=_EVERYWHERE) for port in range(base, base + _BLOCK)):
                lease = PortLease(
                    name=name,
                    port=base if wanted is None else wanted,
                    internal=base + 1,
                    owner=owner,
                )
                _write(layout, lease)
                return lease
    raise PortError(
        f"no {_BLOCK} ports in a row are free for a server",
        why=f"{len(leases)} servers hold leases below {layout.ports}",
        fix="stop some: enginehouse ps, enginehouse stop NAME",
    )


def hand_over(layout: Layout, lease: PortLease, *, owner: ProcessIdentity) -> PortLease:
    """The same lease, held from now on by the server itself and so for as long as it lives."""
    lease = msgspec.structs.replace(lease, owner=owner)
    with _locked(layout):
        _write(layout, lease)
    return lease


def release_ports(layout: Layout, lease: PortLease) -> None:
    """Give the lease back. Idempotent."""
    with _locked(layout):
        _file(layout, lease).unlink(missing_ok=True)


def is_free(port: int, *, host: str) -> bool:
    """Whether a server could listen on the port now."""
    return _free(port, host=host)


def who_has(port: int) -> str | None:
    """The process that listens on the port ("python (pid 4711)"), if we may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def _demand_free(port: int | None, *, host: str, leases: list[PortLease]) -> None:
    for lease in leases:
        if port in _covered(lease):
            raise PortError(
                f"port {port} belongs to the server {lease.name} (pid {lease.owner.pid})",
                fix=f"stop it (enginehouse stop {lease.name}), or leave out the port",
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


def _free(port: int, *, host: str) -> bool:
    try:
        _bind(port, host=host)
    except OSError:
        return False
    return True


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
    return (lease.port, *range(lease.internal, lease.internal + INTERNAL_PORTS))


def _live_leases(layout: Layout) -> list[PortLease]:
    leases = []
    for file in layout.ports.glob("*.json"):
        try:
            lease = msgspec.json.decode(file.read_bytes(), type=PortLease)
        except (msgspec.MsgspecError, OSError, RecursionError):
            lease = None  # torn by a crash: whatever it stood for is over
        if lease is not None and is_alive(lease.owner):
            leases.append(lease)
        else:
            file.unlink(missing_ok=True)
    return leases


def _file(layout: Layout, lease: PortLease) -> Path:
    return layout.ports / f"{lease.internal}.json"


def _write(layout: Layout, lease: PortLease) -> None:
    write_whole(_file(layout, lease), msgspec.json.encode(lease))


def _locked(layout: Layout) -> FileLock:
    layout.ports.mkdir(parents=True, exist_ok=True)
    return FileLock(layout.ports / "lock", timeout=30)
