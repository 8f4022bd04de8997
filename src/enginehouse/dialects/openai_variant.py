"""OpenAI's dialects as servers speak them that have fields of their own beside them."""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.dialects.base import Dialect


class Changes(msgspec.Struct, frozen=True):
    """How a server's request differs: fields of its own, and what they replace.

    `parameters` are sampling parameters that OpenAI's dialect sees instead of the request's, and
    `handled` the capabilities that it does not see, since a field of the server's does the same.
    """

    fields: dict[str, Any]
    parameters: dict[str, Any]
    handled: frozenset[Capability]


class OpenAIVariant:
    """A Dialect that sends and reads what `openai` does, except for what a subclass changes."""

    def __init__(self, openai: Dialect) -> None:
        self.path = openai.path
        self._openai = openai

    def _changes(
        self, request: SampleRequest, *, capabilities: Capabilities, stream: bool
    ) -> Changes:
        raise NotImplementedError

    def encode(
        self, request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
    ) -> bytes:
        """See Dialect.encode."""
        changes = self._changes(request, capabilities=capabilities, stream=stream)
        parameters = request.parameters
        if taken := changes.fields.keys() & parameters.extra.keys():
            raise ConfigurationError(
                f"extra must not set {', '.join(sorted(taken))!r}",
                why="the request sets that field already",
                fix="set it in the request or its SamplingParameters",
            )
        parameters = msgspec.structs.replace(
            parameters, **changes.parameters, extra=parameters.extra | changes.fields
        )
        return self._openai.encode(
            msgspec.structs.replace(request, parameters=parameters),
            model=model,
            capabilities=msgspec.structs.replace(
                capabilities, supports=capabilities.supports - changes.handled
            ),
            stream=stream,
        )

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """See Dialect.decode."""
        return self._openai.decode(body, request=request, timing=timing)

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """See Dialect.decode_chunk."""
        return self._openai.decode_chunk(data)

    def is_end(self, data: bytes) -> bool:
        """See Dialect.is_end."""
        return self._openai.is_end(data)
