"""What an engine is, to those who start and ask it. One engine is one file beside this one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable

import msgspec
from pydantic import Field

from enginehouse.client.wire import Wire
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, LoadSignal, SampleRequest
from enginehouse.core.strict_model import StrictModel
from enginehouse.engines.diagnosis import Diagnosis, LogProfile
from enginehouse.executors.base import Command
from enginehouse.provisioning.environments import EngineEnvironment

PositiveInt = Annotated[int, Field(ge=1)]
ModelFormat = Literal["checkpoint", "gguf"]
DType = Literal["auto", "bfloat16", "float16", "float32"]


class ServerOptions(StrictModel):
    """How a server is to be started; None leaves the engine's own default.

    `env_vars` is added to the child's environment, `extra_args` to its command line (one string,
    split as a shell would, or a list).
    """

    host: str = "127.0.0.1"
    """The address to listen on; other than loopback, an API key is demanded."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The port; a free one is leased when not given."""
    tensor_parallel_size: PositiveInt | None = None
    """GPUs that share each layer."""
    pipeline_parallel_size: PositiveInt | None = None
    """Groups of GPUs that share the layers out."""
    data_parallel_size: PositiveInt | None = None
    """Copies of the model."""
    dtype: DType | None = None
    """The type to compute in: auto, bfloat16, float16, float32; by default a CPU's fastest."""
    max_model_len: PositiveInt | None = None
    """The longest prompt and answer together, in tokens."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The fraction of a GPU's memory that the engine may take."""
    max_num_seqs: PositiveInt | None = None
    """Sequences that are generated at once."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens that one step computes."""
    enable_prefix_caching: bool | None = None
    """Whether common beginnings of prompts are computed once."""
    enable_chunked_prefill: bool | None = None
    """Whether long prompts are computed in pieces."""
    enforce_eager: bool | None = None
    """Whether compilation is left out; on a CPU it is unless this is false."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""
    enable_lora: bool = False
    """Whether LoRA adapters can be loaded."""
    enable_weight_swap: bool = False
    """Whether the weights can be replaced while the server runs (vLLM's development endpoints)."""
    max_loras: PositiveInt | None = None
    """LoRA adapters in one batch."""
    max_lora_rank: PositiveInt | None = None
    """The largest rank of a LoRA adapter."""
    served_model_name: str | None = None
    """The name that requests use."""
    api_key: Annotated[str | None, Field(repr=False)] = None
    """The key that requests must carry; also taken from ENGINEHOUSE_API_KEY."""
    env_vars: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Variables added to the engine's environment (--env NAME=VALUE)."""
    avoid_quirks: bool = True
    """Whether what is known to kill this version of the engine is avoided."""
    extra_args: str | Sequence[str] = ()
    """Further flags of the engine, in one string or a list."""


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
