"""Our own plain server over transformers (payloads/hf_server)."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import (
    DTypeFlags,
    Endpoints,
    LoraFlags,
    Machine,
    ModelFormat,
)
from enginehouse.engines.hf import command_line
from enginehouse.engines.hf.diagnosis import PROFILE
from enginehouse.engines.hf.history import IGNORED_FIELDS
from enginehouse.engines.hf.installation import INSTALLATION
from enginehouse.engines.hf.wire import WIRE, HfLoadSignal


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
    check = staticmethod(command_line.check)
    command = staticmethod(command_line.command)

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """Everything but native tool calls.

        Tools reach it in the messages, and JSON schemas constrain the calls.
        """
        supports = frozenset(Capability) - {Capability.TOOLS}
        return Capabilities(supports=supports, ignored=IGNORED_FIELDS)

    def unsuited(self, machine: Machine) -> str | None:  # noqa: ARG002
        """None: it runs wherever torch does."""
        return None
