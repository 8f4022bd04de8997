"""`enginehouse serve`: a server until it is stopped, or one that outlives the command."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from enginehouse.core.errors import ServerGoneError
from enginehouse.deployment.adapters import add_adapter
from enginehouse.deployment.announcement import announced
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.deployment.preparation import needs_api_key, prepare
from enginehouse.deployment.supervision import supervised
from enginehouse.deployment.swapping import swapping
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.servers.server import launch_detached, start_server
from enginehouse.servers.stopping import stop_server
from enginehouse.servers.worker import run_worker


async def serve_until_stopped(
    plan: ServeConfig,
    context: Context,
    *,
    name: str | None,
    ready: Callable[[Server], None],
    announce: Path | None = None,
    remain: bool = False,
) -> None:
    """Serve until cancelled, starting the server again if it ends by itself.

    `ready` is given the server once it answers, with the plan's adapter loaded; from then on it is
    announced in the folder `announce`, until it is to stop: then it first answers what it has
    accepted. A server that is announced to other machines gets an API key of its own, unless the
    user has set one. When the server is given up, it raises ServerGoneError, or with `remain` only
    says so and waits to be cancelled. Raises StoreError.
    """
    share_key = announce is not None and needs_api_key(plan.server)
    if share_key:
        server_options = plan.server.model_copy(update={"api_key": secrets.token_urlsafe(32)})
        plan = plan.model_copy(update={"server": server_options})
    prepared = await prepare(plan, context)
    async with (
        start_server(prepared.server(context), name=name) as owned,
        supervised(
            owned, patience=plan.progress_timeout, max_restarts=plan.max_restarts
        ) as supervisor,
        swapping(owned, supervisor=supervisor, alone=False),
        AsyncExitStack() as stack,
    ):
        server = owned.server
        if plan.adapter is not None:
            load = partial(add_adapter, server, prepared.engine, plan.adapter, context)
            server = _with_model(server, (await load()).model)
            supervisor.restorations.append(load)
        if announce is not None:
            announcing = announced(
                server,
                announce,
                host=plan.server.host,
                engine=prepared.engine,
                model=prepared.model,
                context=context,
                share_key=share_key,
            )
            await stack.enter_async_context(announcing)
        ready(server)
        try:
            await supervisor.watching
        except ServerGoneError as error:
            if not remain:
                raise
            context.notify(
                f"{error}\nthe other servers keep running; this command waits until it is stopped"
            )
    await asyncio.Event().wait()


async def serve_worker(plan: ServeConfig, context: Context, *, head: str, node: int) -> None:
    """Run machine `node`'s part of the server whose first machine is `head`, until cancelled.

    Raises what `run_worker` does.
    """
    prepared = await prepare(plan, context)
    await run_worker(prepared.server(context), head=head, node=node)


async def serve_detached(
    plan: ServeConfig, context: Context, *, name: str | None, ready: Callable[[Server], None]
) -> None:
    """Start a server that outlives this process, until `stop_server`; nobody restarts it.

    `ready` is given the server once it answers, with the plan's adapter loaded; if that cannot be
    loaded, the server is stopped.
    """
    prepared = await prepare(plan, context)
    server = await launch_detached(prepared.server(context), name=name)
    if plan.adapter is not None:
        try:
            added = await add_adapter(server, prepared.engine, plan.adapter, context)
        except BaseException:
            assert server.name is not None
            await stop_server(server.name, layout=context.layout)
            raise
        server = _with_model(server, added.model)
    ready(server)


def _with_model(server: Server, model: str) -> Server:
    """The server with an adapter as the first of its models."""
    return replace(server, models=(model, *(name for name in server.models if name != model)))
