"""`enginehouse gateway`: an OpenAI-compatible endpoint in front of a model, until it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import with_adapters, with_api_key
from enginehouse.gateway.adapters import readable_adapters
from enginehouse.gateway.configuration import GatewayConfig, GatewayOptions
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.runtime.context import Context


async def serve_gateway(
    config: GatewayConfig, context: Context, *, ready: Callable[[Gateway], None]
) -> None:
    """Answer until cancelled; `ready` is given the gateway once it does.

    Raises what `open_deployment` and `open_gateway` do, and ServerGoneError when the server behind
    it is given up.
    """
    options = gateway_options(config)
    plan = await asyncio.to_thread(engine_plan, config)
    async with (
        open_deployment(plan, context, concurrency=config.engine_limits.concurrency) as deployment,
        open_gateway(deployment, options, context) as gateway,
    ):
        ready(gateway)
        await gateway.ended()


def gateway_options(config: GatewayConfig) -> GatewayOptions:
    """How the gateway listens: at the address, and with the key, that the configuration names.

    Raises ConfigurationError for a gateway that others can reach and that has no API key.
    """
    server = with_api_key(config.plan.server)
    return GatewayOptions(
        host=server.host,
        port=server.port,
        api_key=server.api_key,
        max_loras=server.max_loras,
        settings=config.settings,
        limits=config.limits,
    )


def engine_plan(config: GatewayConfig) -> AskConfig:
    """The plan of what answers: a server of our own listens on loopback, with the same key.

    Blocking. Raises as `with_adapter_folder` does.
    """
    own: dict[str, object] = {"host": "127.0.0.1", "port": None}
    plan = config.plan
    if plan.runs_already:
        own["api_key"] = None  # that server's key is another one
    plan = plan.model_copy(update={"server": plan.server.model_copy(update=own)})
    return with_adapter_folder(plan, config.settings.adapters)


def with_adapter_folder(plan: AskConfig, folder: Path | None) -> AskConfig:
    """The plan with LoRA enabled for the adapters in `folder`; a running server stays as it is.

    Blocking. Raises UnsupportedError for an engine without adapters, and ConfigurationError for a
    folder that cannot be read.
    """
    if folder is None or plan.runs_already:
        return plan
    return with_adapters(plan, readable_adapters(folder))
