"""What an engine is to the rest of Enginehouse. One engine is one folder beside this file.

`Engine` is what can be asked; `RemoteEngine` and `ServedEngine` say who runs it. The `Supports…`
protocols are opt-in: an engine that implements one has what it stands for.
"""

from __future__ import annotations

import ipaddress
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from enginehouse.client.wire import Wire
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, LoadSignal, SampleRequest
from enginehouse.diagnosis import LogProfile
from enginehouse.engines import arguments
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.engines.own_command import OwnCommand
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.installation import Installation

ModelFormat = Literal["checkpoint", "gguf", "none"]


class Engine(Protocol):
    """One kind of engine: what can be asked of it, and how. Stateless."""

    @property
    def name(self) -> str:
        """What `--engine` calls it; its folder's name."""
        ...

    @property
    def wire(self) -> Wire:
        """Its dialects and endpoints."""
        ...

    @property
    def tried(self) -> str | None:
        """What it was tested against; None means "documented, not run"."""
        ...

    @property
    def load_signal(self) -> LoadSignal | None:
        """How its queue is read; None where it shows none."""
        ...

    def capabilities(self, version: str | None) -> Capabilities:
        """What this version does; None is a server of unknown version."""
        ...


@runtime_checkable
class RemoteEngine(Engine, Protocol):
    """An engine that somebody else runs.

    Its address is `--url`, the first of `url_variables` that is set, or `default_url`; its key
    the first of `key_variables` that is set. `needs_key`: nothing is sent without one.
    """

    @property
    def url_variables(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def key_variables(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def needs_key(self) -> bool: ...  # noqa: D102

    @property
    def default_url(self) -> str | None: ...  # noqa: D102


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of a server that are asked outside its dialects.

    `canary` takes a completion of one token, or a chat if it ends with /chat/completions; None is
    /v1/completions, or /v1/chat/completions for an engine that takes no text. `guarded` is a
    harmless GET that must be refused without a key, which proves that the server checks keys; None
    where that is not asked. `lists_models`: it must list the models that it serves.
    """

    health: str = "/health"
    canary: str | None = None
    version: str = "/version"
    guarded: str | None = None
    lists_models: bool = True


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine is to run; `libc` is None where it was not looked at."""

    system: str
    architecture: str
    libc: str | None = None


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(system=platform.system(), architecture=platform.machine())


class LaunchContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine must know, besides the options, to write its command line.

    `start_limit`: seconds that the start may take; the engine's own limit should not be shorter.
    `admin_key` is required by endpoints that change the server; all others require the options'
    API key, if there is one. `cores`: CPU cores that the server will have to itself; None is all.
    """

    environment: EngineEnvironment
    model_path: str
    served_model_name: str
    port: int
    internal_port: int
    start_limit: float
    admin_key: str
    cores: int | None = None


@runtime_checkable
class ServedEngine(Engine, Protocol):
    """An engine that we start. Its wire has a `models_path`."""

    @property
    def installation(self) -> Installation:
        """How its environments are found and built."""
        ...

    @property
    def endpoints(self) -> Endpoints:
        """Where its servers are asked for their health, version and the like."""
        ...

    @property
    def gpu_share(self) -> float | None:
        """The fraction of a GPU's memory that it takes by default; None if it is not fixed."""
        ...

    @property
    def model_format(self) -> ModelFormat:
        """What its servers load: a Hugging Face checkpoint's folder, a GGUF file, or neither.

        With "none" a model is only a name.
        """
        ...

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are recognised and read."""
        ...

    def unsuited(self, machine: Machine) -> str | None:
        """Why the engine does not run on a machine; None if it may. GPUs are not considered."""
        ...

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise ConfigurationError or FlagError for what it would refuse; starts nothing."""
        ...

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and environment of a server. The API key goes into the environment."""
        ...


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """Something that kills an engine, and how it is avoided: by a flag, or by the client.

    `alone` selects the requests that must not run beside any other. `mixes_scores` kills nothing:
    requests for the log-probabilities of named tokens spoil those of the most likely ones beside
    them.
    """

    name: str
    kills: str | None
    avoided: str
    alone: Callable[[SampleRequest], bool] | None = None
    mixes_scores: bool = False


@runtime_checkable
class SupportsQuirks(Protocol):
    """An engine with known crashes that can be avoided."""

    def quirks(
        self, options: ServerOptions, *, environment: EngineEnvironment
    ) -> tuple[Quirk, ...]:
        """The quirks that a server started like this would have, and that are avoided."""
        ...


@runtime_checkable
class SupportsNodes(Protocol):
    """An engine of which one server can span several machines.

    The first one, the head, is an ordinary server whose options have `span_flags`. On each of the
    others a worker runs beside it, which answers nobody.
    """

    def span_flags(self, nodes: int, *, port: int, over: str | None = None) -> tuple[str, ...]:
        """What is added to `extra_args` for so many machines; `port` and the next one are free.

        `over` is what joins the machines ("ray"); None is the engine's own way.
        """
        ...

    def meeting_ports(self, options: ServerOptions) -> tuple[int, ...]:
        """The ports of the head where the others meet it; none for a server on one machine."""
        ...

    def worker(
        self, options: ServerOptions, *, context: LaunchContext, head: str, node: int
    ) -> Command:
        """The command line of the worker on machine `node` (from 1); `head` is the first one."""
        ...


def meeting_ports(engine: Engine, options: ServerOptions) -> tuple[int, ...]:
    """The ports where the parts of a server with these options meet; none if it has one part."""
    return engine.meeting_ports(options) if isinstance(engine, SupportsNodes) else ()


@runtime_checkable
class SupportsHistory(Protocol):
    """An engine that remembers flags which it no longer has."""

    @property
    def removed_flags(self) -> Mapping[str, str]:
        """What to do instead, by flag."""
        ...


@runtime_checkable
class SupportsOwnCommand(Protocol):
    """An engine whose own command line may be in a launch file. See `registry.own_command`."""

    @property
    def own_command(self) -> OwnCommand:
        """How it is started without Enginehouse."""
        ...


@runtime_checkable
class SupportsConfiguration(Protocol):
    """An engine that is asked in different ways, which the options of its server say."""

    def configured(self, options: ServerOptions) -> ServedEngine:
        """The engine for servers with these options."""
        ...


def configured(engine: Engine, options: ServerOptions) -> Engine:
    """The engine for servers with these options."""
    return engine.configured(options) if isinstance(engine, SupportsConfiguration) else engine


class LoraFlags(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is started for LoRA adapters.

    `enable` are the flags that turn them on. `ranks` are the values that `max_rank` takes, sorted;
    empty means any. `default_rank` is used without that flag; None if it is not known.
    """

    enable: tuple[str, ...] = ("--enable-lora",)
    max_rank: str = "--max-lora-rank"
    ranks: tuple[int, ...] = ()
    default_rank: int | None = None

    @property
    def largest(self) -> int | None:
        """The largest rank that a server can be started for; None if there is no limit."""
        return self.ranks[-1] if self.ranks else None

    def rank_for(self, needed: int) -> int:
        """The value of `max_rank` for adapters of rank `needed`, which may be too large."""
        return next((rank for rank in self.ranks if rank >= needed), needed)

    def are_enabled(self, command: Sequence[str]) -> bool:
        """Whether a server's command line turns adapters on."""
        return any(word.replace("_", "-").partition("=")[0] in self.enable for word in command)

    def rank_in(self, command: Sequence[str]) -> int | None:
        """The largest rank that a server started like this takes; None if that is not known."""
        value = arguments.option_of(command, self.max_rank)
        return int(value) if value and value.isdecimal() else self.default_rank


@runtime_checkable
class SupportsAdapters(Protocol):
    """An engine that loads LoRA adapters while it runs."""

    @property
    def lora(self) -> LoraFlags:
        """How its servers are started for that."""
        ...


class DTypeFlags(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is told the type to compute in.

    `open` are the values of the option `dtype` that leave the choice to us on a CPU; `decisive`
    are the flags in extra_args with which the user has chosen. `device` names a flag that may put
    the server on the CPU. `keeps_float16`: weights in float16 are computed in it by default;
    everything else is in bfloat16. GPUs without bfloat16 are not considered.
    """

    flag: str = "--dtype"
    decisive: frozenset[str] = frozenset({"--dtype"})
    device: str | None = None
    open: frozenset[DType | None] = frozenset()
    keeps_float16: bool = True

    def in_command(self, command: Sequence[str]) -> str | None:
        """The type that a command line names; None where it leaves it to the engine."""
        named = arguments.option_of(command, self.flag)
        aliases = {"half": "float16", "float": "float32", "auto": None}
        return aliases.get(named, named) if named else None

    def default_for(self, stored: str) -> str:
        """The type that weights stored as `stored` are computed in by default."""
        return "float16" if self.keeps_float16 and stored == "float16" else "bfloat16"


@runtime_checkable
class SupportsDTypes(Protocol):
    """An engine that can compute the same weights in several types."""

    @property
    def dtypes(self) -> DTypeFlags:
        """How it is told which."""
        ...


def is_administered(engine: ServedEngine, options: ServerOptions) -> bool:
    """Whether adapters can be loaded into the server, or its weights replaced, while it runs."""
    if options.enable_lora or options.enable_weight_swap:
        return True
    extra = arguments.split(options.extra_args)
    return isinstance(engine, SupportsAdapters) and engine.lora.are_enabled(extra)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only; other names count as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_api_key(options: ServerOptions) -> None:
    """Raise ConfigurationError for a server that others can reach and that has no API key."""
    if not is_loopback(options.host) and not options.api_key:
        raise ConfigurationError(
            f"a server on {options.host} can be reached from elsewhere and needs an API key",
            fix="set api_key (or ENGINEHOUSE_API_KEY), or leave host at 127.0.0.1",
        )
