"""What engines that somebody else runs have in common."""

from __future__ import annotations

import os
from typing import ClassVar

from enginehouse.client.wire import Wire
from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Capabilities, Capability, LoadSignal
from enginehouse.engines.base import RemoteEngine


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


def address_of(engine: RemoteEngine) -> str:
    """The engine's address if none is given. Raises ConfigurationError if it has none."""
    named = (os.environ.get(name) for name in engine.url_variables)
    address = next((value for value in named if value), engine.default_url)
    if address is None:
        raise ConfigurationError(
            f"there is no address of a {engine.name} server",
            fix=f"give a URL, or set {engine.url_variables[0]}",
        )
    return address


def key_of(engine: RemoteEngine) -> str | None:
    """The engine's API key if none is given. Raises ConfigurationError if it needs one."""
    key = next((value for name in engine.key_variables if (value := os.environ.get(name))), None)
    if key is None and engine.needs_key:
        raise ConfigurationError(
            f"there is no API key for {engine.name}; nothing was sent",
            fix=f"export {engine.key_variables[0]}=…, or give another (--api-key-env, api_key)",
        )
    return key
