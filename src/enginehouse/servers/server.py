"""Start a server, wait until it is ready, stop it and prove that nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from enginehouse.core.errors import (
    ServerGoneError,
    StartError,
    StopError,
    StoreError,
)
from enginehouse.diagnosis import Diagnosis, diagnose_log, explained
from enginehouse.engines.base import (
    LaunchContext,
    ServedEngine,
    is_administered,
    meeting_ports,
)
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import load_served_engine
from enginehouse.processes.process import Process, hold_process
from enginehouse.processes.tree import this_process
from enginehouse.processes.usage import UsageMeter
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server, server_of
from enginehouse.servers.gpu_memory import read_baseline, require_memory_back
from enginehouse.servers.health import glance
from enginehouse.servers.ports import (
    PortLease,
    hand_over,
    lease_ports,
    release_ports,
)
from enginehouse.servers.readiness import StartLimits, wait_until_ready
from enginehouse.servers.records import (
    ServerRecord,
    ServerState,
    ServerStatus,
    is_marked_stopped,
    key_file,
    list_servers,
    make_folder,
    remove_record,
    write_record,
)
from enginehouse.servers.stopping import require_free_port
from enginehouse.servers.timings import TIMINGS, Timings
from enginehouse.servers.tool_canary import check_tool_parser, tool_parser
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout


@asynccontextmanager
async def start_server(
    owned: OwnedServer, *, name: str | None = None
) -> AsyncIterator[OwnedServer]:
    """The server, ready for the length of the block, and stopped however the block ends.

    Stopped means, and it is checked, that none of its processes is alive, its port is free, and
    they hold no GPU memory that was free before. If we are killed in the block, a reaper ends its
    processes. Raises PortError; StartError with cause and log; StopError.
    """
    async with owned.until_stopped():
        await owned.start(name, detached=False)
        yield owned


async def launch_detached(owned: OwnedServer, *, name: str | None = None) -> Server:
    """The server, ready, which outlives us until `stop_server`. Raises as `start_server` does.

    If it does not become ready, or we are cancelled or killed before, it is stopped.
    """
    async with owned.until_stopped():
        await owned.start(name, detached=True)
        owned.release()
    return owned.server


async def survey(
    layout: Layout, *, ended: bool = False, timings: Timings = TIMINGS
) -> list[ServerStatus]:
    """As `list_servers`, with one look at /health of each server that should be ready: 5 s."""

    async def check(status: ServerStatus) -> ServerStatus:
        if status.state is not ServerState.READY:
            return status
        engine = load_served_engine(status.record.engine)
        record = status.record
        health = await glance(
            record.base_url, engine=engine, path=record.health_path, timings=timings
        )
        return msgspec.structs.replace(status, state=health.state)

    return list(await asyncio.gather(*map(check, list_servers(layout, ended=ended))))


@dataclass(kw_only=True)
class OwnedServer:
    """Our own server: what it is started with, and what its start has acquired so far.

    `options` have been checked (`ServedEngine.check`). `server` is its present state; name and URL
    stay the same over a restart. Its processes run on `cpus` only, if those are given.
    """

    model: ResolvedModel
    engine: ServedEngine
    environment: EngineEnvironment
    options: ServerOptions
    context: Context
    limits: StartLimits = field(default_factory=StartLimits)
    cpus: frozenset[int] | None = None
    timings: Timings = TIMINGS
    _lease: PortLease | None = None
    _process: Process | None = None
    _record: ServerRecord | None = None
    _released: bool = False
    _starts: int = 0
    _gpu_baseline: Mapping[int, int] | None = None
    _admin_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _usage: UsageMeter = field(default_factory=UsageMeter)

    @property
    def server(self) -> Server:
        """The server as it is now."""
        assert self._record is not None, "known once it is started"
        return server_of(
            self._record, api_key=self.options.api_key, admin_key=self._admin_key, owned=True
        )

    def exit_code(self) -> int | None:
        """None while its first process runs; negative for a signal."""
        assert self._process is not None
        return self._process.exit_code()

    def diagnose(self) -> Diagnosis | None:
        """Why it failed, as far as its log and its exit code tell."""
        assert self.server.log is not None
        try:
            return diagnose_log(
                self.server.log, profile=self.engine.log_profile, exit_code=self.exit_code()
            )
        except Exception as error:  # noqa: BLE001 - a plug-in's rules must not hide the failure
            self.context.notify(f"the log was not diagnosed: {type(error).__name__}: {error}")
            return None

    def cores(self) -> float | None:
        """CPU cores that its processes have used since the last call; None at the first.

        Also None if the engine computes on a GPU: then the CPU says nothing about its work.
        """
        assert self._process is not None
        if self.environment.variant != "cpu":
            return None
        return self._usage.read(self._process.pids()).cpu

    def is_stopped(self) -> bool:
        """Whether another process has stopped it (`stop_server`), or is about to."""
        return is_marked_stopped(self.context.layout, self.server.name or "")

    def note_state(self, state: ServerState) -> None:
        """Record the state for other processes that list it, if the disk has room."""
        assert self._record is not None
        if self._record.state is not state:
            with contextlib.suppress(StoreError):
                self._write(msgspec.structs.replace(self._record, state=state))

    def hold_port(self) -> None:
        """Lease its port ourselves, so that nobody takes it while the server has no process."""
        assert self._lease is not None
        self._lease = hand_over(self.context.layout, self._lease, owner=this_process())

    async def start(self, name: str | None, *, detached: bool) -> None:
        """Start it and wait until it is ready. Raises as `start_server` does."""
        served = self.options.served_model_name or self.model.name
        folder = make_folder(self.context.layout, model=served, name=name)
        self._lease = lease_ports(
            self.context.layout,
            host=self.options.host,
            wanted=self.options.port,
            name=folder.name,
            others=meeting_ports(self.engine, self.options),
        )
        await self._begin(served, folder=folder, detached=detached)

    async def restart(self) -> None:
        """End what is left of it and start it again: same name, same URL, a new log.

        Raises StopError, ServerGoneError if `stop_server` was called meanwhile, or StartError with
        cause and log.
        """
        assert self._process is not None
        assert self.server.log is not None
        self.hold_port()
        await self._process.stop(grace=self._grace())
        await self._require_stopped()
        if self.is_stopped():
            raise ServerGoneError(f"the server {self.server.name} was stopped by another process")
        await self._begin(self.server.models[0], folder=self.server.log.parent, detached=False)

    async def _begin(self, served: str, *, folder: Path, detached: bool) -> None:
        began = time.monotonic()
        self._starts += 1
        log = folder / ("server.log" if self._starts == 1 else f"server-{self._starts}.log")
        await self._spawn(served, name=folder.name, log=log, detached=detached)
        server = self.server
        self.context.notify(
            f"starting {server.engine} {server.version} as {server.name}; log: {log}"
        )
        assert self._process is not None
        try:
            models = await wait_until_ready(
                self._process,
                base_url=server.base_url,
                engine=self.engine,
                model=served,
                api_key=server.api_key,
                limits=self.limits,
            )
        except StartError as error:
            raise explained(error, self.diagnose(), log=log) from error
        parser = tool_parser(server.command or ())
        if parser is not None:
            problem = await check_tool_parser(
                server.base_url, parser=parser, model=models[0], api_key=server.api_key
            )
            if problem is not None:
                self.context.notify(
                    f"tool calls: {problem.cause}; {problem.fix}; seen: {problem.evidence}"
                )
        self._process.look()
        assert self._record is not None
        self._write(msgspec.structs.replace(self._record, state=ServerState.READY, models=models))
        self.context.notify(f"ready after {time.monotonic() - began:.1f} s: {server.base_url}")

    def _grace(self) -> float:
        starting = self._record is None or self._record.state is ServerState.STARTING
        return self.timings.start_grace if starting else self.timings.stop_grace

    async def _spawn(self, served: str, *, name: str, log: Path, detached: bool) -> None:
        options, layout, lease = self.options, self.context.layout, self._lease
        assert lease is not None
        launch = LaunchContext(
            environment=self.environment,
            model_path=str(self.model.path),
            served_model_name=served,
            port=lease.port,
            internal_port=lease.internal,
            start_limit=self.limits.total,
            admin_key=self._admin_key,
            cores=len(self.cpus) if self.cpus else None,
        )
        command = self.engine.command(options, context=launch)
        if self.environment.variant == "cuda":
            self._gpu_baseline = await read_baseline()
        with hold_process(command, log=log, orphan_grace=self.timings.orphan_grace) as held:
            if self.cpus:
                os.sched_setaffinity(held.identity.pid, self.cpus)
            self._lease = hand_over(layout, lease, owner=held.identity)
            file = None
            if is_administered(self.engine, options):
                file = key_file(layout, name)
                write_whole(file, self._admin_key.encode(), private=True)
            record = ServerRecord(
                name=name,
                process=held.identity,
                starter=this_process(),
                detached=detached,
                state=ServerState.STARTING,
                base_url=f"http://{_reachable(options.host)}:{lease.port}",
                host=options.host,
                models=(served,),
                engine=self.engine.name,
                version=self.environment.version,
                environment=self.environment.key or str(self.environment.executable),
                model=self.model.reference,
                command=command.argv,
                has_api_key=options.api_key is not None,
                key_file=file,
                swaps_weights=options.enable_weight_swap,
                health_path=self.engine.endpoints.health,
                lease=self._lease,
                log=log,
                started=time.time(),
            )
            self._write(record)
            self._process = held.begin()

    def _write(self, record: ServerRecord) -> None:
        self._record = record
        write_record(self.context.layout, record)

    @asynccontextmanager
    async def until_stopped(self) -> AsyncIterator[None]:
        """Give back at the end of the block what was acquired in it."""
        try:
            yield
        except BaseException as error:
            try:
                await self._give_back()
            except StopError as second:  # which must not hide the first error
                error.add_note(str(second))
            raise
        await self._give_back()

    async def _give_back(self) -> None:
        if self._released:
            return
        if self._process is None:
            self._forget(ServerState.STOPPED)
            return
        ended = self._process.exit_code() is not None
        self.context.notify("stopping the server")
        try:
            await self._process.stop(grace=self._grace())
        except StopError:
            raise  # a process is alive; the record stays so that it can be stopped
        except BaseException:
            self._forget(ServerState.STOPPED)  # cancelled again: the processes are killed
            raise
        self._forget(ServerState.FAILED if ended else ServerState.STOPPED)
        await self._require_stopped()

    def _forget(self, state: ServerState) -> None:
        if self._lease is not None:
            release_ports(self.context.layout, self._lease)
        if self._record is not None:
            remove_record(self.context.layout, self._record.name, state=state)

    async def _require_stopped(self) -> None:
        assert self._process is not None
        assert self._lease is not None
        if self._gpu_baseline is not None:
            await require_memory_back(
                self._process.pids(), baseline=self._gpu_baseline, timings=self.timings
            )
        await require_free_port(self._lease.port, host=self.options.host, timings=self.timings)

    def release(self) -> None:
        """Leave the server running; its record is what finds it again."""
        assert self._process is not None
        self._process.release()
        self._released = True


def _reachable(host: str) -> str:
    """The address at which a client on this machine reaches a server that listens on `host`."""
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a bind
    return f"[{address}]" if ":" in address else address
