"""What an engine is, to those who start and ask it. One engine is one file beside this one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from enginehouse.client.wire import Wire
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, LoadSignal, SampleRequest
from enginehouse.diagnosis import Diagnosis, LogProfile
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment

ModelFormat = Literal["checkpoint", "gguf"]


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only; other names count as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def demand_api_key(options: ServerOptions) -> None:
    """Raise ConfigurationError for a server that others can reach and that has no API key."""
    if not is_loopback(options.host) and not options.api_key:
        raise ConfigurationError(
            f"a server on {options.host} can be reached from elsewhere and needs an API key",
            fix="set api_key (or ENGINEHOUSE_API_KEY), or leave host at 127.0.0.1",
        )


class LaunchContext(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine must know, besides the options, to write its command line.

    `start_limit`: seconds that the start may take; the engine's own limit should not be shorter.
    `admin_key` is what endpoints that change the server demand; the options' API key, if there is
    one, is what all others demand.
    """

    environment: EngineEnvironment
    model_path: str
    served_model_name: str
    port: int
    internal_port: int
    start_limit: float
    admin_key: str


class Quirk(msgspec.Struct, frozen=True, kw_only=True):
    """Something that kills an engine, and how it is avoided: by a flag, or by the client.

    `alone` tells the requests that must be under way by themselves.
    """

    name: str
    kills: str
    avoided: str
    alone: Callable[[SampleRequest], bool] | None = None


class Engine(Protocol):
    """What can be asked of one kind of engine, and how. Stateless."""

    name: str
    wire: Wire

    @property
    def tried(self) -> str | None:
        """Against what it has been tested; None is «documented, not run»."""
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
    """One that somebody else runs: we only ask.

    Its address is `--url`, the first of `url_variables` that is set, or `default_url`; its key
    the first of `key_variables` that is set. `needs_key`: nothing is sent without one.
    """

    url_variables: tuple[str, ...]
    key_variables: tuple[str, ...]
    needs_key: bool

    @property
    def default_url(self) -> str | None:
        """The vendor's own address; None where there is none."""
        ...


@runtime_checkable
class ServedEngine(Engine, Protocol):
    """One that we start: besides, command lines and readings of logs."""

    health_path: str
    models_path: str
    canary_path: str
    version_path: str
    guarded_path: str | None
    """A harmless GET that must be refused without a key, as a proof that our guard is in place."""

    @property
    def model_format(self) -> ModelFormat:
        """What its servers load: a Hugging Face checkpoint's folder, or a GGUF file."""
        ...

    @property
    def load_signal(self) -> LoadSignal:
        """How its queue is read."""
        ...

    @property
    def open_dtypes(self) -> frozenset[DType | None]:
        """Values of the option `dtype` that leave the choice to us where it runs on a CPU."""
        ...

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Raise FlagError for a flag that this environment's engine lacks; starts nothing."""
        ...

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and environment of a server. The API key goes into the environment."""
        ...

    def quirks(
        self, options: ServerOptions, *, environment: EngineEnvironment
    ) -> tuple[Quirk, ...]:
        """The quirks that a server so started would have, and that are avoided."""
        ...

    @property
    def log_profile(self) -> LogProfile:
        """How its logs are recognised and read."""
        ...

    def diagnose(self, log: Path, *, exit_code: int | None = None) -> Diagnosis | None:
        """Why a server failed, from its log and exit code; None if neither says anything.

        `exit_code` is negative for a signal, None while it runs or where it is not known. Blocks
        for as long as reading the log takes.
        """
        ...
