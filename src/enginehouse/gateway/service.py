"""The gateway: an OpenAI-compatible endpoint in front of a deployment."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from enginehouse.core.errors import ServerError
from enginehouse.deployment.base import Deployment
from enginehouse.engines.base import is_loopback
from enginehouse.gateway.adapters import AdapterFolder, open_adapter_folder
from enginehouse.gateway.configuration import GatewayOptions
from enginehouse.gateway.forwarding import Forwarding
from enginehouse.gateway.http_server import serving
from enginehouse.gateway.metrics import GatewayFigures
from enginehouse.gateway.recorder import Recorder, open_recorder
from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening

__all__ = ["Gateway", "GatewayOptions", "open_gateway"]


class Gateway:
    """An open gateway. `url` has no /v1; `model` is used for requests that name none.

    `api_key` is the key that requests must carry, None if they need no key.
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
        """Wait until the deployment is given up; raises the ServerError that says why."""
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
    Raises PortError, StoreError for a journal that cannot be used, and ConfigurationError,
    AdapterError or UnsupportedError where adapters cannot be loaded.
    """
    api_key = options.api_key
    if api_key is None and not is_loopback(options.host):
        api_key = secrets.token_urlsafe(32)

    def failed(error: ServerError) -> None:
        gateway.fail(error)

    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listening(options.port, host=options.host, option="--port"))
        recorder: Recorder | None = None
        if options.record is not None:
            recording = open_recorder(
                options.record,
                deployment=deployment,
                context=context,
                replay=options.replay,
                resume=options.resume,
            )
            recorder = await stack.enter_async_context(recording)
        adapters: AdapterFolder | None = None
        if options.adapters is not None:
            opening = open_adapter_folder(
                options.adapters,
                deployment=deployment,
                max_loras=options.max_loras,
                context=context,
            )
            adapters = await stack.enter_async_context(opening)
        forwarding = Forwarding(
            deployment,
            options,
            api_key=api_key,
            recorder=recorder,
            adapters=adapters,
            notify=context.notify,
            failed=failed,
        )
        url = await stack.enter_async_context(serving(forwarding, listener))
        gateway = Gateway(url, api_key=api_key, forwarding=forwarding)
        yield gateway
