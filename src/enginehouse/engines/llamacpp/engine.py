"""llama.cpp's llama-server, built here or found."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import Endpoints, Machine, ModelFormat
from enginehouse.engines.llamacpp import command_line
from enginehouse.engines.llamacpp.diagnosis import PROFILE
from enginehouse.engines.llamacpp.history import IGNORED_FIELDS
from enginehouse.engines.llamacpp.installation import INSTALLATION
from enginehouse.engines.llamacpp.own_command import OWN_COMMAND
from enginehouse.engines.llamacpp.wire import WIRE, LlamaCppLoadSignal

# It counts the tokens of one answer only, so several are out. It drops tools silently where the
# chat template has no place for them, and does not enforce a required call where it has: schemas do
# that better.
_LACKS = {
    *(Capability.N, Capability.TOKEN_IDS, Capability.PROMPT_LOGPROBS),
    *(Capability.REGEX, Capability.TOOLS, Capability.ADAPTERS),
}


class LlamaCppEngine:
    """llama-server with one model, in a GGUF file."""

    name = "llamacpp"
    tried = "the CPU build"
    wire = WIRE
    load_signal = LlamaCppLoadSignal()
    installation = INSTALLATION
    endpoints = Endpoints()
    gpu_share: float | None = None
    model_format: ModelFormat = "gguf"
    log_profile = PROFILE
    own_command = OWN_COMMAND
    check = staticmethod(command_line.check)
    command = staticmethod(command_line.command)
    quirks = staticmethod(command_line.quirks)

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """What it does; and the fields that it accepts and ignores."""
        return Capabilities(supports=frozenset(Capability) - _LACKS, ignored=IGNORED_FIELDS)

    def unsuited(self, machine: Machine) -> str | None:  # noqa: ARG002
        """None: it can be compiled anywhere."""
        return None
