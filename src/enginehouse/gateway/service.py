"""The gateway: an OpenAI-compatible endpoint in front of a deployment."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

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


class Gateway:
    """An open gateway. `url` has no /v1; `model` is used for requests that name none.

    `api_key` is the key that requests must carry, None if they need no key.
    """

    def __init__(self, url: str, *, api_key: str | None, forwarding: Forwarding) -> None:
        self.url = url
        self.api_key = api_key
        self.model = forwarding.models.default
        self._forwarding = forwarding

    def figures(self) -> GatewayFigures:
        """What it has done so far."""
        return self._forwarding.metrics.figures()

    async def ended(self) -> None:
        """Wait until the deployment is given up; raises the ServerError that says why."""
        await asyncio.shield(self._forwarding.failure)


@asynccontextmanager
async def open_gateway(
    deployment: Deployment, options: GatewayOptions, context: Context
) -> AsyncIterator[Gateway]:
    """Answer requests from `deployment` for the length of the block.

    Beyond loopback every request must carry an API key, which is made if `options` has none.
    Raises PortError, StoreError for a journal that cannot be used, and ConfigurationError,
    AdapterError or UnsupportedError where adapters cannot be loaded.
    """
    api_key, settings = options.api_key, options.settings
    if api_key is None and not is_loopback(options.host):
        api_key = secrets.token_urlsafe(32)

    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listening(options.port, host=options.host, option="--port"))
        recorder: Recorder | None = None
        if settings.record is not None:
            recording = open_recorder(
                settings.record,
                deployment=deployment,
                context=context,
                replay=settings.replay,
                resume=settings.resume,
            )
            recorder = await stack.enter_async_context(recording)
        adapters: AdapterFolder | None = None
        if settings.adapters is not None:
            opening = open_adapter_folder(
                settings.adapters,
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
        )
        url = await stack.enter_async_context(serving(forwarding, listener))
        yield Gateway(url, api_key=api_key, forwarding=forwarding)
