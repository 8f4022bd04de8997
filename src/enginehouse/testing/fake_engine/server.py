"""The fake as a process: arguments, log lines, signals."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Sequence

from aiohttp import web

from enginehouse.testing.fake_engine.application import make_application
from enginehouse.testing.fake_engine.arguments import make_arg_parser
from enginehouse.testing.fake_engine.behaviour import (
    Behaviour,
    leave_child,
    record_start,
    start_error_log,
)
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
    if behaviour.start_error is not None:
        sys.stderr.write(start_error_log(behaviour.start_error))
        return 1
    try:
        asyncio.run(_serve(arguments, behaviour, version=version))
    except OSError as error:
        sys.stderr.write(f"OSError: {error}\n")
        return 1
    return 0


async def _serve(arguments: argparse.Namespace, behaviour: Behaviour, *, version: str) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if behaviour.ignore_sigterm else stopped.set)
    if behaviour.child is not None:
        _log(f"EngineCore pid={leave_child(behaviour.child)}", place="core.py:133")
    if not await _delayed(stopped, behaviour.start_delay):
        return
    engine = Engine(
        arguments=arguments,
        version=version,
        model=Model.from_file(behaviour.answers),
        token_latency=behaviour.token_latency,
    )
    runner = web.AppRunner(
        make_application(engine, environment=os.environ),
        access_log=None,
        keepalive_timeout=float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5")),
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, arguments.host or "127.0.0.1", arguments.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        _log(f"Starting vLLM server on http://{host}:{port}", place="api_server.py:602")
        _print(f"INFO:     Started server process [{os.getpid()}]")
        _print("INFO:     Application startup complete.")
        await stopped.wait()
        _print("INFO:     Shutting down")
    finally:
        await runner.cleanup()


async def _delayed(stopped: asyncio.Event, seconds: float) -> bool:
    """Wait before listening; False if we were stopped meanwhile."""
    if seconds <= 0:
        return True
    try:
        await asyncio.wait_for(stopped.wait(), None if math.isinf(seconds) else seconds)
    except TimeoutError:
        return True
    return False


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
