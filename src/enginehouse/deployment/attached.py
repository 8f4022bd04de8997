"""A deployment on a running server or a hosted API: used, and left as it was."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from enginehouse.core.errors import (
    ConfigurationError,
    EnginehouseError,
    ModelError,
    WeightsError,
    WireError,
)
from enginehouse.core.sampler import Provenance
from enginehouse.deployment.base import Deployment, Incidents, Target
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.lending import borrowed_adapter
from enginehouse.deployment.running_servers import record_at
from enginehouse.deployment.samplers import make_sampler, say_bound
from enginehouse.deployment.swapping import swapper_of
from enginehouse.engines.base import Engine, RemoteEngine
from enginehouse.engines.hosted import address_of, key_of
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import API_KEY_VARIABLE, Server, attach_server
from enginehouse.servers.records import read_key
from enginehouse.weights.pool import AdapterPool
from enginehouse.weights.store import AdapterStore, UncopiedAdapters
from enginehouse.weights.swap import WeightSwapper


@asynccontextmanager
async def attached_deployment(
    plan: AskConfig,
    engine: Engine,
    context: Context,
    *,
    concurrency: int | None,
    admin_key: str | None = None,
) -> AsyncIterator[Deployment]:
    """Use the server at the plan's URL, or the API of its hosted engine; neither is stopped.

    `admin_key` is for a server whose record is not on this machine.
    """
    server = await _attach(plan, engine, context)
    server = replace(server, admin_key=server.admin_key or admin_key)
    model = _model(plan, server, engine)
    deployment = _AttachedDeployment(server, engine, model, context, concurrency=concurrency)
    async with deployment.open_default(plan.adapter) as deployment.default:
        whose = "which enginehouse did not start and will not stop"
        if server.name is not None:
            whose = f"the server {server.name}, which stays as it is"
        context.notify(f"using {deployment.sampler.model} at {server.base_url}, {whose}")
        if unused := plan.unused_at_url():
            context.notify(f"without effect on a running server: {', '.join(unused)}")
        say_bound(deployment.sampler, context.notify)
        yield deployment


class _AttachedDeployment(Deployment):
    def __init__(
        self,
        server: Server,
        engine: Engine,
        model: str,
        context: Context,
        *,
        concurrency: int | None,
    ) -> None:
        self.engine = engine
        self.incidents = Incidents()  # nobody here watches the server
        self._server = server
        self._model = model
        self._context = context
        self._concurrency = concurrency
        self._loading = asyncio.Lock()  # the requests of two proofs together kill some servers
        self._swapped_in: str | None = None  # the digest of the open checkpoint

    @property
    def server(self) -> Server:
        return self._server

    @property
    def weights_digest(self) -> str | None:
        """That of the checkpoint whose target is open; the server's own weights are not known."""
        return self._swapped_in

    def open_default(self, adapter: Path | None) -> AbstractAsyncContextManager[Target]:
        """What the plan names: its model, or an adapter of it."""
        return self._open_base() if adapter is None else self._open_adapter(adapter)

    def _open_base(self) -> AbstractAsyncContextManager[Target]:
        return self._open_model(self._model)

    @asynccontextmanager
    async def _open_adapter(self, folder: Path) -> AsyncIterator[Target]:
        async with AsyncExitStack() as stack:
            async with self._loading:
                lent = await stack.enter_async_context(
                    borrowed_adapter(self._server, self.engine, folder, self._context)
                )
            target = await stack.enter_async_context(self._open_model(lent.model))
            provenance = msgspec.structs.replace(target.provenance, adapter_digest=lent.digest)
            yield replace(target, provenance=provenance)

    @asynccontextmanager
    async def adapters(
        self,
        store: AdapterStore | UncopiedAdapters,
        *,
        max_loras: int | None = None,
        for_many: bool = False,
    ) -> AsyncIterator[AdapterPool]:
        sampler = make_sampler(self._server, self.engine, concurrency=None, model=self._model)
        async with sampler:
            pool = AdapterPool(sampler, max_loras=max_loras or 1, store=store, for_many=for_many)
            try:
                yield pool
            finally:
                for adapter in pool.adapters():
                    with suppress(EnginehouseError):
                        await pool.unload(adapter.alias)

    @asynccontextmanager
    async def _open_model(self, model: str) -> AsyncIterator[Target]:
        sampler = make_sampler(
            self._server, self.engine, concurrency=self._concurrency, model=model
        )
        async with sampler:
            yield Target(
                deployment=self, sampler=sampler, provenance=_provenance(self._server, model)
            )

    @asynccontextmanager
    async def _open_checkpoint(self, folder: Path) -> AsyncIterator[Target]:
        """Swap a checkpoint in, and the server's own weights in again when the block ends.

        If those cannot be swapped in again, a WeightsError is raised, or noted on the error that
        ended the block; `left_with` is the checkpoint that the server then still answers with.
        """
        server, notify = self._server, self._context.notify
        async with swapper_of(
            server.base_url, api_key=server.api_key, layout=self._context.layout
        ) as swapper:
            own = _own_weights(swapper, folder.parent)
            await swapper.swap(folder)
            notify(f"swapped {folder.name} into the server at {server.base_url}")
            digest = self._swapped_in = swapper.current.digest
            try:
                async with self._open_base() as target:
                    unknown = dict(target.provenance.unknown)
                    unknown.pop("weights_digest", None)
                    provenance = msgspec.structs.replace(
                        target.provenance,
                        model=str(folder),
                        weights_digest=digest,
                        unknown=unknown,
                    )
                    yield replace(target, provenance=provenance)
            except BaseException as error:
                if failure := await self._swap_back(swapper, own, folder):
                    error.add_note(str(failure))
                raise
            if failure := await self._swap_back(swapper, own, folder):
                raise failure

    async def _swap_back(
        self, swapper: WeightSwapper, own: Path, folder: Path
    ) -> WeightsError | None:
        """Swap the server's own weights in again; the error if that failed."""
        self._swapped_in = None
        try:
            await swapper.swap(own)
        except (WeightsError, ModelError, WireError) as error:
            self.left_with = folder
            return WeightsError(
                f"the server still answers with {folder.name}: {own} could not be swapped in again",
                why=error.message + (f" ({error.why})" if error.why else ""),
                fix=f"enginehouse weights swap SERVER {own}; or start the server again",
                restored=False,
            )
        return None


