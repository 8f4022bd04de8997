"""From a model reference to a healthy server with a sampler, and back to an idle machine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from enginehouse.client.exclusive import ExclusiveRequests
from enginehouse.client.open_files import open_file_limit
from enginehouse.client.sampler import HTTPSampler
from enginehouse.client.stack import ServerLayers
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Provenance
from enginehouse.deployment.compute_type import ComputeType, choose_type, type_in_command
from enginehouse.deployment.configuration import ServeConfig, merged, parse
from enginehouse.deployment.supervision import Supervisor, supervised
from enginehouse.deployment.swapping import swapping
from enginehouse.engines.base import (
    Engine,
    Quirk,
    ServedEngine,
    SupportsDTypes,
    SupportsQuirks,
    require_api_key,
    this_machine,
)
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.registry import DEFAULT_ENGINE, load_engine, load_served_engine
from enginehouse.processes.cpu import read_cpu
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.runtime.context import Context, Notify
from enginehouse.servers.endpoint import API_KEY_VARIABLE
from enginehouse.servers.server import (
    OwnedServer,
    Server,
    StartLimits,
    launch_detached,
    start_server,
    stop_server,
)
from enginehouse.store.layout import Layout
from enginehouse.weights.swap import WeightSwapper

OnIncident = Callable[[Incident], None]
# Tells a restarted server again what it had been told, by way of a sampler that does not wait.
Restore = Callable[[HTTPSampler], Awaitable[object]]
# Gives a server that is ready what else it is to have; the server as it is to be announced.
Equip = Callable[[Server, Engine], Awaitable[Server]]


@dataclass(frozen=True)
class Prepared:
    """Everything that must be right before a server is started.

    `compute_type` is what was chosen for this CPU; `options` has it, too.
    """

    engine: ServedEngine
    environment: EngineEnvironment
    model: ResolvedModel
    options: ServerOptions
    compute_type: ComputeType | None = None

    def quirks(self) -> tuple[Quirk, ...]:
        """What is known to kill this engine as it is to be started, and is avoided."""
        if not isinstance(self.engine, SupportsQuirks):
            return ()
        return self.engine.quirks(self.options, environment=self.environment)


@dataclass(frozen=True)
class Serving:
    """A ready server and the way to ask it. `model` and `adapter` are those that we serve.

    `weights` swaps full weights; None where that cannot be done.
    """

    current: Callable[[], Server]
    engine: Engine
    sampler: HTTPSampler
    provenance: Provenance
    model: ResolvedModel | None = None
    adapter: Path | None = None
    weights: WeightSwapper | None = None
    shared: ServerLayers | None = None
    after_restart: Callable[[Restore], None] = lambda _: None

    def sampler_of(self, model: str, concurrency: int | None) -> HTTPSampler:
        """What asks another of the server's models; not entered yet."""
        return make_sampler(
            self.server,
            self.engine,
            concurrency=concurrency,
            model=model,
            shared=self.shared,
        )

    @property
    def server(self) -> Server:
        """The server as it is now: a restart changes its pid and log."""
        return self.current()

    @property
    def url(self) -> str:
        """The server's base URL, without /v1."""
        return self.server.base_url

    @property
    def models(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the default."""
        return self.server.models


def choose_engine(wanted: str | None, *, notify: Notify) -> str:
    """The wanted engine, or vLLM where it can run. Raises ConfigurationError elsewhere."""
    if wanted:
        notify(f"engine: {wanted}, as asked")
        return wanted
    machine = this_machine()
    place = f"{machine.system.lower()} {machine.architecture.lower()}"
    problem = load_served_engine().unsuited(machine)
    if problem is None:
        notify(f"engine: {DEFAULT_ENGINE}, which runs on {place}")
        return DEFAULT_ENGINE
    raise ConfigurationError(
        f"no engine is known to run on {place}",
        why=f"{DEFAULT_ENGINE} {problem}",
        fix="use a server elsewhere with --url, or try --engine hf or llamacpp (untried there)",
    )


async def prepare(config: ServeConfig, *, layout: Layout, notify: Notify) -> Prepared:
    """Find or build the engine environment, find the model, check every flag; start nothing."""
    reference = config.model or (str(config.path) if config.path else None)
    if reference is None:
        raise ConfigurationError(
            "there is no model to serve",
            fix="name one: a Hugging Face handle, a checkpoint folder, a GGUF file, or smollm2",
        )
    options = with_api_key(config.server)
    require_api_key(options)
    name = choose_engine(config.engine, notify=notify)
    engine = load_engine(name)
    if not isinstance(engine, ServedEngine):
        raise ConfigurationError(
            f"{name} is asked, not served",
            why="it runs elsewhere",
            fix=f"leave serving out: eval, bench, chat and sample take --engine {name}",
        )
    environment = await find_environment(
        engine.installation,
        python=config.python,
        version=config.version,
        variant=config.variant,
        context=Context(layout=layout, notify=notify),
    )
    engine.check(options, environment=environment)
    model = await resolve_model(
        reference,
        fallback_path=config.path if config.model else None,
        environment=environment,
        model_format=engine.model_format,
        context=Context(layout=layout, notify=notify),
    )
    compute_type = await asyncio.to_thread(_compute_type, options, engine, environment, model)
    if compute_type is not None:
        notify(f"computing in {compute_type.dtype}: {compute_type.reason} (--dtype says otherwise)")
        options = options.model_copy(update={"dtype": compute_type.dtype})
    prepared = Prepared(
        engine=engine,
        environment=environment,
        model=model,
        options=options,
        compute_type=compute_type,
    )
    for quirk in prepared.quirks():
        if quirk.alone:
            notify(f"{quirk.kills} would kill this engine: {quirk.avoided}")
    return prepared


def _compute_type(
    options: ServerOptions,
    engine: ServedEngine,
    environment: EngineEnvironment,
    model: ResolvedModel,
) -> ComputeType | None:
    if not isinstance(engine, SupportsDTypes) or not engine.dtypes.open:
        return None
    return choose_type(
        options,
        engine=engine,
        environment=environment,
        checkpoint=read_checkpoint(Path(model.path)),
        cpu=read_cpu(),
    )


@asynccontextmanager
async def serving(
    config: ServeConfig,
    *,
    layout: Layout,
    notify: Notify,
    concurrency: int | None = None,
    on_incident: OnIncident = lambda _: None,
) -> AsyncIterator[Serving]:
    """A server of our own; stopped, with every descendant, when the block ends however it ends.

    One that dies under work is started again, and what it took with it is asked again: see
    `deployment.supervision`. `on_incident` is told each death.
    """
    prepared = await prepare(config, layout=layout, notify=notify)
    async with (
        _started(prepared, config, name=None, layout=layout, notify=notify) as owned,
        _supervised(owned, config, notify=notify, on_incident=on_incident) as supervisor,
        swapping(owned, supervisor=supervisor, layout=layout, alone=True) as swaps,
        AsyncExitStack() as stack,
    ):
        shared = ServerLayers(
            exclusive=exclusive_requests(prepared.quirks()),
            gate=swaps.gate,
            redelivery=supervisor.redelivery,
        )
        sampler = await stack.enter_async_context(
            make_sampler(owned.server, prepared.engine, concurrency=concurrency, shared=shared)
        )
        # past the layers in which requests wait for a restoration
        direct = await stack.enter_async_context(
            make_sampler(owned.server, prepared.engine, concurrency=1)
        )
        say_bound(sampler, notify)
        yield Serving(
            current=lambda: owned.server,
            engine=prepared.engine,
            sampler=sampler,
            provenance=_provenance(owned.server, prepared),
            weights=swaps.swapper,
            model=prepared.model,
            shared=shared,
            after_restart=lambda restore: supervisor.restorations.append(partial(restore, direct)),
        )


def _started(
    prepared: Prepared, config: ServeConfig, *, name: str | None, layout: Layout, notify: Notify
) -> AbstractAsyncContextManager[OwnedServer]:
    return start_server(prepared.model, name=name, **_arguments(prepared, config, layout, notify))


def _arguments(
    prepared: Prepared, config: ServeConfig, layout: Layout, notify: Notify
) -> dict[str, Any]:
    limits = StartLimits(total=config.start_timeout, silence=config.progress_timeout)
    return {
        "engine": prepared.engine,
        "environment": prepared.environment,
        "options": prepared.options,
        "context": Context(layout=layout, notify=notify),
        "limits": limits,
    }


def _supervised(
    owned: OwnedServer, config: ServeConfig, *, notify: Notify, on_incident: OnIncident
) -> AbstractAsyncContextManager[Supervisor]:
    return supervised(
        owned,
        patience=config.progress_timeout,
        max_restarts=config.max_restarts,
        notify=notify,
        on_incident=on_incident,
    )


async def serve_until_stopped(
    config: ServeConfig,
    *,
    name: str | None,
    layout: Layout,
    notify: Notify,
    ready: Callable[[Server], None],
    equip: Equip | None = None,
) -> None:
    """Serve until cancelled, starting the server again if it ends by itself.

    `equip` is awaited before `ready`, and after each restart. Raises ServerGoneError when the
    server is given up.
    """
    prepared = await prepare(config, layout=layout, notify=notify)
    async with (
        _started(prepared, config, name=name, layout=layout, notify=notify) as owned,
        _supervised(owned, config, notify=notify, on_incident=lambda _: None) as supervisor,
        swapping(owned, supervisor=supervisor, layout=layout, alone=False),
    ):
        server = owned.server
        if equip is not None:
            server = await equip(server, prepared.engine)
            supervisor.restorations.append(partial(equip, server, prepared.engine))
        ready(server)
        await supervisor.watching


async def serve_detached(
    config: ServeConfig,
    *,
    name: str | None,
    layout: Layout,
    notify: Notify,
    ready: Callable[[Server], None],
    equip: Equip | None = None,
) -> None:
    """Start a server that outlives us; `servers.stop_server` ends it. Nobody restarts it.

    `equip` is awaited before `ready`; where it fails, the server is stopped.
    """
    prepared = await prepare(config, layout=layout, notify=notify)
    arguments = _arguments(prepared, config, layout, notify)
    server = await launch_detached(prepared.model, name=name, **arguments)
    if equip is not None:
        try:
            server = await equip(server, prepared.engine)
        except BaseException:
            assert server.name is not None
            await stop_server(server.name, layout=layout)
            raise
    ready(server)


def with_api_key(options: ServerOptions) -> ServerOptions:
    """The options with the key from the environment where they have none."""
    key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    return options.model_copy(update={"api_key": key})


def exclusive_requests(quirks: Sequence[Quirk]) -> ExclusiveRequests | None:
    """The layer that keeps apart what would kill the engine together; None where nothing would."""
    rules = [quirk.alone for quirk in quirks if quirk.alone]
    if not rules:
        return None
    return ExclusiveRequests(lambda request: any(rule(request) for rule in rules))


def say_bound(sampler: HTTPSampler, notify: Notify) -> None:
    """Say so where this process may open too few files for the concurrency that was wanted."""
    if sampler.bounded_to is not None:
        notify(
            f"at most {sampler.bounded_to} requests at a time: this process may open "
            f"{open_file_limit()} files (ulimit -n)"
        )


def make_sampler(
    server: Server,
    engine: Engine,
    *,
    concurrency: int | None,
    model: str | None = None,
    shared: ServerLayers | None = None,
) -> HTTPSampler:
    """What asks a server; not entered yet."""
    return HTTPSampler(
        server.base_url,
        model=model or server.models[0],
        capabilities=engine.capabilities(server.version),
        wire=engine.wire,
        api_key=server.api_key,
        admin_key=server.admin_key,
        concurrency=concurrency,
        load_signal=engine.load_signal,
        shared=shared,
    )


def _provenance(server: Server, prepared: Prepared) -> Provenance:
    model = prepared.model
    return Provenance(
        engine=prepared.environment.engine,
        engine_version=prepared.environment.version,
        engine_arguments=server.command,
        environment=prepared.environment.key or str(prepared.environment.executable),
        model=model.reference,
        weights_digest=model.weights_digest,
        chat_template_digest=model.chat_template_digest,
        base_url=server.base_url,
        revision=model.revision,
        dtype=type_in_command(server.engine, server.command or ()),
        dtype_reason=prepared.compute_type.reason if prepared.compute_type else None,
        unknown=model.unknown,
    )


@asynccontextmanager
async def serve(
    model: str,
    *,
    notify: Notify = lambda _: None,
    concurrency: int | None = None,
    engine: str | None = None,
    python: str | None = None,
    **server: Any,
) -> AsyncIterator[Serving]:
    """Serve `model` for the length of the block: what `enginehouse serve` does.

    `server` holds the fields of ServerOptions (max_model_len=4096, …). Raises ConfigurationError,
    ProvisioningError, ModelError or ServerError, each saying what to do next.
    """
    values = merged({}, {"model": model, "engine": engine, "python": python, "server": server})
    config = parse(ServeConfig, values, origin="serve()")
    async with serving(
        config, layout=Layout.from_environment(), notify=notify, concurrency=concurrency
    ) as ready:
        yield ready
