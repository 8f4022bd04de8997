"""The one way to get something that answers requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capability
from enginehouse.deployment.announced import announced_deployment
from enginehouse.deployment.attached import attached_deployment
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, ServeConfig, merged, parse
from enginehouse.deployment.preparation import prepare
from enginehouse.deployment.served import served_deployment
from enginehouse.deployment.several import several_served
from enginehouse.dialects.base import require
from enginehouse.engines.base import RemoteEngine, configured
from enginehouse.engines.registry import load_engine
from enginehouse.runtime.context import Context


@asynccontextmanager
async def open_deployment(
    plan: ServeConfig, context: Context, *, concurrency: int | None = None
) -> AsyncIterator[Deployment]:
    """A deployment for `plan`, ready to answer, for the length of the block.

    Without a `url` and with an engine that runs here, a server is started for it, or several
    (`instances`): restarted if they die, and stopped with every descendant however the block ends.
    Otherwise a running server, those that are announced in a folder (`addresses`), or a hosted API
    are used and left as they were. `concurrency` bounds the requests in flight; None follows
    the server's queue. Raises ConfigurationError, ProvisioningError, ModelError, ServerError,
    AdapterError, and WireError for a server that cannot be used.
    """
    engine = configured(load_engine(plan.engine), plan.server)
    if plan.adapter is not None:
        require(engine.capabilities(None), Capability.ADAPTERS, "LoRA adapters")
    if isinstance(plan, AskConfig) and plan.instances and isinstance(engine, RemoteEngine):
        raise ConfigurationError(
            f"{engine.name} is a hosted API; instances of it cannot be started",
            fix="remove instances",
        )
    if isinstance(plan, AskConfig) and plan.addresses is not None:
        prepared = await prepare(plan, context) if plan.instances else None
        opening = announced_deployment(
            plan, engine, context, prepared=prepared, concurrency=concurrency
        )
    elif isinstance(plan, AskConfig) and (plan.url or isinstance(engine, RemoteEngine)):
        opening = attached_deployment(plan, engine, context, concurrency=concurrency)
    else:
        prepared = await prepare(plan, context)
        if isinstance(plan, AskConfig) and (plan.instances or 1) > 1:
            opening = several_served(
                prepared, context, instances=plan.instances or 1, concurrency=concurrency
            )
        else:
            opening = served_deployment(prepared, context, concurrency=concurrency)
    async with opening as deployment:
        yield deployment


@asynccontextmanager
async def serve(
    model: str,
    *,
    notify: Callable[[str], None] = lambda _: None,
    concurrency: int | None = None,
    engine: str | None = None,
    python: str | None = None,
    **server: Any,
) -> AsyncIterator[Deployment]:
    """Serve `model` for the length of the block: what `enginehouse serve` does.

    `server` holds the fields of ServerOptions (max_model_len=4096, …). Raises ConfigurationError,
    ProvisioningError, ModelError or ServerError, each saying what to do next.
    """
    values = merged({}, {"model": model, "engine": engine, "python": python, "server": server})
    plan = parse(ServeConfig, values, origin="serve()")
    async with open_deployment(plan, Context(notify=notify), concurrency=concurrency) as deployment:
        yield deployment
