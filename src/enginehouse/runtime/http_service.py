"""An HTTP service of our own: a socket that listens, and an ASGI application that answers on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final

import uvicorn

from enginehouse.core.errors import PortError

LOOPBACK: Final = "127.0.0.1"
_IDLE: Final = 75  # seconds that a connection may be idle: longer than clients keep theirs
_BACKLOG: Final = 2048


@contextmanager
def listening(port: int | None, *, host: str = LOOPBACK, option: str) -> Iterator[socket.socket]:
    """A socket on `host`, on `port` or a free one. Raises PortError, which names the option.

    Connections can already be made to it: they wait until there is a service.
    """
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
    except OSError as error:
        raise PortError(f"{host} is not an address of this machine", why=str(error)) from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise PortError(
                f"port {port} on {host} cannot be used",
                why=str(error),
                fix=f"choose another one with {option}, or leave the option out",
            ) from error
        yield listener


class RunningService:
    """A service that answers at `url`."""

    def __init__(self, url: str, serving: asyncio.Task[None]) -> None:
        self.url = url
        self._serving = serving

    async def ended(self) -> None:
        """Wait until the service ends by itself, which it does only by an error."""
        await asyncio.shield(self._serving)


@asynccontextmanager
async def running(
    application: Any, listener: socket.socket, *, grace: int = 1
) -> AsyncIterator[RunningService]:
    """Answer on `listener` for the length of the block; then, requests have `grace` seconds."""
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=grace,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    try:
        yield RunningService(f"http://{shown}:{port}", serving)
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Leaves signals to the command, which is cancelled by them."""

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()
