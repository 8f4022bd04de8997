"""SGLang: what it can do, and where in this folder everything else about it is."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import DTypeFlags, Endpoints, LaunchContext, Machine, ModelFormat
from enginehouse.engines.options import ServerOptions
from enginehouse.engines.platforms import needs_linux
from enginehouse.engines.sglang import command_line
from enginehouse.engines.sglang.diagnosis import PROFILE
from enginehouse.engines.sglang.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.engines.sglang.installation import INSTALLATION
from enginehouse.engines.sglang.wire import SGLANG, SglangLoadSignal
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment

# A seed counts only under --enable-deterministic-inference; log-probabilities of a prompt come from
# /generate only.
_LACKS = {Capability.SEED, Capability.PROMPT_LOGPROBS}


class SglangEngine:
    """SGLang, in its CUDA build."""

    name = "sglang"
    tried: str | None = None
    wire = SGLANG
    load_signal = SglangLoadSignal()
    installation = INSTALLATION
    endpoints = Endpoints(version="/server_info")
    gpu_share: float | None = None
    model_format: ModelFormat = "checkpoint"
    log_profile = PROFILE
    lora = command_line.LORA
    removed_flags = REMOVED_FLAGS
    dtypes = DTypeFlags()

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """What its OpenAI endpoints do; and the fields that they accept and ignore."""
        return Capabilities(supports=frozenset(Capability) - _LACKS, ignored=IGNORED_FIELDS)

    def unsuited(self, machine: Machine) -> str | None:
        """It is published for Linux only."""
        return needs_linux(machine)

    def check(self, options: ServerOptions, *, environment: EngineEnvironment) -> None:
        """Refuse what this version would refuse, or what Enginehouse sets itself."""
        command_line.check(options, environment)

    def command(self, options: ServerOptions, *, context: LaunchContext) -> Command:
        """The command line and the whole environment of a server."""
        return command_line.command(options, context)
