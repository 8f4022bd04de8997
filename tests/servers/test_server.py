from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import aiohttp
import msgspec
import psutil
import pytest
from tests.support.processes import command_of

from enginehouse.core.errors import (
    PortError,
    StartError,
    StopError,
    UnknownNameError,
)
from enginehouse.diagnosis import FailureKind, Rule
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.tree import identify
from enginehouse.servers import stopping
from enginehouse.servers.endpoint import attach_server, curl_line
from enginehouse.servers.ports import is_free, live_leases
from enginehouse.servers.readiness import StartLimits
from enginehouse.servers.records import ServerState, find_server, list_servers
from enginehouse.servers.server import survey
from enginehouse.servers.stopping import stop_server
from enginehouse.servers.timings import Timings

DEADLINE = 30


async def until(condition) -> None:
    """Wait for a condition, at most DEADLINE seconds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - only the kernel knows
            await asyncio.sleep(0.02)


def alive(pids) -> list[int]:
    """Those that are alive."""
    return [pid for pid in pids if identify(pid) is not None]


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    leader = psutil.Process(pid)
    return [leader.pid, *(child.pid for child in leader.children(recursive=True))]


def nothing_is_left(layout) -> bool:
    """Whether there is neither a record nor a lease, not even one of a dead process."""
    return not list_servers(layout) and not any(
        str(layout.state) in file.read_text() for file in layout.ports.glob("*.json")
    )


@pytest.mark.slow
async def test_a_server_is_ready_and_then_gone(start, layout):
    """In the block it answers under its name; after it nothing of it is left."""
    async with start() as server:
        assert server.models == ("Tiny-Model",)
        assert server.owned
        assert (server.engine, server.version, server.environment) == ("vllm", "0.32.0", "fake")
        body = {"model": "Tiny-Model", "prompt": "x", "max_tokens": 1}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.base_url}/v1/completions", json=body) as reply,
        ):
            assert reply.status == 200
        (status,) = list_servers(layout)
        assert (status.record.name, status.state) == (server.name, ServerState.READY)
        assert set(family(server.pid)) == set(status.pids)
        port = status.record.lease.port
    assert not alive(status.pids)
    assert is_free(port, host="127.0.0.1")
    assert nothing_is_left(layout)
    assert server.log.read_text()
    assert any("ready after" in line for line in start.said)


@pytest.mark.slow
async def test_curl_line_works(start):
    """The line that is shown really asks the server, key and all."""
    async with start(api_key="k3y", served_model_name="name with 'quote'") as server:
        env = {"PATH": os.environ["PATH"], "ENGINEHOUSE_API_KEY": "k3y"}
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            curl_line(server),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, _ = await shell.communicate()
        assert json.loads(output)["model"] == "name with 'quote'"


@pytest.mark.slow
async def test_api_key_is_in_no_file_and_on_no_command_line(start, layout):
    """Neither record, log nor argument vector gives the key away."""
    async with start(api_key="s3cret-key") as server:
        assert "s3cret-key" not in repr(server)
        assert "s3cret-key" not in " ".join(psutil.Process(server.pid).cmdline())
        for file in (layout.servers / server.name).iterdir():
            assert "s3cret-key" not in file.read_text()


@pytest.mark.slow
async def test_two_servers_at_once(start):
    """Two that start together get different ports and names."""
    async with start() as one, start() as two:
        assert one.base_url != two.base_url
        assert one.name != two.name


@pytest.mark.slow
async def test_exception_in_the_block_stops_the_server(start, layout):
    """The user's own error passes through, and the server is gone."""
    with pytest.raises(RuntimeError, match="mine"):
        async with start() as server:
            raise RuntimeError("mine")
    assert not alive([server.pid])
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_cancellation_in_the_block_stops_the_server(start, layout):
    """Ctrl-C in the block leaves nothing."""
    ready = asyncio.Event()

    async def use() -> None:
        async with start():
            ready.set()
            await asyncio.sleep(60)

    using = asyncio.create_task(use())
    await ready.wait()
    (status,) = list_servers(layout)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert not alive(status.pids)
    assert nothing_is_left(layout)


