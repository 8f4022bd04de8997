"""Our own plain server over transformers (payloads/hf_server)."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import (
    DTypeFlags,
    Endpoints,
    LaunchContext,
    LoraFlags,
    Machine,
    ModelFormat,
)
from enginehouse.engines.hf import command_line
from enginehouse.engines.hf.diagnosis import PROFILE
from enginehouse.engines.hf.history import IGNORED_FIELDS
from enginehouse.engines.hf.installation import INSTALLATION
from enginehouse.engines.hf.wire import WIRE, HfLoadSignal
from enginehouse.engines.options import ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment


class HfEngine:
    """transformers behind a plain OpenAI-compatible server: a fall-back, and a reference."""

    name = "hf"
    tried = "the CPU build"
    wire = WIRE
    load_signal = HfLoadSignal()
    installation = INSTALLATION
    endpoints = Endpoints()
    gpu_share: float | None = 0.9
    model_format: ModelFormat = "checkpoint"
    log_profile = PROFILE
    lora = LoraFlags(default_rank=512)
    dtypes = DTypeFlags(
        decisive=frozenset({"--dtype", "--quantization", "-q"}),
        device="--device",
        open=frozenset({None, "auto"}),
        keeps_float16=False,
    )

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """Everything but native tool calls.

        Tools reach it in the messages, and JSON schemas constrain the calls.
        """
        supports = frozenset(Capability) - {Capability.TOOLS}
        return Capabilities(supports=supports, ignored=IGNORED_FIELDS)

    def unsuited(self, machine: Machine) -> str | None:  # noqa: ARG002
        """None: it runs wherever torch does."""
        return None

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Refuse what this version would refuse, or what Enginehouse sets itself."""
        command_line.check(options, environment)

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server."""
        return command_line.command(options, context)
