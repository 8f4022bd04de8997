"""Start a server, see it ready, hand it out, stop it and prove that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from enginehouse.core.errors import StartError, StopError
from enginehouse.engines.base import Engine, LaunchContext, ServerOptions, is_loopback
from enginehouse.engines.diagnosis import explained
from enginehouse.executors.local import LocalExecutor, LocalProcess
from enginehouse.executors.tree import ProcessIdentity, ProcessTree, identify
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.servers.endpoint import Server, attach_server, curl_line
from enginehouse.servers.ports import (
    PortLease,
    hand_over,
    is_free,
    lease_ports,
    release_ports,
    who_has,
)
from enginehouse.servers.readiness import wait_until_ready
from enginehouse.servers.records import (
    ServerRecord,
    find_server,
    list_servers,
    make_folder,
    remove_record,
    write_record,
)
from enginehouse.store.layout import Layout

__all__ = [
    "Server",
    "attach_server",
    "curl_line",
    "launch_detached",
    "list_servers",
    "start_server",
    "stop_server",
]

Notify = Callable[[str], None]

STOP_GRACE = 15.0
START_GRACE = 3.0  # a vLLM that is still starting does not heed SIGTERM: nothing to wait for
_PORT_WAIT = 5.0


@asynccontextmanager
async def start_server(
    model: ResolvedModel,
    *,
    engine: Engine,
    environment: EngineEnvironment,
    options: ServerOptions,
    layout: Layout,
    notify: Notify,
    start_timeout: float = 900.0,
    name: str | None = None,
) -> AsyncIterator[Server]:
    """A ready server for the length of the block, stopped however the block ends.

    Stopped means that none of its processes is alive and its port is free; both are checked.
    Raises ConfigurationError before anything starts; PortError; StartError with cause and log;
    StopError.
    """
    launch = _Launch(model, engine, environment, options, layout)
    async with launch.until_stopped(notify):
        yield await launch.start(name, detached=False, limit=start_timeout, notify=notify)


async def launch_detached(
    model: ResolvedModel,
    *,
    engine: Engine,
    environment: EngineEnvironment,
    options: ServerOptions,
    layout: Layout,
    notify: Notify,
    start_timeout: float = 900.0,
    name: str | None = None,
) -> Server:
    """A ready server that outlives us, until `stop_server`. Raises as `start_server` does.

    If it does not become ready, or we are cancelled before, it is stopped.
    """
    launch = _Launch(model, engine, environment, options, layout)
    async with launch.until_stopped(notify):
        server = await launch.start(name, detached=True, limit=start_timeout, notify=notify)
        launch.let_go()
    return server


async def stop_server(name: str, *, layout: Layout, grace: float = STOP_GRACE) -> None:
    """Stop a server by name, whoever started it, and forget it; one that is dead is forgotten.

    Knows its processes by pid and start, so a recycled pid is never touched. Raises
    UnknownNameError, or StopError naming what is still there.
    """
    record = find_server(name, layout=layout)
    pid = record.process.pid
    await ProcessTree(record.process).stop(grace=grace, reap=lambda: _reap(pid))
    await _demand_free_port(record.lease.port, host=record.host)
    release_ports(layout, record.lease)
    remove_record(layout, name)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@dataclass
class _Launch:
    """What a start has acquired so far; `until_stopped` gives back exactly that."""

    model: ResolvedModel
    engine: Engine
    environment: EngineEnvironment
    options: ServerOptions
    layout: Layout
    lease: PortLease | None = None
    process: LocalProcess | None = None
    record: ServerRecord | None = None
    grace: float = START_GRACE

    async def start(
        self, name: str | None, *, detached: bool, limit: float, notify: Notify
    ) -> Server:
        """Start it and see it ready."""
        self.engine.check(self.options, environment=self.environment)
        began = time.monotonic()
        served = self.options.served_model_name or self.model.name
        folder = make_folder(self.layout, model=served, name=name)
        log = folder / "server.log"
        server = await self._spawn(served, name=folder.name, log=log, detached=detached)
        notify(f"starting {server.engine} {server.version} as {folder.name}; log: {log}")
        assert self.process is not None
        assert self.record is not None
        try:
            models = await wait_until_ready(
                self.process,
                base_url=server.base_url,
                engine=self.engine,
                model=served,
                api_key=server.api_key,
                limit=limit,
            )
        except StartError as error:
            diagnosis = self.engine.diagnose(log, exit_code=self.process.exit_code())
            raise explained(error, diagnosis, log=log) from error
        self.grace = STOP_GRACE
        self._write(msgspec.structs.replace(self.record, ready=True, models=models))
        notify(f"ready after {time.monotonic() - began:.1f} s: {server.base_url}")
        return replace(server, models=models)

    async def _spawn(self, served: str, *, name: str, log: Path, detached: bool) -> Server:
        options = self.options
        self.lease = lease_ports(self.layout, host=options.host, wanted=options.port, name=name)
        context = LaunchContext(
            environment=self.environment,
            model_path=str(self.model.path),
            served_model_name=served,
            port=self.lease.port,
            internal_port=self.lease.internal,
            development_endpoints=is_loopback(options.host),
        )
        command = self.engine.command(options, context=context)
        server = Server(
            name=name,
            base_url=f"http://{_reachable(options.host)}:{self.lease.port}",
            models=(served,),
            pid=None,
            log=log,
            engine=self.engine.name,
            version=self.environment.version,
            environment=self.environment.key or str(self.environment.python),
            command=command.argv,
            api_key=options.api_key,
            owned=True,
        )

        def note(process: ProcessIdentity) -> None:
            assert self.lease is not None
            self.lease = hand_over(self.layout, self.lease, owner=process)
            self._write(self._record(server, process, detached=detached))

        self.process = await LocalExecutor().start(command, log=log, note=note)
        return replace(server, pid=self.process.pid)

    def _record(self, server: Server, process: ProcessIdentity, *, detached: bool) -> ServerRecord:
        starter = identify(os.getpid())
        assert starter is not None
        assert self.lease is not None
        assert server.name is not None
        assert server.log is not None
        return ServerRecord(
            name=server.name,
            process=process,
            starter=starter,
            detached=detached,
            ready=False,
            base_url=server.base_url,
            host=self.options.host,
            models=server.models,
            engine=self.engine.name,
            version=self.environment.version,
            environment=server.environment or "",
            model=self.model.reference,
            command=server.command or (),
            has_api_key=server.api_key is not None,
            lease=self.lease,
            log=server.log,
            started=time.time(),
        )

    def _write(self, record: ServerRecord) -> None:
        self.record = record
        write_record(self.layout, record)

    @asynccontextmanager
    async def until_stopped(self, notify: Notify) -> AsyncIterator[None]:
        """Give back, at the end of the block, what was acquired in it."""
        try:
            yield
        finally:
            try:
                if self.process is not None:
                    notify("stopping the server")
                    await self.process.stop(grace=self.grace)
                    assert self.lease is not None
                    await _demand_free_port(self.lease.port, host=self.options.host)
            except asyncio.CancelledError:
                self._forget()  # cancelled once more: the processes have been killed
                raise
            self._forget()

    def let_go(self) -> None:
        """Leave everything to whoever finds the record."""
        assert self.process is not None
        self.process.release()
        self.process = self.lease = self.record = None

    def _forget(self) -> None:
        if self.lease is not None:
            release_ports(self.layout, self.lease)
        if self.record is not None:
            remove_record(self.layout, self.record.name)


def _reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a bind
    return f"[{address}]" if ":" in address else address


async def _demand_free_port(port: int, *, host: str) -> None:
    deadline = time.monotonic() + _PORT_WAIT
    while not is_free(port, host=host):
        if time.monotonic() > deadline:
            raise StopError(
                f"every process of the server is gone, but port {port} is still taken",
                why=f"by {who_has(port) or 'a process that we may not see'}",
                fix="end that process; it may have taken the port in between",
            )
        await asyncio.sleep(0.05)