async def test_cancellation_during_the_start_stops_the_server(start, layout):
    """Ctrl-C while it loads leaves nothing."""

    async def use() -> None:
        async with start(env={"VLLM_FAKE_START_DELAY": "inf"}):
            pytest.fail("it never gets ready")

    using = asyncio.create_task(use())
    await until(lambda: list_servers(layout))
    (status,) = list_servers(layout)
    assert status.state is ServerState.STARTING
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert not alive(status.pids)
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_cancelled_twice_it_is_killed(start, layout):
    """A second Ctrl-C, while it stops, does not leave a server that ignores SIGTERM."""
    ready = asyncio.Event()

    async def use() -> None:
        async with start(env={"VLLM_FAKE_IGNORE_SIGTERM": "1"}):
            ready.set()
            await asyncio.sleep(60)

    using = asyncio.create_task(use())
    await ready.wait()
    (status,) = list_servers(layout)
    using.cancel()
    await until(lambda: "stopping the server" in start.said)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert not alive(status.pids)
    assert nothing_is_left(layout)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["group", "session"])
async def test_a_surviving_child_is_ended(start, layout, where):
    """An EngineCore that outlives the API server and ignores SIGTERM does not outlive the block."""
    async with start(env={"VLLM_FAKE_CHILD": where}) as server:
        await until(lambda: len(list_servers(layout)[0].pids) > 1)
        pids = family(server.pid)
        assert len(pids) > 1
    assert not alive(pids)


@pytest.mark.slow
async def test_a_killed_leader_leaves_no_orphan(start, layout):
    """After kill -9 of the API server, its children are ended at the end of the block."""
    async with start(env={"VLLM_FAKE_CHILD": "group"}) as server:
        pids = family(server.pid)
        assert len(pids) > 1
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: list_servers(layout)[0].state is ServerState.FAILED)
    assert not alive(pids)
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_a_failed_start_says_why_at_once(start, layout):
    """The process ends: cause and log are in the error, long before the limit."""
    began = time.monotonic()
    with pytest.raises(StartError, match="exit code 1") as caught:
        async with start(env={"VLLM_FAKE_START_ERROR": "ValueError: no room for the cache"}):
            pytest.fail("it cannot be ready")
    assert time.monotonic() - began < 20
    assert caught.value.why == "ValueError: no room for the cache"
    assert caught.value.fix
    assert "no room" in caught.value.log.read_text()
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_a_failing_diagnosis_does_not_hide_why_a_start_failed(start, monkeypatch):
    """As when a plug-in's rules raise."""
    broken = Rule(FailureKind.UNKNOWN, r"no room", "{no_such_group}", "")
    profile = replace(VllmEngine.log_profile, rules=(broken,))
    monkeypatch.setattr(VllmEngine, "log_profile", profile)
    with pytest.raises(StartError, match="exit code 1"):
        async with start(env={"VLLM_FAKE_START_ERROR": "ValueError: no room for the cache"}):
            pytest.fail("it cannot be ready")
    assert any("KeyError" in said for said in start.said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (StartLimits(total=0.7, silence=30), "not ready after 0.7 s"),
        (StartLimits(total=30, silence=0.7), "neither logged nor loaded anything for 0.7 s"),
    ],
)
async def test_a_start_that_takes_too_long_is_stopped(start, layout, limits, said):
    """After a limit it is stopped, and the error says which one and how far it came."""
    with pytest.raises(StartError, match=said) as caught:
        async with start(env={"VLLM_FAKE_START_DELAY": "inf"}, limits=limits):
            pytest.fail("it cannot be ready")
    assert caught.value.why == "it has not answered yet"
    assert "--progress-timeout" in caught.value.fix
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_the_cores_that_it_uses_are_told_on_a_cpu_only(start):
    """Since the last call; on a GPU the CPU's work says nothing."""
    async with start.owned() as owned:
        assert owned.cores() is None
        assert owned.cores() >= 0
        owned.environment = msgspec.structs.replace(owned.environment, variant="cuda")
        assert owned.cores() is None


