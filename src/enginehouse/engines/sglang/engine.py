"""SGLang: what it can do, and where in this folder everything else about it is."""

from __future__ import annotations

from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.engines.base import DTypeFlags, Endpoints, ModelFormat
from enginehouse.engines.platforms import needs_linux
from enginehouse.engines.sglang import command_line
from enginehouse.engines.sglang.diagnosis import PROFILE
from enginehouse.engines.sglang.history import IGNORED_FIELDS, REMOVED_FLAGS
from enginehouse.engines.sglang.installation import INSTALLATION
from enginehouse.engines.sglang.own_command import OWN_COMMAND
from enginehouse.engines.sglang.wire import SGLANG, SglangLoadSignal

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
    own_command = OWN_COMMAND
    dtypes = DTypeFlags()
    check = staticmethod(command_line.check)
    command = staticmethod(command_line.command)
    unsuited = staticmethod(needs_linux)

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - alike so far
        """What its OpenAI endpoints do; and the fields that they accept and ignore."""
        return Capabilities(supports=frozenset(Capability) - _LACKS, ignored=IGNORED_FIELDS)
