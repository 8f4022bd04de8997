"""A dialect: one wire format for sampling from a model. Each dialect is a file in this folder."""

from __future__ import annotations

from typing import Protocol

from enginehouse.core.errors import UnsupportedError
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)


class Dialect(Protocol):
    """A generation endpoint's wire format."""

    path: str

    def encode(
        self, request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
    ) -> bytes:
        """The request's body.

        Raises UnsupportedError for what the capabilities lack or would silently ignore, and
        ConfigurationError for an `extra` field that the request sets already.
        """
        ...

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """The reply to `request`.

        Raises MalformedResponseError if the body does not follow this dialect, or lacks something
        that was requested.
        """
        ...

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """The pieces in one event of a streamed reply. Raises the error that it reports, if any."""
        ...

    def is_end(self, data: bytes) -> bool:
        """Whether an event marks the end of the stream; that event is not decoded."""
        ...


def require(capabilities: Capabilities, capability: Capability, what: str) -> None:
    """Raise UnsupportedError unless the engine has `capability`, which `what` needs."""
    if capability not in capabilities.supports:
        raise UnsupportedError(
            f"this engine does not support {what}",
            why=f"its declared capabilities lack {capability.value!r}; nothing was sent",
            fix=f"leave {what} out, or use an engine that supports it",
        )
