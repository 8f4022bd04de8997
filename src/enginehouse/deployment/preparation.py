"""From a plan to everything that a server needs before it is started."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.core.errors import ConfigurationError, EnginehouseError
from enginehouse.core.registry import place_of
from enginehouse.deployment.compute_type import ComputeType, choose_type
from enginehouse.deployment.configuration import ServeConfig
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
from enginehouse.engines.registry import load_engine, load_served_engine
from enginehouse.processes.cpu import read_cpu
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.runtime.context import Context, Notify
from enginehouse.servers.endpoint import API_KEY_VARIABLE
from enginehouse.servers.server import (
    OwnedServer,
    StartLimits,
    start_server,
)


@dataclass(frozen=True)
class Prepared:
    """All that a server is started with, checked.

    `compute_type` was chosen for this CPU; `options` contains it, too.
    """

    engine: ServedEngine
    environment: EngineEnvironment
    model: ResolvedModel
    options: ServerOptions
    compute_type: ComputeType | None = None

    def quirks(self) -> tuple[Quirk, ...]:
        """What would kill this engine with these options, and is avoided."""
        if not isinstance(self.engine, SupportsQuirks):
            return ()
        return self.engine.quirks(self.options, environment=self.environment)


def choose_engine(wanted: str | None, *, notify: Notify = lambda _: None) -> Engine:
    """The wanted engine, or the default one if it can run here.

    Raises ConfigurationError if none is known to run here.
    """
    if wanted:
        notify(f"engine: {wanted}, as asked")
        return load_engine(wanted)
    engine, machine = load_served_engine(), this_machine()
    place = f"{machine.system.lower()} {machine.architecture.lower()}"
    problem = engine.unsuited(machine)
    if problem is None:
        notify(f"engine: {engine.name}, which runs on {place}")
        return engine
    raise ConfigurationError(
        f"no engine is known to run on {place}",
        why=f"{engine.name} {problem}",
        fix="use a server elsewhere with --url, or name another engine with --engine; "
        "`enginehouse doctor` says which may run here",
    )


async def prepare(plan: ServeConfig, context: Context) -> Prepared:
    """Find or build the engine environment, find the model, check every flag; start nothing.

    Raises ConfigurationError, ProvisioningError and ModelError.
    """
    reference = plan.model or (str(plan.path) if plan.path else None)
    if reference is None:
        raise ConfigurationError(
            "there is no model to serve",
            fix="name one: a Hugging Face handle, a checkpoint folder, a GGUF file, or smollm2",
        )
    options = with_api_key(plan.server)
    engine = choose_engine(plan.engine, notify=context.notify)
    if not isinstance(engine, ServedEngine):
        raise ConfigurationError(
            f"{engine.name} is a hosted API, which cannot be served",
            fix=f"use eval, chat or sample with --engine {engine.name}",
        )
    environment = await find_environment(
        engine.installation,
        python=plan.python,
        version=plan.version,
        variant=plan.variant,
        context=context,
    )
    try:
        engine.check(options, environment=environment)
    except EnginehouseError:
        raise
    except Exception as error:  # a plug-in may raise anything
        raise ConfigurationError(
            f"the engine {engine.name} raised {type(error).__name__} in check{place_of(error)}",
            why=str(error) or None,
            fix="report it to those who maintain this engine",
        ) from error
    model = await resolve_model(
        reference,
        fallback_path=plan.path if plan.model else None,
        environment=environment,
        model_format=engine.model_format,
        context=context,
    )
    compute_type = await asyncio.to_thread(_compute_type, options, engine, environment, model)
    if compute_type is not None:
        context.notify(
            f"computing in {compute_type.dtype}: {compute_type.reason} (--dtype says otherwise)"
        )
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
            context.notify(f"{quirk.kills} would kill this engine: {quirk.avoided}")
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


def start(
    prepared: Prepared, plan: ServeConfig, context: Context, *, name: str | None
) -> AbstractAsyncContextManager[OwnedServer]:
    """Start the prepared server; it is stopped when the block ends."""
    return start_server(prepared.model, name=name, **start_arguments(prepared, plan, context))


def start_arguments(prepared: Prepared, plan: ServeConfig, context: Context) -> dict[str, Any]:
    """What `start_server` and `launch_detached` need besides the model and a name."""
    return {
        "engine": prepared.engine,
        "environment": prepared.environment,
        "options": prepared.options,
        "context": context,
        "limits": StartLimits(total=plan.start_timeout, silence=plan.progress_timeout),
    }


def with_api_key(options: ServerOptions) -> ServerOptions:
    """The options, with the key from the environment unless they have one.

    Raises ConfigurationError for a server that others can reach and that has no key.
    """
    key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    options = options.model_copy(update={"api_key": key})
    require_api_key(options)
    return options
