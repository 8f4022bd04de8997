"""`enginehouse tinker`: the service until it is stopped, and its state for the operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec

from enginehouse.core.errors import ConfigurationError, ConnectionFailedError, TinkerError
from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening, running
from enginehouse.store.files import write_whole
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.logs import noting_in_log
from enginehouse.tinker.routes.operations import OPERATOR_HEADER
from enginehouse.tinker.sampling.opening import open_sampling
from enginehouse.tinker.service import OPERATOR_KEY, open_service
from enginehouse.tinker.service_status import ServiceStatus
from enginehouse.tinker.stores import open_stores
from enginehouse.tinker.trainers.opening import open_trainer

_ADDRESS = "address"
_PATIENCE = aiohttp.ClientTimeout(total=10)  # seconds


async def serve_until_stopped(
    config: TinkerConfig, context: Context, *, ready: Callable[[str], None]
) -> None:
    """Serve until cancelled, and drain then; `ready` is given the address once it answers.

    Raises PortError for a port that is taken, and the errors of `open_stores`, before anything is
    started; then those of what is started.
    """
    context = noting_in_log(context)
    with listening(config.port, host=config.host, option="--port") as listener:
        async with (
            open_stores(config, context) as stores,
            open_trainer(config, context) as trainer,
            open_sampling(config.computing_in(trainer.info.dtype), context) as engine,
            open_service(config, context, stores=stores, trainer=trainer, engine=engine) as service,
            running(service.application, listener) as http,
        ):
            address = stores.home / _ADDRESS
            write_whole(address, http.url.encode(), private=True)
            ready(http.url)
            try:
                await http.ended()
            finally:
                context.notify("stopping: finishing running jobs; queued jobs are kept")
                address.unlink(missing_ok=True)
                await service.drain(config.drain_timeout)


async def ask_status(home: Path, *, url: str | None) -> ServiceStatus:
    """The state of the service with that home, at `url` or where it said that it listens.

    Raises ConfigurationError, ConnectionFailedError, and TinkerError if it refuses.
    """
    address = url or _read(home / _ADDRESS, fix="start it with `enginehouse tinker serve`")
    key = _read(home / OPERATOR_KEY, fix="give the --home that it was started with")
    try:
        async with (
            aiohttp.ClientSession(timeout=_PATIENCE) as session,
            session.get(f"{address.rstrip('/')}/status", headers={OPERATOR_HEADER: key}) as reply,
        ):
            content = await reply.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ConnectionFailedError(
            f"the Tinker service at {address} does not answer",
            why=str(error) or "it took more than 10 seconds",
            fix="see its log, service.jsonl in its home",
        ) from error
    if reply.status != 200:
        raise TinkerError(
            f"{address} did not report its status (HTTP {reply.status})",
            why=content[:500].decode(errors="replace"),
            fix="check that the service at this address has this --home",
        )
    return msgspec.json.decode(content, type=ServiceStatus)


def _read(file: Path, *, fix: str) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigurationError(
            f"no Tinker service is running with the home {file.parent}", fix=fix
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file}", why=str(error)) from error
