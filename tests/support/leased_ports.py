"""Ports for programs that tests start themselves, leased like a server's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from enginehouse.servers.ports import lease_ports, release_ports
from enginehouse.store.layout import Layout

LOOPBACK = "127.0.0.1"


@contextmanager
def leased_port() -> Iterator[int]:
    """A port that nobody else on this machine is given while the block lasts."""
    layout = Layout.from_environment()
    lease = lease_ports(layout, host=LOOPBACK, wanted=None, name="test")
    try:
        yield lease.port
    finally:
        release_ports(layout, lease)


def free_port() -> int:
    """A port that a server may be told to take; outgoing connections are never given it."""
    with leased_port() as port:
        return port
