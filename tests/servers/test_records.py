from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.processes.tree import identify
from enginehouse.servers import records
from enginehouse.servers.ports import PortLease
from enginehouse.servers.records import (
    ServerRecord,
    ServerState,
    find_server,
    list_servers,
    make_folder,
    remove_record,
    write_record,
)

US = identify(os.getpid())


@pytest.fixture
def sleeper():
    """A live process that leads a session."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    yield child
    child.kill()
    child.wait()


def record(process, *, name="one", started=1.0, **changes: object) -> ServerRecord:
    """A record of that process, with some fields changed."""
    made = ServerRecord(
        name=name,
        process=process,
        starter=US,
        detached=False,
        state=ServerState.READY,
        base_url="http://127.0.0.1:4000",
        host="127.0.0.1",
        models=("m",),
        engine="vllm",
        version="0.32.0",
        environment="key",
        model="org/m",
        command=("python", "-m", "x"),
        has_api_key=True,
        lease=PortLease(name=name, port=4000, internal=4001, owner=process),
        log=Path("/logs/server.log"),
        started=started,
    )
    return msgspec.structs.replace(made, **changes)


def keep(layout, made: ServerRecord) -> ServerRecord:
    """Write it, and its folder."""
    (layout.servers / made.name).mkdir(parents=True, exist_ok=True)
    write_record(layout, made)
    return made


def states(layout):
    """The state of every server by name."""
    return {status.record.name: status.state for status in list_servers(layout)}


def test_a_record_survives_the_disk(layout, sleeper):
    """What is read is what was written, and only its owner may read it."""
    made = keep(layout, record(identify(sleeper.pid)))
    assert find_server("one", layout=layout) == made
    mode = (layout.servers / "one" / "server.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_states(layout, sleeper):
    """What its record says, whether it lives, and whether anybody is left to stop it."""
    alive = identify(sleeper.pid)
    gone = msgspec.structs.replace(alive, started=alive.started - 9)
    keep(layout, record(alive, name="starting", state=ServerState.STARTING))
    keep(layout, record(alive, name="ready"))
    keep(layout, record(alive, name="abandoned", starter=gone))
    keep(layout, record(alive, name="detached", starter=gone, detached=True))
    keep(layout, record(gone, name="failed"))
    keep(layout, record(gone, name="reaped", starter=gone))
    assert states(layout) == {
        "starting": ServerState.STARTING,
        "ready": ServerState.READY,
        "abandoned": ServerState.READY,
        "detached": ServerState.READY,
        "failed": ServerState.FAILED,
    }
    abandoned = [status.record.name for status in list_servers(layout) if status.abandoned]
    assert abandoned == ["abandoned"]
    (ended,) = (s for s in list_servers(layout, ended=True) if s.record.name == "reaped")
    assert ended.state is ServerState.STOPPED


def test_list_has_the_processes_and_is_ordered(layout, sleeper):
    """Every process of a server is listed; the oldest server comes first."""
    alive = identify(sleeper.pid)
    keep(layout, record(alive, name="b", started=1.0))
    keep(layout, record(alive, name="a", started=2.0))
    listed = list_servers(layout)
    assert [status.record.name for status in listed] == ["b", "a"]
    assert listed[0].pids == (sleeper.pid,)


def test_no_servers_is_an_empty_list(layout):
    """A fresh machine has none, and listing makes no folder."""
    assert list_servers(layout) == []
    assert not layout.servers.exists()


@pytest.mark.parametrize("content", ['{"name": "to', '{"x": ' + "[" * 100_000])
def test_a_torn_record_is_passed_over(layout, sleeper, content):
    """A record cut short by a crash hides no other server."""
    keep(layout, record(identify(sleeper.pid), name="good"))
    file = layout.servers / "torn" / "server.json"
    file.parent.mkdir()
    file.write_text(content)
    assert states(layout) == {"good": ServerState.READY}


def test_an_unknown_name_lists_the_known(layout, sleeper):
    """A wrong name is answered with the right ones; a path is no name."""
    keep(layout, record(identify(sleeper.pid), name="smollm2-7f3a"))
    for wrong in ("smollm2-7f3", "../smollm2-7f3a/../none"):
        with pytest.raises(UnknownNameError, match=re.escape(repr(wrong))) as caught:
            find_server(wrong, layout=layout)
        assert "smollm2-7f3a" in caught.value.fix


def test_names_are_readable_and_unique(layout):
    """A name comes from the model's, without anything that a folder or a shell would mind."""
    names = {make_folder(layout, model="Org/Tiny Model (v2)!", name=None).name for _ in range(20)}
    assert len(names) == 20
    assert all(records._NAME.fullmatch(name) for name in names)
    assert all(name.startswith("tiny-model-v2-") for name in names)
    assert make_folder(layout, model="//", name=None).name.startswith("server-")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-rf", "A", "a b", ".hidden"])
def test_a_name_that_cannot_be_a_folder_is_refused(layout, name):
    """A wanted name is checked before it becomes a path."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(name))):
        make_folder(layout, model="m", name=name)


def test_the_process_table_is_read_once_per_server(layout, sleeper, monkeypatch):
    """It is what a list of servers costs on a busy machine."""
    keep(layout, record(identify(sleeper.pid)))
    looks = []
    monkeypatch.setattr(
        psutil, "process_iter", lambda: looks.append(1) or iter([psutil.Process(sleeper.pid)])
    )
    (status,) = list_servers(layout)
    assert status.pids == (sleeper.pid,)
    assert len(looks) == 1


def test_a_name_in_use_is_refused_and_a_dead_one_is_taken_over(layout, sleeper):
    """A live server keeps its name; a dead one's name, record and log make way."""
    alive = identify(sleeper.pid)
    keep(layout, record(alive))
    with pytest.raises(ConfigurationError, match=rf"one .*\(pid {sleeper.pid}\)"):
        make_folder(layout, model="m", name="one")
    gone = msgspec.structs.replace(alive, started=alive.started - 9)
    keep(layout, record(gone))
    with pytest.raises(ConfigurationError, match="called one"):  # it may be started again
        make_folder(layout, model="m", name="one")
    keep(layout, record(gone, detached=True))
    log = layout.servers / "one" / "server.log"
    log.write_text("old")
    assert make_folder(layout, model="m", name="one") == log.parent
    assert not log.exists()
    assert list_servers(layout) == []


def test_removing_keeps_the_log_but_not_every_log(layout, monkeypatch):
    """The log of an ended server can still be read; only the newest ones are kept for good."""
    monkeypatch.setattr(records, "KEPT_LOGS", 2)
    for age, name in enumerate(("new", "middle", "old")):
        folder = layout.servers / name
        folder.mkdir(parents=True)
        (folder / "server.log").write_text(name)
        os.utime(folder, (1000 - age, 1000 - age))
        remove_record(layout, name)
    make_folder(layout, model="m", name="next")
    assert {f.name for f in layout.servers.iterdir()} == {"new", "middle", "next"}
