"""From a model reference to a healthy server with a sampler, and back to an idle machine."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import ConfigurationError, ServerGoneError
from enginehouse.core.sampler import Provenance
from enginehouse.engines.base import Engine, ServerOptions, demand_api_key
from enginehouse.engines.diagnosis import explained
from enginehouse.engines.registry import ENGINES
from enginehouse.executors.tree import identify, is_alive
from enginehouse.launch.configuration import EvaluationConfig, ServeConfig, merged, parse
from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.servers.endpoint import API_KEY_VARIABLE
from enginehouse.servers.server import Server, attach_server, launch_detached, start_server
from enginehouse.store.layout import Layout

Notify = Callable[[str], None]
Result = TypeVar("Result")

_WATCH = 0.5  # seconds between looks at a server that nobody asks


@dataclass(frozen=True)
class Prepared:
    """Everything that must be right before a server is started."""

    engine: Engine
    environment: EngineEnvironment
    model: ResolvedModel
    options: ServerOptions


@dataclass(frozen=True)
class Serving:
    """A ready server and the way to ask it."""

    server: Server
    engine: Engine
    sampler: HTTPSampler
    provenance: Provenance

    @property
    def url(self) -> str:
        """The server's base URL, without /v1."""
        return self.server.base_url

    @property
    def models(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the default."""
        return self.server.models

    async def while_it_lives(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, which is cancelled if the server ends by itself before it.

        Then raises ServerGoneError. A server that is not ours is not watched.
        """
        if self.server.pid is None:
            return await work
        doing = asyncio.ensure_future(work)
        end = asyncio.ensure_future(_end(self.server, engine=self.engine))
        try:
            await asyncio.wait({doing, end}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            doing.cancel()
            end.cancel()
            await asyncio.gather(doing, end, return_exceptions=True)
        if doing.cancelled() and not end.cancelled():
            raise end.result()
        return doing.result()


def choose_engine(wanted: str | None, *, notify: Notify) -> str:
    """The wanted engine, or vLLM where it can run. Raises ConfigurationError elsewhere."""
    if wanted:
        notify(f"engine: {wanted}, as asked")
        return wanted
    machine = platform.machine().lower()
    if sys.platform == "linux" and machine in {"x86_64", "amd64", "aarch64", "arm64"}:
        notify(f"engine: vllm, which runs on {sys.platform} {machine}")
        return "vllm"
    raise ConfigurationError(
        f"no engine of ours runs on {sys.platform} {machine}",
        why="vLLM needs Linux on x86-64 or arm64",
        fix="use a server elsewhere with --url, or name an engine with --engine",
    )


async def prepare(config: ServeConfig, *, layout: Layout, notify: Notify) -> Prepared:
    """Find or build the engine environment, find the model, check every flag; start nothing."""
    reference = config.model or (str(config.path) if config.path else None)
    if reference is None:
        raise ConfigurationError(
            "there is no model to serve",
            fix="name one: a Hugging Face handle, a checkpoint folder, a GGUF file, or smollm2",
        )
    options = _with_api_key(config.server)
    demand_api_key(options)
    name = choose_engine(config.engine, notify=notify)
    environment = await find_environment(
        name,
        python=config.python,
        version=config.version,
        variant=config.variant,
        layout=layout,
        notify=notify,
    )
    engine: Engine = ENGINES.load(name)()
    engine.check(options, environment=environment)
    model = await resolve_model(
        reference,
        fallback_path=config.path if config.model else None,
        environment=environment,
        layout=layout,
        notify=notify,
    )
    return Prepared(engine=engine, environment=environment, model=model, options=options)


@asynccontextmanager
async def serving(
    config: ServeConfig,
    *,
    layout: Layout,
    notify: Notify,
    concurrency: int | None = None,
) -> AsyncIterator[Serving]:
    """A server of our own; stopped, with every descendant, when the block ends however it ends."""
    prepared = await prepare(config, layout=layout, notify=notify)
    arguments = _arguments(prepared, config, layout=layout, notify=notify)
    async with (
        start_server(prepared.model, **arguments) as server,
        _sampler(server, prepared.engine, concurrency=concurrency) as sampler,
    ):
        yield Serving(
            server=server,
            engine=prepared.engine,
            sampler=sampler,
            provenance=_provenance(server, prepared),
        )


def _arguments(
    prepared: Prepared, config: ServeConfig, *, layout: Layout, notify: Notify
) -> dict[str, Any]:
    return {
        "engine": prepared.engine,
        "environment": prepared.environment,
        "options": prepared.options,
        "layout": layout,
        "notify": notify,
        "start_timeout": config.start_timeout,
    }


async def _end(server: Server, *, engine: Engine) -> ServerGoneError:
    """Wait until a server of ours ends by itself; the error that says so."""
    assert server.pid is not None
    process = identify(server.pid)
    while process is not None and is_alive(process):  # noqa: ASYNC110 (nothing tells us)
        await asyncio.sleep(_WATCH)
    error = ServerGoneError(
        f"the server {server.name} ended by itself",
        why="its log does not say; one that the kernel killed for memory looks like this",
        fix="read the log and mend the cause; then serve again, or resume the run",
    )
    return explained(error, engine.diagnose(server.log) if server.log else None, log=server.log)


async def serve_until_stopped(
    config: ServeConfig,
    *,
    name: str | None,
    layout: Layout,
    notify: Notify,
    ready: Callable[[Server], None],
) -> None:
    """Serve until cancelled. Raises ServerGoneError if the server ends before that."""
    prepared = await prepare(config, layout=layout, notify=notify)
    arguments = _arguments(prepared, config, layout=layout, notify=notify)
    async with start_server(prepared.model, name=name, **arguments) as server:
        ready(server)
        raise await _end(server, engine=prepared.engine)


async def serve_detached(
    config: ServeConfig,
    *,
    name: str | None,
    layout: Layout,
    notify: Notify,
    ready: Callable[[Server], None],
) -> None:
    """Start a server that outlives us; `servers.stop_server` ends it."""
    prepared = await prepare(config, layout=layout, notify=notify)
    arguments = _arguments(prepared, config, layout=layout, notify=notify)
    ready(await launch_detached(prepared.model, name=name, **arguments))


@asynccontextmanager
async def attached(config: EvaluationConfig, *, notify: Notify) -> AsyncIterator[Serving]:
    """The server at `config.url`, which is not ours and is never stopped."""
    engine: Engine = ENGINES.load(config.engine or "vllm")()
    assert config.url is not None
    api_key = _with_api_key(config.server).api_key
    server = await attach_server(config.url, api_key=api_key, engine=engine)
    model = config.model or server.models[0]
    if model not in server.models:
        raise ConfigurationError(
            f"the server at {server.base_url} does not serve {model!r}",
            fix=f"leave the model out, or name one of: {', '.join(server.models)}",
        )
    notify(
        f"using {server.base_url}, which serves {', '.join(server.models)}; it is not ours to stop"
    )
    if unused := _unused(config):
        notify(f"given, but without effect on a server that runs already: {', '.join(unused)}")
    async with _sampler(server, engine, concurrency=config.concurrency, model=model) as sampler:
        yield Serving(
            server=server, engine=engine, sampler=sampler, provenance=_foreign(server, model)
        )


def _unused(config: EvaluationConfig) -> list[str]:
    """The settings that only a server of ours would take."""
    own = [n for n in ("path", "python", "version", "variant") if getattr(config, n) is not None]
    return own + [n for n in config.server.model_dump(exclude_defaults=True) if n != "api_key"]


def _with_api_key(options: ServerOptions) -> ServerOptions:
    key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    return options.model_copy(update={"api_key": key})


def _sampler(
    server: Server, engine: Engine, *, concurrency: int | None, model: str | None = None
) -> HTTPSampler:
    return HTTPSampler(
        server.base_url,
        model=model or server.models[0],
        capabilities=engine.capabilities(server.version),
        api_key=server.api_key,
        concurrency=concurrency,
        load_signal=engine.load_signal,
    )


def _provenance(server: Server, prepared: Prepared) -> Provenance:
    model = prepared.model
    return Provenance(
        engine=prepared.environment.engine,
        engine_version=prepared.environment.version,
        engine_arguments=server.command,
        environment=prepared.environment.key or str(prepared.environment.python),
        model=model.reference,
        weights_digest=model.weights_digest,
        chat_template_digest=model.chat_template_digest,
        base_url=server.base_url,
        revision=model.revision,
        unknown=model.unknown,
    )


def _foreign(server: Server, model: str) -> Provenance:
    reason = "the server at --url is not ours"
    fields = ("engine_arguments", "environment", "weights_digest", "chat_template_digest")
    unknown = dict.fromkeys(fields, reason)
    if server.version is None:
        unknown |= dict.fromkeys(("engine", "engine_version"), "the server does not say")
    return Provenance(
        engine=server.engine,
        engine_version=server.version,
        engine_arguments=None,
        environment=None,
        model=model,
        weights_digest=None,
        chat_template_digest=None,
        base_url=server.base_url,
        unknown=unknown,
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
