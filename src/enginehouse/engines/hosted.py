"""What engines that somebody else runs have in common."""

from __future__ import annotations

from typing import ClassVar

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capabilities, Capability, LoadSignal


class HostedEngine:
    """A RemoteEngine whose facts are class attributes. It shows no queue, and wants a key."""

    name: ClassVar[str]
    wire: ClassVar[Wire]
    tried: ClassVar[str | None] = None
    url_variables: ClassVar[tuple[str, ...]]
    key_variables: ClassVar[tuple[str, ...]]
    needs_key: ClassVar[bool] = True
    default_url: ClassVar[str | None] = None
    supports: ClassVar[frozenset[Capability]]
    most_logprobs: ClassVar[int | None] = None

    @property
    def load_signal(self) -> LoadSignal | None:
        """None."""
        return None

    def capabilities(self, version: str | None) -> Capabilities:  # noqa: ARG002 - it is hidden
        """What its models do."""
        return Capabilities(supports=self.supports, most_logprobs=self.most_logprobs)
