from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import msgspec
import pytest

from enginehouse.core.errors import PortError
from enginehouse.processes.tree import identify
from enginehouse.servers import ports
from enginehouse.servers.ports import (
    INTERNAL_PORTS,
    hand_over,
    is_free,
    lease_ports,
    live_leases,
    release_ports,
)
from enginehouse.store.layout import Layout

LOOPBACK = "127.0.0.1"
# Leases six times, half a second or less after the others began, and holds the leases.
LEASING = """
import sys, time
from pathlib import Path
from enginehouse.servers.ports import INTERNAL_PORTS, lease_ports
from enginehouse.store.layout import Layout

ready, go = map(Path, sys.argv[1:])
ready.touch()
while not go.exists():
    time.sleep(0.001)
ports = []
for number in range(6):
    lease = lease_ports(Layout.from_environment(), host="127.0.0.1", wanted=None, name=str(number))
    ports += [lease.port, *range(lease.internal, lease.internal + INTERNAL_PORTS)]
print(*ports, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def listener():
    """A socket that listens on loopback."""
    with socket.socket() as held:
        held.bind((LOOPBACK, 0))
        held.listen()
        yield held


@pytest.fixture(autouse=True)
def _give_back(layout):
    """All homes share the ports: what a test leases goes back."""
    yield
    for held in live_leases(layout):
        if held.home == str(layout.state):
            release_ports(layout, held)


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


@pytest.mark.slow
def test_two_homes_never_get_the_same_port(tmp_path):
    """They lease at the same time, each in processes of its own, and see each other's leases."""
    ready, go = tmp_path / "ready", tmp_path / "go"
    ready.mkdir()
    homes = [tmp_path / name for name in ("one", "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LEASING, str(ready / str(number)), str(go)],
            env=os.environ
            | {
                "ENGINEHOUSE_HOME": str(homes[number % 2]),
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        while len(list(ready.iterdir())) < len(processes):
            time.sleep(0.01)
        go.touch()
        ports = [int(port) for process in processes for port in process.stdout.readline().split()]
    assert len(ports) == len(set(ports)) == 4 * 6 * (INTERNAL_PORTS + 1)


def test_a_wanted_port_of_another_home_is_refused(tmp_path):
    """The message says whose it is, and where it can be stopped."""
    one, two = (
        Layout(cache=tmp_path / name, state=tmp_path / name / "state", config=tmp_path / name)
        for name in ("one", "two")
    )
    held = lease(one, name="first")
    try:
        with pytest.raises(PortError, match="server first") as caught:
            lease(two, wanted=held.port)
        assert str(one.state) in caught.value.fix
    finally:
        release_ports(one, held)


def test_further_ports_are_leased(layout):
    """Where the parts of a server meet: nobody else gets them, and they are checked."""
    base = lease(layout)
    release_ports(layout, base)
    others = (base.internal + 3, base.internal + 4)
    held = lease_ports(layout, host=LOOPBACK, wanted=None, name="first", others=others)
    assert held.others == others
    assert not covered(held) & set(others)
    for again in ({"others": others[1:], "wanted": None}, {"wanted": others[0]}):
        with pytest.raises(PortError, match="server first"):
            lease_ports(layout, host=LOOPBACK, name="second", **again)
    assert hand_over(layout, held, owner=held.owner).others == others


def test_further_ports_that_listen(layout, listener):
    """Somebody else's are refused with whose they are."""
    with pytest.raises(PortError, match=f"meet.*{os.getpid()}") as caught:
        lease_ports(
            layout, host=LOOPBACK, wanted=None, name="s", others=(listener.getsockname()[1],)
        )
    assert "a new job has others" in caught.value.fix


def test_a_folder_of_leases_that_is_not_ours(layout, tmp_path, monkeypatch):
    """In a folder for everybody, somebody else may have made it, or a link: it is not used."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "ports"
    link.symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Layout, "ports", link)
    with pytest.raises(PortError, match="leased"):
        lease(layout)
    assert list((tmp_path / "elsewhere").iterdir()) == []


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
    with pytest.raises(PortError, match=rf"port {port} .*\(pid {os.getpid()}\)"):
        lease(layout, wanted=port)


def test_address_of_another_machine_is_refused(layout):
    """A host that is not ours says so, instead of `no port is free`."""
    with pytest.raises(PortError, match=r"192\.0\.2\.1") as caught:
        lease(layout, wanted=45_000, host="192.0.2.1")
    assert "address of this machine" in caught.value.fix


def test_a_free_port_on_an_address_of_another_machine_is_refused_too(layout):
    """Without a wanted port the host is tried, too, before anything starts."""
    with pytest.raises(PortError, match=r"192\.0\.2\.1"):
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
