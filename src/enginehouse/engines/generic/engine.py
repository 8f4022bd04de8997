"""Any server with OpenAI's endpoints, started by a command of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capabilities, Capability
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.engines.base import Endpoints, Machine, ModelFormat, is_loopback
from enginehouse.engines.generic import command_line
from enginehouse.engines.generic.diagnosis import PROFILE
from enginehouse.engines.generic.installation import INSTALLATION
from enginehouse.engines.generic.own_command import OWN_COMMAND
from enginehouse.engines.options import ServerOptions

_CHAT = frozenset({Capability.CHAT, Capability.TOOLS})
_TEXT = frozenset({Capability.TEXT})
_BOTH = frozenset({Capability.STREAM, Capability.LOGPROBS, Capability.PROMPT_LOGPROBS})


@dataclass(frozen=True, kw_only=True)
class GenericEngine:
    """Nothing is known about it but its endpoints, which its options name.

    What a server may ignore without a word (a seed, top_k) is not declared. One that leaves out
    the log-probabilities that it was asked for is noticed.
    """

    health: str = "/health"
    only: Literal["chat", "completions"] | None = None
    is_reachable: bool = False
    """Whether other machines can reach its servers, which must then check their keys."""

    name: ClassVar[str] = "generic"
    tried: ClassVar[str | None] = "vLLM's CPU build, by its command"
    load_signal: ClassVar[None] = None
    installation: ClassVar = INSTALLATION
    gpu_share: ClassVar[float | None] = None
    model_format: ClassVar[ModelFormat] = "none"
    log_profile: ClassVar = PROFILE
    own_command: ClassVar = OWN_COMMAND
    check = staticmethod(command_line.check)
    command = staticmethod(command_line.command)

    @property
    def wire(self) -> Wire:
        """OpenAI's endpoints, as far as the server has them."""
        return Wire(
            chat=None if self.only == "completions" else openai_chat,
            completions=None if self.only == "chat" else openai_completions,
        )

    @property
    def endpoints(self) -> Endpoints:
        """Where its server says that it is well."""
        return Endpoints(
            health=self.health,
            canary="/v1/completions" if self.only == "completions" else "/v1/chat/completions",
            guarded=self.wire.models_path if self.is_reachable else None,
            lists_models=False,
        )

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - it is unknown
        """What OpenAI's endpoints have, and what shows when it is missing."""
        own = {"chat": _CHAT, "completions": _TEXT, None: _CHAT | _TEXT}[self.only]
        return Capabilities(supports=own | _BOTH)

    def unsuited(self, machine: Machine) -> str | None:  # noqa: ARG002 - the command decides
        """None."""
        return None

    def configured(self, options: ServerOptions) -> GenericEngine:
        """See SupportsConfiguration."""
        return GenericEngine(
            health=options.health_path or "/health",
            only=options.only_endpoint,
            is_reachable=not is_loopback(options.host),
        )
