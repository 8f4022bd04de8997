from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from enginehouse.core.errors import PortError
from enginehouse.processes.tree import identify
from enginehouse.servers import ports
from enginehouse.servers.ports import INTERNAL_PORTS, hand_over, is_free, lease_ports, release_ports

LOOPBACK = "127.0.0.1"


@pytest.fixture
def listener():
    """A socket that listens on loopback."""
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        held.listen()
        yield held


def lease(layout, *, wanted=None, name="server", host=LOOPBACK):
    """Lease ports as a server does."""
    return lease_ports(layout, host=host, wanted=wanted, name=name)


def covered(held):
    """Every port of a lease."""
    return {held.port, *range(held.internal, held.internal + INTERNAL_PORTS)}


def test_leases_never_overlap(layout):
    """Many leases at once, from many threads, have no port in common."""
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda i: lease(layout, name=f"s{i}"), range(24)))
    assert len(set().union(*map(covered, leases))) == 24 * (INTERNAL_PORTS + 1)


def test_leased_ports_are_free_and_not_ephemeral(layout):
    """A server can bind what was leased, and no outgoing connection takes it in between."""
    held = lease(layout)
    assert all(is_free(port, host=LOOPBACK) for port in covered(held))
    low, high = map(int, ports._EPHEMERAL.read_text().split())
    assert not covered(held) & set(range(low, high + 1))


def test_released_port_can_be_leased_again(layout):
    """A lease given back is no longer in the way; giving it back twice does no harm."""
    held = lease(layout)
    release_ports(layout, held)
    release_ports(layout, held)
    assert lease(layout, wanted=held.port).port == held.port


def test_wanted_port_of_another_server_is_refused_with_its_name(layout):
    """The message says which server has the port and how to stop it."""
    held = lease(layout, name="first")
    with pytest.raises(PortError, match="server first") as caught:
        lease(layout, wanted=held.port)
    assert "enginehouse stop first" in caught.value.fix
    with pytest.raises(PortError, match="server first"):
        lease(layout, wanted=held.internal + 3)


def test_wanted_port_of_a_stranger_is_refused_with_its_pid(layout, listener):
    """A port that some process listens on is refused, and the process is named."""
    port = listener.getsockname()[1]
    with pytest.raises(PortError, match=rf"port {port} is taken by .*\(pid {os.getpid()}\)"):
        lease(layout, wanted=port)


def test_address_of_another_machine_is_refused(layout):
    """A host that is not ours says so, instead of `no port is free`."""
    with pytest.raises(PortError, match=r"cannot listen on 192\.0\.2\.1") as caught:
        lease(layout, wanted=45_000, host="192.0.2.1")
    assert "address of this machine" in caught.value.fix


def test_a_free_port_on_an_address_of_another_machine_is_refused_too(layout):
    """Without a wanted port the host is tried, too, before anything starts."""
    with pytest.raises(PortError, match=r"cannot listen on 192\.0\.2\.1"):
        lease(layout, host="192.0.2.1")


def test_lease_of_a_dead_process_is_no_lease(layout):
    """After kill -9 of its owner, a port is free for the next."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held = hand_over(layout, lease(layout), owner=identify(child.pid))
    with pytest.raises(PortError):
        lease(layout, wanted=held.port)
    child.kill()
    child.wait()
    assert lease(layout, wanted=held.port).port == held.port


def test_torn_lease_is_dropped(layout):
    """A lease file cut short by a crash blocks nothing."""
    held = lease(layout)
    file = layout.ports / f"{held.internal}.json"
    file.write_bytes(msgspec.json.encode(held)[:20])
    assert lease(layout, wanted=held.port).port == held.port


def test_when_all_ports_are_taken_it_says_so(layout, monkeypatch):
    """No free range is an error that says what to do, not an endless search."""
    monkeypatch.setattr(ports, "_blocks", list)
    with pytest.raises(PortError, match="no 32 ports") as caught:
        lease(layout)
    assert "enginehouse stop" in caught.value.fix
