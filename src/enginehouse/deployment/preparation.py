"""From a plan to everything that a server needs before it is started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from enginehouse.core.errors import ConfigurationError, EnginehouseError
from enginehouse.core.registry import place_of
from enginehouse.core.sampler import Capability
from enginehouse.deployment.compute_type import ComputeType, choose_type
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.dialects.base import require
from enginehouse.engines import arguments
from enginehouse.engines.base import (
    Engine,
    LoraFlags,
    Quirk,
    ServedEngine,
    SupportsAdapters,
    SupportsConfiguration,
    SupportsDTypes,
    SupportsQuirks,
    configured,
    is_loopback,
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
from enginehouse.servers.readiness import StartLimits
from enginehouse.servers.server import OwnedServer
from enginehouse.weights.peft_folder import read_peft_folder

Plan = TypeVar("Plan", bound=ServeConfig)
_RANK = 64  # where the adapters are not known yet


@dataclass(frozen=True)
class Prepared:
    """All that a server is started with, checked.

    `options` are those of the plan, completed: with LoRA for its adapter, the API key, and
    `compute_type`, which was chosen for this CPU.
    """

    plan: ServeConfig
    engine: ServedEngine
    environment: EngineEnvironment
    model: ResolvedModel
    options: ServerOptions
    compute_type: ComputeType | None = None

    def server(self, context: Context, *, cpus: frozenset[int] | None = None) -> OwnedServer:
        """The server, for `start_server` or `launch_detached`; on `cpus` only, if given."""
        return OwnedServer(
            model=self.model,
            engine=self.engine,
            environment=self.environment,
            options=self.options,
            context=context,
            limits=StartLimits(total=self.plan.start_timeout, silence=self.plan.progress_timeout),
            cpus=cpus,
        )

    def answer_options(self) -> tuple[str, ...]:
        """Those of the options that may change answers, as words; not ports, memory or batches."""
        length = self.options.max_model_len
        return (
            *((self.options.command,) if self.options.command else ()),
            *((f"--max-model-len={length}",) if length else ()),
            *arguments.split(self.options.extra_args),
        )

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
        notify(f"engine: {wanted}, as requested")
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
        "`enginehouse doctor` shows which can run here",
    )


async def prepare(plan: ServeConfig, context: Context) -> Prepared:
    """Find or build the engine environment, find the model, check every flag; start nothing.

    Raises ConfigurationError, ProvisioningError, ModelError, and what `with_adapters` does.
    """
    reference = plan.model or (str(plan.path) if plan.path else None)
    if reference is None:
        raise ConfigurationError(
            "there is no model to serve",
            fix="name one: a Hugging Face handle, a checkpoint folder, a GGUF file, or smollm2",
        )
    if plan.adapter is not None:
        plan = await asyncio.to_thread(with_adapters, plan, [plan.adapter])
    options = with_own_variables(with_api_key(plan.server))
    engine = configured(choose_engine(plan.engine, notify=context.notify), options)
    if not isinstance(engine, ServedEngine):
        raise ConfigurationError(
            f"{engine.name} is a hosted API, which cannot be served",
            fix=f"use eval, chat or sample with --engine {engine.name}",
        )
    _require_no_command(engine, options)
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
            fix="report it to the maintainers of this engine",
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
        plan=plan,
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


def _require_no_command(engine: ServedEngine, options: ServerOptions) -> None:
    """Refuse what only an engine that is started by the user's own command takes."""
    if isinstance(engine, SupportsConfiguration):
        return
    for field in ("command", "health_path", "only_endpoint"):
        if getattr(options, field) is not None:
            raise ConfigurationError(
                f"{engine.name} does not accept {field}",
                why=f"{engine.name} is started by Enginehouse, which knows its endpoints",
                fix="leave it out, or use --engine generic for a server with its own command",
            )


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


def with_api_key(options: ServerOptions) -> ServerOptions:
    """The options, with the key from the environment unless they have one.

    Raises ConfigurationError for a server that others can reach and that has no key.
    """
    key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    options = options.model_copy(update={"api_key": key})
    require_api_key(options)
    return options


def with_own_variables(options: ServerOptions) -> ServerOptions:
    """The options with the values of `env_names` among their variables.

    Raises ConfigurationError naming those that are not set here.
    """
    if missing := [name for name in options.env_names if name not in os.environ]:
        raise ConfigurationError(
            f"the server needs {', '.join(missing)}, which is not set here",
            why="server.env_names (--env NAME) names it",
            fix="export it first, or leave it out",
        )
    own = {name: os.environ[name] for name in options.env_names}
    return options.model_copy(update={"env_vars": {**own, **options.env_vars}})


def needs_api_key(options: ServerOptions) -> bool:
    """Whether others can reach the server, and the user has set no key for it."""
    has_key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    return not is_loopback(options.host) and not has_key


def with_weight_swap(plan: Plan) -> Plan:
    """The plan of a server whose weights can be swapped, if its engine can do that."""
    engine = choose_engine(plan.engine)
    if engine.wire.weights is None:
        return plan
    options = plan.server.model_copy(update={"enable_weight_swap": True})
    return plan.model_copy(update={"server": options})


def with_adapters(
    plan: Plan, folders: Iterable[Path] = (), *, max_loras: int | None = None
) -> Plan:
    """The plan with LoRA enabled, for ranks as large as those of `folders`.

    `max_loras` adapters can be open as targets at the same time; None leaves that to the engine.
    What the plan itself says takes precedence. Blocking. Raises AdapterError for a folder that
    holds no adapter, UnsupportedError for an engine that takes none.
    """
    engine = choose_engine(plan.engine)
    require(engine.capabilities(None), Capability.ADAPTERS, "LoRA adapters")
    needed = max((read_peft_folder(folder).rank for folder in folders), default=_RANK)
    options = plan.server
    lora = engine.lora if isinstance(engine, SupportsAdapters) else LoraFlags()
    rank = options.max_lora_rank or lora.rank_for(needed)
    options = options.model_copy(
        update={
            "enable_lora": True,
            "max_lora_rank": rank,
            "max_loras": options.max_loras or max_loras,
        }
    )
    return plan.model_copy(update={"server": options})