@pytest.mark.slow
async def test_a_restart_keeps_name_and_url(start, layout):
    """A server that was killed is a new process at the old address, with a log of its own."""
    async with start.owned(env={"VLLM_FAKE_CHILD": "group"}) as owned:
        before = owned.server
        pids = family(before.pid)
        os.kill(before.pid, signal.SIGKILL)
        await until(lambda: owned.exit_code() is not None)
        await owned.restart()
        after = owned.server
        assert (after.name, after.base_url, after.models) == (
            before.name,
            before.base_url,
            before.models,
        )
        assert after.pid != before.pid
        assert (before.log.name, after.log.name) == ("server.log", "server-2.log")
        assert not alive(pids)
        (status,) = list_servers(layout)
        assert (status.state, status.record.log) == (ServerState.READY, after.log)
    assert not alive([after.pid])
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_an_ended_server_is_still_known(start, layout):
    """Its name, its end and its log can be asked for as long as the log is kept."""
    async with start(name="mine") as server:
        pass
    (status,) = list_servers(layout, ended=True)
    assert (status.record.name, status.state) == ("mine", ServerState.STOPPED)
    assert find_server("mine", layout=layout, ended=True).log == server.log
    with pytest.raises(StartError):
        async with start(name="mine", env={"VLLM_FAKE_START_ERROR": "ValueError: no"}):
            pytest.fail("it cannot be ready")
    (status,) = list_servers(layout, ended=True)
    assert status.state is ServerState.FAILED


@pytest.mark.slow
async def test_a_survey_asks_for_health(start, layout):
    """A server whose process lives but that does not answer is not called ready."""
    record = await start.detached(name="deaf")
    assert [status.state for status in await survey(layout)] == [ServerState.READY]
    os.kill(record.process.pid, signal.SIGSTOP)
    try:
        statuses = await survey(layout, timings=Timings(probe=0.2))
        assert [status.state for status in statuses] == [ServerState.DEGRADED]
    finally:
        os.kill(record.process.pid, signal.SIGCONT)


@pytest.mark.slow
async def test_a_taken_port_is_refused(start):
    """A wanted port that another server of ours has names that server."""
    async with start() as first:
        port = int(first.base_url.rpartition(":")[2])
        with pytest.raises(PortError, match=f"server {first.name}"):
            async with start(port=port):
                pytest.fail("it must not start")


@pytest.mark.slow
async def test_an_open_address_has_no_development_endpoints(start):
    """On every address: reached through loopback, with the key, without development endpoints."""
    async with start(host="0.0.0.0", api_key="k") as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        env = psutil.Process(server.pid).environ()
        assert "VLLM_SERVER_DEV_MODE" not in env
        attached = await attach_server(server.base_url, api_key="k", engine=VllmEngine())
        assert attached.models == server.models


@pytest.mark.slow
async def test_detached_server_is_listed_used_and_stopped(start, layout):
    """It outlives the call, can be found by name, and stops to the last process."""
    record = await start.detached(name="mine", env={"VLLM_FAKE_CHILD": "group"})
    (status,) = list_servers(layout)
    assert (status.record, status.state) == (record, ServerState.READY)
    assert (await attach_server(record.base_url, engine=VllmEngine())).models == ("Tiny-Model",)
    await stop_server("mine", layout=layout)
    assert not alive(status.pids)
    assert is_free(record.lease.port, host="127.0.0.1")
    assert nothing_is_left(layout)
    with pytest.raises(UnknownNameError):
        await stop_server("mine", layout=layout)


