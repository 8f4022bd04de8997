"""The gateway: an OpenAI-compatible endpoint in front of a deployment."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enginehouse.core.errors import ServerError
from enginehouse.deployment.base import Deployment
from enginehouse.engines.base import is_loopback
from enginehouse.gateway.configuration import GatewayOptions
from enginehouse.gateway.forwarding import Forwarding
from enginehouse.gateway.http_server import serving
from enginehouse.gateway.metrics import GatewayFigures
from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening

__all__ = ["Gateway", "GatewayOptions", "open_gateway"]


class Gateway:
    """An open gateway. `url` has no /v1; `model` is what requests get that name none.

    `api_key` is what they must carry, None if they need no key.
    """

    def __init__(self, url: str, *, api_key: str | None, forwarding: Forwarding) -> None:
        self.url = url
        self.api_key = api_key
        self.model = forwarding.models.default
        self._forwarding = forwarding
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def figures(self) -> GatewayFigures:
        """What it has done so far."""
        return self._forwarding.metrics.figures()

    async def ended(self) -> None:
        """Wait until nothing can be asked any more; raises the ServerError that says why."""
        await asyncio.shield(self._failure)

    def fail(self, error: ServerError) -> None:
        """End `ended` with an error. Idempotent."""
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # whether or not somebody waits for it


@asynccontextmanager
async def open_gateway(
    deployment: Deployment, options: GatewayOptions, context: Context
) -> AsyncIterator[Gateway]:
    """Answer requests from `deployment` for the length of the block.

    Beyond loopback every request must carry an API key, which is made if `options` has none.
    Raises PortError.
    """
    api_key = options.api_key
    if api_key is None and not is_loopback(options.host):
        api_key = secrets.token_urlsafe(32)

    def failed(error: ServerError) -> None:
        gateway.fail(error)

    forwarding = Forwarding(
        deployment, options, api_key=api_key, notify=context.notify, failed=failed
    )
    with listening(options.port, host=options.host, option="--port") as listener:
        async with serving(forwarding, listener) as url:
            gateway = Gateway(url, api_key=api_key, forwarding=forwarding)
            yield gateway
