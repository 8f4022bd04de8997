"""Whoever is to be asked: a server started for it, a running one, or a hosted API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capability, Provenance
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.lending import borrowed
from enginehouse.deployment.resident import serving_target
from enginehouse.deployment.running_servers import record_at
from enginehouse.deployment.serving import OnIncident, Serving, make_sampler, say_bound
from enginehouse.dialects.base import require
from enginehouse.engines.base import Engine, RemoteEngine
from enginehouse.engines.registry import load_engine
from enginehouse.runtime.context import Notify
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server, attach_server
from enginehouse.servers.records import read_key
from enginehouse.store.layout import Layout


@asynccontextmanager
async def asking(
    config: AskConfig,
    *,
    layout: Layout,
    notify: Notify,
    concurrency: int | None = None,
    on_incident: OnIncident = lambda _: None,
) -> AsyncIterator[Serving]:
    """Someone to ask, for the length of the block; only a server of our own is stopped.

    Raises what `serving` does, and WireError for a server that cannot be used.
    """
    if config.adapter is not None:
        require(_engine(config).capabilities(None), Capability.ADAPTERS, "LoRA adapters")
    if config.url is None and not isinstance(_engine(config), RemoteEngine):
        async with serving_target(
            config, layout=layout, notify=notify, concurrency=concurrency, on_incident=on_incident
        ) as ready:
            yield ready
        return
    server, engine = await attach(config, layout=layout)
    model = _model(config, server, engine)
    async with (
        adapted(config, server, engine, layout=layout, notify=notify) as adapter,
        _attached(config, server, engine, adapter or model, notify, concurrency) as ready,
    ):
        yield ready


@asynccontextmanager
async def adapted(
    config: AskConfig, server: Server, engine: Engine, *, layout: Layout, notify: Notify
) -> AsyncIterator[str | None]:
    """The model that requests name for the configured adapter, loaded for the block; None: none.

    Raises what `deployment.lending.borrowed` does.
    """
    if config.adapter is None:
        yield None
        return
    async with borrowed(
        server, engine, folder=config.adapter, layout=layout, notify=notify
    ) as model:
        yield model


@asynccontextmanager
async def _attached(
    config: AskConfig,
    server: Server,
    engine: Engine,
    model: str,
    notify: Notify,
    concurrency: int | None,
) -> AsyncIterator[Serving]:
    whose = "which is not ours to stop"
    if server.name is not None:
        whose = f"the server {server.name}, which stays as it is"
    notify(f"using {model} at {server.base_url}, {whose}")
    if unused := unused_settings(config):
        notify(f"given, but without effect on a server that runs already: {', '.join(unused)}")
    async with make_sampler(server, engine, concurrency=concurrency, model=model) as sampler:
        say_bound(sampler, notify)
        yield Serving(
            current=lambda: server,
            engine=engine,
            sampler=sampler,
            provenance=_provenance(server, model),
        )


async def attach(config: AskConfig, *, layout: Layout) -> tuple[Server, Engine]:
    """A server that runs already, asked for its models; `enginehouse serve` may have started it.

    Raises ConfigurationError where address or key are missing, and WireError.
    """
    engine = _engine(config)
    url = _url(config, engine)
    record = None if isinstance(engine, RemoteEngine) else record_at(url, layout=layout)
    key = _key(config, engine)
    if key is None and record is not None and record.has_api_key:
        key = read_key(record)
    server = await attach_server(url, engine=engine, api_key=key, model=config.model)
    if record is not None:
        server = replace(
            server,
            name=record.name,
            environment=record.environment,
            command=record.command,
            admin_key=read_key(record),
            key_file=record.key_file,
        )
    return server, engine


def unused_settings(config: AskConfig) -> list[str]:
    """The settings that only a server of ours would take."""
    own = [n for n in ("path", "python", "version", "variant") if getattr(config, n) is not None]
    return own + [n for n in config.server.model_dump(exclude_defaults=True) if n != "api_key"]


def _engine(config: AskConfig) -> Engine:
    return load_engine(config.engine)


def _url(config: AskConfig, engine: Engine) -> str:
    url = _given_url(config, engine).rstrip("/")
    for dialect in (engine.wire.chat, engine.wire.completions):
        if dialect is not None:  # documentation shows the whole address of the endpoint
            url = url.removesuffix(dialect.path)
    return url


def _given_url(config: AskConfig, engine: Engine) -> str:
    if config.url is not None:
        return config.url
    assert isinstance(engine, RemoteEngine)
    named = (os.environ.get(name) for name in engine.url_variables)
    url = next((value for value in named if value), engine.default_url)
    if url is None:
        raise ConfigurationError(
            f"there is no address of a {engine.name} server",
            fix=f"give --url, or set {engine.url_variables[0]}",
        )
    return url


def _key(config: AskConfig, engine: Engine) -> str | None:
    if name := config.api_key_env:
        if key := os.environ.get(name):
            return key
        raise ConfigurationError(
            f"the environment has no {name}, which was to hold the API key",
            fix=f"export {name}=… first, or correct --api-key-env",
        )
    if config.server.api_key:
        return config.server.api_key
    if not isinstance(engine, RemoteEngine):
        return os.environ.get(API_KEY_VARIABLE)
    key = next((value for n in engine.key_variables if (value := os.environ.get(n))), None)
    if key is None and engine.needs_key:
        raise ConfigurationError(
            f"there is no API key for {engine.name}; nothing was sent",
            fix=f"export {engine.key_variables[0]}=…, or name another variable with --api-key-env",
        )
    return key


def _model(config: AskConfig, server: Server, engine: Engine) -> str:
    if config.model is None:
        if isinstance(engine, RemoteEngine) or not server.models:
            raise ConfigurationError(
                f"{engine.name} needs the name of a model",
                fix=f"name one, such as {server.models[0]}" if server.models else "name one",
            )
        return server.models[0]
    # hosted APIs answer to aliases that they do not list
    if config.model in server.models or isinstance(engine, RemoteEngine):
        return config.model
    raise ConfigurationError(
        f"the server at {server.base_url} does not serve {config.model!r}",
        fix=f"leave the model out, or name one of: {', '.join(server.models)}",
    )


def _provenance(server: Server, model: str) -> Provenance:
    """What is known of a server that ran already."""
    fields = ["weights_digest", "chat_template_digest"]
    if server.name is None:
        fields += ["engine_arguments", "environment"]
        reason = "the server is not ours"
    else:
        reason = f"{server.name} was started earlier, and is not asked what it has loaded since"
    unknown = dict.fromkeys(fields, reason)
    unknown |= {
        name: "the server does not say"
        for name, value in (("engine", server.engine), ("engine_version", server.version))
        if value is None
    }
    return Provenance(
        engine=server.engine,
        engine_version=server.version,
        engine_arguments=server.command,
        environment=server.environment,
        model=model,
        weights_digest=None,
        chat_template_digest=None,
        base_url=server.base_url,
        unknown=unknown,
    )
