"""What a dialect is: one wire format for asking a model. One dialect is one file beside this."""

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
        ConfigurationError for an `extra` field that has a place of its own.
        """
        ...

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """The reply to `request`.

        Raises MalformedResponseError if the body is not what this dialect says, or lacks something
        that was asked for.
        """
        ...

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """The pieces in one event of a streamed reply; raises what an error in it stands for."""
        ...

    def is_end(self, data: bytes) -> bool:
        """Whether an event says that the stream is complete; it is not decoded."""
        ...


def require(capabilities: Capabilities, capability: Capability, what: str) -> None:
    """Raise UnsupportedError unless the engine has `capability`, which `what` needs."""
    if capability not in capabilities.supports:
        raise UnsupportedError(
            f"this engine does not support {what}",
            why=f"its declared capabilities lack {capability.value!r}; nothing was sent",
            fix=f"leave {what} out, or use an engine that has it",
        )
