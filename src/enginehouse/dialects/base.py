"""What a dialect is: one wire format for asking a model. One dialect is one file beside this."""

from __future__ import annotations

from typing import Protocol

from enginehouse.core.sampler import Capabilities, Delta, SampleRequest, SampleResponse, Timing


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