def _own_weights(swapper: WeightSwapper, siblings: Path) -> Path:
    """The weights to bring back afterwards; a checkpoint below `siblings` was left by an accident.

    Raises WeightsError where nothing can be brought back.
    """
    current, started = swapper.current.path, swapper.started.path
    assert started is not None
    if current is None:
        raise WeightsError(
            "the server's weights were sent to it and are not stored on disk",
            why="they could not be restored after the evaluation",
            fix="evaluate on a server of its own (without url), or use this one as it is",
            kind="unsupported",
        )
    left_behind = current.is_relative_to(siblings) and not started.is_relative_to(siblings)
    return started if left_behind else current


async def _attach(plan: AskConfig, engine: Engine, context: Context) -> Server:
    """The server, asked for its models; `enginehouse serve` may have started it.

    Raises ConfigurationError where address or key are missing, and WireError.
    """
    url = _url(plan, engine)
    record = None if isinstance(engine, RemoteEngine) else record_at(url, layout=context.layout)
    key = _key(plan, engine)
    if key is None and record is not None and record.has_api_key:
        key = read_key(record)
    server = await attach_server(url, engine=engine, api_key=key, model=plan.model)
    if record is None:
        return server
    return replace(
        server,
        name=record.name,
        environment=record.environment,
        command=record.command,
        admin_key=read_key(record),
        key_file=record.key_file,
    )


def _url(plan: AskConfig, engine: Engine) -> str:
    url = plan.url
    if url is None:
        assert isinstance(engine, RemoteEngine)
        url = address_of(engine)
    url = url.rstrip("/")
    for dialect in (engine.wire.chat, engine.wire.completions):
        if dialect is not None:  # documentation shows the whole address of the endpoint
            url = url.removesuffix(dialect.path)
    return url


def _key(plan: AskConfig, engine: Engine) -> str | None:
    if name := plan.api_key_env:
        if key := os.environ.get(name):
            return key
        raise ConfigurationError(
            f"{name} is not set, which --api-key-env names as the variable with the API key",
            fix=f"export {name}=… first, or correct --api-key-env",
        )
    if plan.server.api_key:
        return plan.server.api_key
    return key_of(engine) if isinstance(engine, RemoteEngine) else os.environ.get(API_KEY_VARIABLE)


def _model(plan: AskConfig, server: Server, engine: Engine) -> str:
    if plan.model is None:
        if isinstance(engine, RemoteEngine) or not server.models:
            raise ConfigurationError(
                f"{engine.name} needs the name of a model",
                fix=f"name one, such as {server.models[0]}" if server.models else "name one",
            )
        return server.models[0]
    # hosted APIs answer to aliases that they do not list
    if plan.model in server.models or isinstance(engine, RemoteEngine):
        return plan.model
    raise ConfigurationError(
        f"the server at {server.base_url} does not serve {plan.model!r}",
        fix=f"leave the model out, or name one of: {', '.join(server.models)}",
    )


def _provenance(server: Server, model: str) -> Provenance:
    """What is known of a server that was running already."""
    fields = ["weights_digest", "chat_template_digest"]
    if server.name is None:
        fields += ["engine_arguments", "environment"]
        reason = "enginehouse did not start the server"
    else:
        reason = f"{server.name} was started earlier, and what it has loaded since is not checked"
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
