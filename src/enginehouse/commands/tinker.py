"""`enginehouse tinker`: a service until it is stopped, and what its operator asks about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening, running
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.parts import open_sampling_engine, open_trainer
from enginehouse.tinker.service import OPERATOR_KEY, open_service
from enginehouse.tinker.service_status import ServiceStatus

_ADDRESS = "address"


async def serve_until_stopped(
    config: TinkerConfig, context: Context, *, ready: Callable[[str], None]
) -> None:
    """Serve until cancelled, and drain then; `ready` is given the address once it answers.

    Raises PortError for a port that is taken, before anything is started, and the errors of what
    is started.
    """
    home = config.folder(context.layout)
    with listening(config.port, host=config.host, option="--port") as listener:
        async with (
            open_trainer(config, context) as trainer,
            open_sampling_engine(config, context) as engine,
            open_service(config, context, trainer=trainer, engine=engine) as service,
            running(service.application, listener) as http,
        ):
            write_whole(home / _ADDRESS, http.url.encode(), private=True)
            ready(http.url)
            try:
                await http.ended()
            finally:
                (home / _ADDRESS).unlink(missing_ok=True)
                await service.drain(config.drain_timeout)
