"""The deployments that answer for an experiment's models: one for each distinct server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from enginehouse.arena.models import Model, slots_for
from enginehouse.arena.slots import MOST_SLOTS
from enginehouse.commands.experiment_configuration import LOCAL_URL, ProviderConfig
from enginehouse.core.errors import ConfigurationError, ConnectionFailedError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, parse
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.preparation import with_adapters
from enginehouse.engines.base import RemoteEngine, ServedEngine
from enginehouse.engines.registry import load_engine
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import attach_server


@dataclass(frozen=True, kw_only=True)
class OpenModels:
    """Who answers, by the name of a ModelSpec, and the deployments behind them."""

    models: Mapping[str, Model]
    deployments: tuple[Deployment, ...]


@dataclass(kw_only=True)
class _Server:
    """A server, hosted API or model to serve, with the models that are asked there."""

    plan: AskConfig
    providers: dict[str, ProviderConfig] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is started for the experiment."""
        return self.plan.url is None and not isinstance(load_engine(self.plan.engine), RemoteEngine)


@asynccontextmanager
async def open_models(
    providers: Mapping[str, ProviderConfig], context: Context, *, concurrency: int | None
) -> AsyncIterator[OpenModels]:
    """Open what answers for every provider, for the length of the block.

    Providers with the same server share one deployment, a model and its adapters included. Running
    servers and hosted APIs come first: a missing key or an unknown model is found out before a
    server is started. Raises as `open_deployment` does, and UnknownNameError for a model that a
    server does not list.
    """
    servers = await _servers(providers)
    models: dict[str, Model] = {}
    deployments = []
    async with AsyncExitStack() as stack:
        for server in sorted(servers, key=lambda server: server.is_ours):
            plan, slots = server.plan, _slots(server, concurrency)
            if server.is_ours:
                plan = await _for_adapters(server)
            opening = open_deployment(plan, context, concurrency=slots or MOST_SLOTS)
            try:
                deployment = await stack.enter_async_context(opening)
            except ConnectionFailedError as error:
                if plan.url is not None and isinstance(load_engine(plan.engine), ServedEngine):
                    raise ConnectionFailedError(
                        error.message,
                        why=error.why,
                        fix="start the server there, correct base_url, or have a server started "
                        "for the experiment with --serve",
                    ) from error
                raise
            deployments.append(deployment)
            for name, provider in server.providers.items():
                if provider.adapter is not None:
                    answering = deployment.target(provider.adapter)
                elif server.is_ours:
                    answering = deployment.target()
                else:
                    assert provider.model is not None
                    answering = deployment.target_named(provider.model)
                target = await stack.enter_async_context(answering)
                models[name] = Model(
                    sampler=target.sampler,
                    provenance=target.provenance,
                    slots=slots,
                    context=plan.server.max_model_len if server.is_ours else None,
                    load=target.sampler.load,
                )
        yield OpenModels(models=models, deployments=tuple(deployments))


async def _servers(providers: Mapping[str, ProviderConfig]) -> list[_Server]:
    """The distinct servers. Raises ConfigurationError for a provider that makes no sense."""
    servers: list[_Server] = []
    for name, provider in providers.items():
        plan = ask_plan(provider, name=name)
        if plan.url is not None and provider.serve and not await _answers(plan):
            plan = plan.model_copy(update={"url": None})
        same_server = {} if _Server(plan=plan).is_ours else {"model": None}
        for server in servers:
            if server.plan.model_copy(update=same_server) == plan.model_copy(update=same_server):
                break
        else:
            server = _Server(plan=plan)
            servers.append(server)
        server.providers[name] = provider
    return servers


def ask_plan(provider: ProviderConfig, *, name: str) -> AskConfig:
    """The provider as the plan of a deployment, without its adapter. Raises ConfigurationError."""
    remote = isinstance(load_engine(provider.type), RemoteEngine)
    if remote and (provider.serve or provider.adapter):
        raise ConfigurationError(
            f"{name}: {provider.type} runs elsewhere",
            why="it can neither be started here nor load an adapter",
            fix="leave 'serve' and 'adapter' out",
        )
    url = provider.base_url or (None if remote or provider.serve else LOCAL_URL)
    server = {"api_key": provider.api_key} if provider.api_key else {}
    values: dict[str, Any] = {
        "engine": provider.type,
        "model": provider.model,
        "url": url,
        "api_key_env": provider.api_key_env,
        "path": provider.path,
        "python": provider.python,
        "version": provider.version,
        "variant": provider.variant,
        "server": provider.server.model_copy(update=server),
    }
    return parse(AskConfig, {k: v for k, v in values.items() if v is not None}, origin=name)


async def _answers(plan: AskConfig) -> bool:
    """Whether a server answers at the plan's URL, in whatever way."""
    assert plan.url is not None
    try:
        await attach_server(plan.url, engine=load_engine(plan.engine), api_key=plan.server.api_key)
    except ConnectionFailedError:
        return False
    return True


async def _for_adapters(server: _Server) -> AskConfig:
    """The plan of our own server, with room for all of its adapters."""
    folders = list(dict.fromkeys(p.adapter for p in server.providers.values() if p.adapter))
    if not folders:
        return server.plan
    return await asyncio.to_thread(with_adapters, server.plan, folders, max_loras=len(folders))


def _slots(server: _Server, concurrency: int | None) -> int | None:
    """The calls that fill the server; None if nothing says how many."""
    if concurrency is not None:
        return concurrency
    sequences = server.plan.server.max_num_seqs if server.is_ours else None
    return slots_for(sequences) if sequences else None
