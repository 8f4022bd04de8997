"""The fake as a process: arguments, log lines, signals."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from enginehouse.testing.fake_engine.application import make_application
from enginehouse.testing.fake_engine.arguments import make_arg_parser
from enginehouse.testing.fake_engine.behaviour import (
    Behaviour,
    engine_core,
    leave_child,
    record_start,
    start_error_log,
)
from enginehouse.testing.fake_engine.faults import Die, Faults
from enginehouse.testing.fake_engine.injection import Mortality, injected
from enginehouse.testing.fake_engine.model import Model
from enginehouse.testing.fake_engine.state import Engine

VERSION = "0.32.0"


def main(argv: Sequence[str], *, version: str = VERSION) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Unknown flags exit 2, by argparse."""
    parser = make_arg_parser(argparse.ArgumentParser(prog="api_server.py"))
    arguments = parser.parse_args(argv)
    behaviour = Behaviour.from_environment(os.environ)
    if behaviour.record is not None:
        record_start(behaviour.record, argv)
    _log(f"version {version}, model {arguments.model}", place="api_utils.py:347")
    _log(f"non-default args: {_non_default(arguments, parser)}", place="api_utils.py:286")
    faults = Faults.parse(behaviour.faults, state=behaviour.state)
    no_start = faults.of_start()
    start_error = no_start.cause if no_start else behaviour.start_error
    if start_error is not None:
        sys.stderr.write(start_error_log(start_error))
        return 1
    try:
        return asyncio.run(_serve(arguments, behaviour, faults, version=version))
    except OSError as error:
        sys.stderr.write(f"OSError: {error}\n")
        return 1


async def _serve(
    arguments: argparse.Namespace, behaviour: Behaviour, faults: Faults, *, version: str
) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if behaviour.ignore_sigterm else stopped.set)
    mortality = Mortality()
    async with _child(behaviour.child, mortality):
        if not await _loaded(stopped, behaviour):
            return 0
        engine = Engine(
            arguments=arguments,
            version=version,
            model=Model.from_file(behaviour.answers),
            token_latency=behaviour.token_latency,
        )
        mortal = faults or behaviour.child == "core"
        application = make_application(
            engine,
            environment=os.environ,
            middlewares=[injected(faults, mortality)] if mortal else [],
        )
        async with _listening(application, arguments):
            return await _end(stopped, mortality)


@asynccontextmanager
async def _child(kind: str | None, mortality: Mortality) -> AsyncIterator[None]:
    if kind == "core":
        async with engine_core() as core:
            _log(f"EngineCore pid={core.pid}", place="core.py:133")
            watching = asyncio.create_task(_die_with(core, mortality))
            try:
                yield
            finally:
                watching.cancel()
        return
    if kind is not None:
        _log(f"EngineCore pid={leave_child(kind)}", place="core.py:133")
    yield


async def _die_with(core: asyncio.subprocess.Process, mortality: Mortality) -> None:
    await core.wait()
    mortality.die(Die(cause=""))


@asynccontextmanager
async def _listening(
    application: web.Application, arguments: argparse.Namespace
) -> AsyncIterator[None]:
    runner = web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5")),
        shutdown_timeout=0.1,
        handler_cancellation=True,  # as vLLM, which aborts what nobody waits for
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, arguments.host or "127.0.0.1", arguments.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        _log(f"Starting vLLM server on http://{host}:{port}", place="api_server.py:602")
        _print(f"INFO:     Started server process [{os.getpid()}]")
        _print("INFO:     Application startup complete.")
        yield
    finally:
        await runner.cleanup()


async def _end(stopped: asyncio.Event, mortality: Mortality) -> int:
    """Wait for the process's end; its exit code."""
    stop = asyncio.create_task(stopped.wait())
    ends: set[asyncio.Future[Any]] = {stop, mortality.death}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if not stop.done():
        death = mortality.death.result()
        await asyncio.wait({stop}, timeout=None if death.lives else death.linger)
        code = death.exit_code
    stop.cancel()
    _print("INFO:     Shutting down")
    return code


async def _loaded(stopped: asyncio.Event, behaviour: Behaviour) -> bool:
    """Take the time that a start takes, with its progress; False if we were stopped meanwhile."""
    stop = asyncio.create_task(stopped.wait())
    end = time.monotonic() + behaviour.start_delay
    lines = 0
    while (left := end - time.monotonic()) > 0 and not stop.done():
        pause = behaviour.start_progress if lines < behaviour.start_lines else math.inf
        pause = min(left, pause)
        await asyncio.wait({stop}, timeout=None if math.isinf(pause) else pause)
        if time.monotonic() < end and not stop.done():
            lines += 1
            _print(f"Loading safetensors checkpoint shards: {lines} of many completed")
    stop.cancel()
    return not stopped.is_set()


def _non_default(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser
) -> dict[str, object]:
    return {
        name: "***" if name == "api_key" else value
        for name, value in vars(arguments).items()
        if value != parser.get_default(name)
    }


def _log(message: str, *, place: str) -> None:
    moment = time.strftime("%m-%d %H:%M:%S")
    _print(f"(APIServer pid={os.getpid()}) INFO {moment} [{place}] {message}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
