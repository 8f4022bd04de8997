"""A server that somebody else runs: on a thread of this process, or in one of its own."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from aiohttp import web

from enginehouse.testing.fake_engine.application import make_application
from enginehouse.testing.fake_engine.arguments import make_arg_parser
from enginehouse.testing.fake_engine.behaviour import Behaviour
from enginehouse.testing.fake_engine.faults import Faults
from enginehouse.testing.fake_engine.injection import Mortality, injected
from enginehouse.testing.fake_engine.model import Model
from enginehouse.testing.fake_engine.server import VERSION
from enginehouse.testing.fake_engine.state import Engine
from tests.support.command_line import DEADLINE, House, Running


@contextmanager
def fake_engine(*flags: str, model: str = "theirs", port: int = 0, **env: str) -> Iterator[str]:
    """A fake engine on a thread of this process; gives its URL.

    Starting a process takes a second longer: `fake_engine_process` is for engines that die, or for
    seeing that nobody stops them.
    """
    stop: asyncio.Event
    loop = asyncio.new_event_loop()
    started = threading.Event()
    addresses: list[str] = []

    async def serve() -> None:
        nonlocal stop
        stop = asyncio.Event()
        runner = web.AppRunner(
            _application(model, flags, env), access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            addresses.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
            started.set()
            await stop.wait()
        finally:
            started.set()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(DEADLINE)
        yield addresses[0]
    finally:
        if addresses:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def _application(model: str, flags: tuple[str, ...], env: Mapping[str, str]) -> web.Application:
    parser = make_arg_parser(argparse.ArgumentParser())
    words = ["--model", model, "--disable-uvicorn-access-log", *flags]
    behaviour = Behaviour.from_environment(env)
    faults = Faults.parse(behaviour.faults, state=behaviour.state)
    assert '"die"' not in (behaviour.faults or ""), "an engine that dies needs a process"
    engine = Engine(
        arguments=parser.parse_args(words),
        version=VERSION,
        model=Model.from_file(behaviour.answers),
        token_latency=behaviour.token_latency,
    )
    middlewares = [injected(faults, Mortality())] if faults else []
    return make_application(engine, environment=env, middlewares=middlewares)


@contextmanager
def fake_engine_process(
    house: House, *flags: str, model: str = "theirs", **env: str
) -> Iterator[tuple[str, Running]]:
    """A fake engine in a process of its own; gives its URL and the process, which is killed."""
    program = [sys.executable, "-m", "enginehouse.testing.fake_engine", "--model", model]
    running = house.start_program([*program, "--port", "0", *flags], **env)
    said = running.until("Application startup complete")
    yield re.findall(r"Starting vLLM server on (http://\S+)", said)[0], running
    running.kill()
