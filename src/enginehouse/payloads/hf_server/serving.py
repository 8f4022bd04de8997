"""From options to a server that listens until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import transformers
from aiohttp import web

from hf_server.application import make_application
from hf_server.compilers import Compilers
from hf_server.options import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE, Options
from hf_server.service import Service, describe

LOG = logging.getLogger("hf_server")
_KEEP_ALIVE = 120.0  # seconds; above the client's own, or it meets a connection being closed
_PATIENCE = 2.0  # seconds for replies in flight after the signal to stop


def serve(options: Options) -> None:
    """Serve until SIGTERM or SIGINT, then end the process. Raises OSError if it cannot listen."""
    logging.basicConfig(format="%(levelname)s %(asctime)s %(message)s", level=logging.INFO)
    compilers = Compilers()  # before any threads exist
    LOG.info("transformers %s, %s", transformers.__version__, describe())
    asyncio.run(_serve(options, compilers))
    logging.shutdown()
    os._exit(0)  # tearing torch and its threads down takes seconds, for nothing


async def _serve(options: Options, compilers: Compilers) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    service = Service.start(options, compilers=compilers)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    application = make_application(
        service,
        api_key=os.environ.get(API_KEY_VARIABLE),
        admin_key=os.environ.get(ADMIN_KEY_VARIABLE),
    )
    runner = web.AppRunner(
        application,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=_KEEP_ALIVE,
        shutdown_timeout=_PATIENCE,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port, backlog=1024).start()
        LOG.info("listening on http://%s:%s", options.host, options.port)
        await _until(stopped, service)
    finally:
        LOG.info("stopping")
        await service.generator.stop()
        await runner.cleanup()
    if not stopped.is_set():
        raise SystemExit("the generating thread ended: its error is above")


async def _until(stopped: asyncio.Event, service: Service) -> None:
    """Wait to be told to stop, or for the end of the generating thread."""
    while not stopped.is_set() and service.generator.alive:
        try:
            await asyncio.wait_for(stopped.wait(), timeout=1.0)
        except TimeoutError:
            continue