@pytest.mark.slow
async def test_detached_start_that_fails_leaves_nothing(start, layout):
    """A detached server that does not become ready is stopped, not left to itself."""
    with pytest.raises(StartError, match="exit code 1"):
        await start.detached(env={"VLLM_FAKE_START_ERROR": "ValueError: no"})
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_a_dead_server_is_shown_dead_and_cleaned_by_stop(start, layout):
    """After kill -9 of a detached server it is listed as dead, its orphans too; stop ends them."""
    record = await start.detached(name="gone", env={"VLLM_FAKE_CHILD": "group"})
    pids = family(record.process.pid)
    os.kill(record.process.pid, signal.SIGKILL)
    await until(lambda: list_servers(layout)[0].state is ServerState.FAILED)
    await stop_server("gone", layout=layout, timings=Timings(stop_grace=1))
    assert not alive(pids)
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_stop_of_somebody_elses_foreground_server(start, layout):
    """Stopped by name from outside, a foreground server's own end is quiet."""
    async with start() as server:
        await stop_server(server.name, layout=layout)
        assert not alive([server.pid])
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_a_port_that_stays_taken_is_no_stop(start, layout, monkeypatch):
    """Gone processes are not enough: if the port is not free, the stop has failed and says who."""
    monkeypatch.setattr(stopping, "is_free", lambda *_, **__: False)
    with pytest.raises(StopError, match="still taken"):
        async with start(timings=Timings(port=0.1)):
            pass
    monkeypatch.undo()
    assert nothing_is_left(layout)


KILLED = """
import asyncio, signal, sys
from pathlib import Path
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.servers.server import OwnedServer, start_server
from enginehouse.store.layout import Layout

home, python = map(Path, sys.argv[1:])
model = ResolvedModel(reference="m", name="m", source="path", path=home, weights_digest=None,
                      chat_template_digest=None, unknown={}, notes=())
environment = EngineEnvironment(engine="vllm", version="0.32.0", variant="cpu", executable=python,
                                key="fake", flags={})
layout = Layout(cache=home / "cache", state=home / "state", config=home / "config")

async def main():
    owned = OwnedServer(model=model, engine=VllmEngine(), environment=environment,
                        options=ServerOptions(), context=Context(layout=layout))
    async with start_server(owned):
        print("ready", flush=True)
        await asyncio.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin with it ignored
asyncio.run(main())
"""


@pytest.fixture
def controller(layout, environment, tmp_path):
    """A process of its own that serves in the foreground, ready."""
    script = tmp_path / "controller.py"
    script.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, str(script), str(layout.state.parent), str(environment.executable)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@pytest.mark.slow
async def test_kill_of_the_controller_leaves_nothing(controller, layout):
    """After kill -9 of the process that serves, the reaper ends the server."""
    (status,) = list_servers(layout)
    controller.kill()
    controller.wait()
    await until(lambda: not alive(status.pids))
    assert [lease for lease in live_leases(layout) if lease.home == str(layout.state)] == []
    assert nothing_is_left(layout)
    assert "the process that started this server is gone" in status.record.log.read_text()


@pytest.mark.slow
async def test_kill_of_controller_and_reaper_leaves_a_server_that_can_be_stopped(
    controller, layout
):
    """Where not even the reaper is left, the server is listed as abandoned and can be stopped."""
    (reaper,) = (
        child
        for child in psutil.Process(controller.pid).children()
        if "enginehouse.processes.reaper" in command_of(child)
    )
    reaper.kill()
    controller.kill()
    controller.wait()
    (status,) = list_servers(layout)
    assert status.abandoned
    await stop_server(status.record.name, layout=layout)
    assert not alive(status.pids)
    assert nothing_is_left(layout)


@pytest.mark.slow
async def test_ctrl_c_in_the_controller_stops_the_server(controller, layout):
    """SIGINT to the process that serves ends the server before that process ends."""
    (status,) = list_servers(layout)
    controller.send_signal(signal.SIGINT)
    controller.wait(timeout=30)
    assert not alive(status.pids)
    assert nothing_is_left(layout)
